"""Which parameters an update moves: all, the adapters, or the scoring head alone.

What stays is no argument of the differentiated functions, so it costs neither gradients nor moments of the optimizer.
"""

from __future__ import annotations

from typing import Any

import jax
from flax.core import meta

from r2rank_jax.config import Trained
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.types import Params


def moves(trained: Trained, path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path of the tree is moved. The scoring head always is."""
    name = path[-1].key
    return trained == "all" or name == "score_head" or (trained == "adapters" and is_adapter(name))


def split(trained: Trained, params: Params) -> tuple[Params, Params]:
    """What is moved and what stays, each with None in place of the other."""
    is_box = lambda leaf: isinstance(leaf, meta.AxisMetadata)  # noqa: E731  a leaf that carries its logical axes
    moved = jax.tree.map_with_path(lambda path, leaf: leaf if moves(trained, path) else None, params, is_leaf=is_box)
    rest = jax.tree.map_with_path(lambda path, leaf: None if moves(trained, path) else leaf, params, is_leaf=is_box)
    return moved, rest


def join(moved: Params, rest: Params) -> Params:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, moved, rest, is_leaf=lambda leaf: leaf is None)
