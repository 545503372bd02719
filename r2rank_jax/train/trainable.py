"""Which parameters an update trains: all of them, the adapters, or the heads alone.

Frozen parameters are not arguments of the differentiated functions, so they need neither gradients nor optimizer
moments.
"""

from __future__ import annotations

from typing import Any

import jax
from flax.core import meta

from r2rank_jax.config import Trained
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.types import Params

HEADS = ("score_head", "critic_head")


def is_trainable(trained: Trained, path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path of the tree is trained. The heads always are."""
    name = path[-1].key
    return trained == "all" or name in HEADS or (trained == "adapters" and is_adapter(name))


def split_params(trained: Trained, params: Params) -> tuple[Params, Params]:
    """Split into trainable and frozen parameters, each a full tree with None in place of the other's leaves."""
    is_box = lambda leaf: isinstance(leaf, meta.AxisMetadata)  # noqa: E731  a leaf that carries its logical axes
    trainable = jax.tree.map_with_path(
        lambda p, leaf: leaf if is_trainable(trained, p) else None, params, is_leaf=is_box
    )
    frozen = jax.tree.map_with_path(lambda p, leaf: None if is_trainable(trained, p) else leaf, params, is_leaf=is_box)
    return trainable, frozen


def join_params(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split_params`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)
