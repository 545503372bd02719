"""Bytes of activations that an update keeps for its backward pass, found by tracing.

Autodiff's residuals are counted, not guessed: models of one and of two layers are traced, without computing anything,
and the arrays that their derivatives hold are added up. All other depths follow linearly.
`tests/train/test_chunks.py` compares the sum with what XLA allocates.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta

from r2rank_jax.config import ModelConfig, Trained
from r2rank_jax.model.counting import BatchShape
from r2rank_jax.model.forward import read_rationales
from r2rank_jax.model.logprobs import CHUNK_TOKENS
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.train.trainable import join_params, split_params
from r2rank_jax.types import ListBatch, Params, Rationales

# Sizes of the traced batch: primes that no weight has, so that each traced array reveals its axes.
TRACED_USERS, TRACED_ITEMS, TRACED_RATIONALES = 1_000_003, 10_007, 1_009
# Float32 arrays of the size of a chunk's logits that exist at the same time: probabilities, their gradient, and the
# reference's logits.
LOGITS = 3


def residual_bytes(model: ModelConfig, shape: BatchShape, trained: Trained = "all") -> int:
    """Bytes that the forward pass over prefixes, items and rationales saves for the backward pass.

    Args:
        model: the model as one device computes it. With `remat`, the activations of one layer are added once.
        shape: the users and items that one device reads together.
        trained: the parameters that are differentiated.
    """
    layer, rest = _per_layer(replace(model, remat="none"), shape, trained)
    if model.remat == "none":
        return model.layers * layer + rest
    saved, rest = _per_layer(model, shape, trained)
    return model.layers * saved + layer + rest


def layer_residual_bytes(model: ModelConfig, shape: BatchShape) -> int:
    """Bytes that a single layer saves, without `remat`, where all parameters are trained."""
    return _per_layer(replace(model, remat="none"), shape, "all")[0]


def logits_bytes(model: ModelConfig, users: int, slots: int, arrays: int = LOGITS) -> int:
    """Bytes of the logits that exist at the same time.

    Args:
        model: the model as one device computes it.
        users: users that one device reads together.
        slots: rationale tokens of each user, padding included.
        arrays: arrays of the size of the logits.
    """
    return arrays * users * min(slots, max(1, CHUNK_TOKENS // users)) * model.vocabulary * 4


def on_one_device(model: ModelConfig, tensor: int) -> ModelConfig:
    """The model as one device of a tensor axis computes it. Dimensions that the axis does not divide are copied."""

    def share(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    heads, kv_heads = share(model.heads), share(model.kv_heads)
    if heads % kv_heads:  # fewer key-value heads than devices: XLA decides how to split; assume all heads
        heads = model.heads
    return replace(
        model, heads=heads, kv_heads=kv_heads, mlp_width=share(model.mlp_width), vocabulary=share(model.vocabulary)
    )


def _per_layer(model: ModelConfig, shape: BatchShape, trained: Trained) -> tuple[int, int]:
    """Bytes of each layer, and bytes that do not depend on the number of layers."""
    model = replace(model, attention="auto", vocabulary=8)  # neither changes the sum, so fewer models are traced
    sizes = shape.prefix, shape.suffix, shape.length
    one, two = (_traced(replace(model, layers=layers), *sizes, trained).total(shape) for layers in (1, 2))
    return two - one, 2 * one - two


class _Residuals(NamedTuple):
    """Bytes saved per user, per item of a user, and per rationale of an item."""

    user: int
    item: int
    rationale: int

    def total(self, shape: BatchShape) -> int:
        return shape.users * (self.user + shape.items * (self.item + shape.rationales * self.rationale))


@functools.cache
def _traced(model: ModelConfig, prefix: int, suffix: int, length: int, trained: Trained) -> _Residuals:
    """Count the residuals of one traced model."""
    u, n, g = TRACED_USERS, TRACED_ITEMS, TRACED_RATIONALES

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    batch = ListBatch(
        user=leaf(u),
        position=leaf(u),
        items=leaf(u, n),
        prefix=leaf(u, prefix),
        prefix_length=leaf(u),
        suffix=leaf(u, n, suffix),
        suffix_length=leaf(u, n),
        labels=leaf(u, n),
        mask=leaf(u, n),
    )
    rationales = Rationales(tokens=leaf(u, n, g, length), length=leaf(u, n, g), stopped=leaf(u, n, g))
    params = jax.eval_shape(lambda: meta.unbox(initial_params(model, jax.random.key(0))))
    trainable, frozen = split_params(trained, params)

    def read(trainable: Params, frozen: Params, batch: ListBatch, rationales: Rationales) -> Any:
        return jax.vjp(lambda p: read_rationales(model, join_params(p, frozen), batch, rationales), trainable)

    states, pull = jax.eval_shape(read, trainable, frozen, batch, rationales)
    # The gradient of the predicting states is made together with the logits.
    d_states = jax.ShapeDtypeStruct(states.predicting.shape, jnp.float32)
    per_user = per_item = per_rationale = 0
    for x in (*jax.tree.leaves(pull), states.predicting, states.last, d_states):
        size, remainder = divmod(math.prod(x.shape) * x.dtype.itemsize, u)
        if remainder:  # a parameter: it has no axis of users
            continue
        if size % (n * g) == 0:
            per_rationale += size // (n * g)
        elif size % n == 0:
            per_item += size // n
        else:
            per_user += size
    return _Residuals(per_user, per_item, per_rationale)
