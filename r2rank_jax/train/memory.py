"""How many items an update reads at once: what fits into a budget of activations.

The formulas count what autodiff keeps of one token in one layer; `tests/train/test_chunks.py` holds them against what
XLA allocates. Chunks are equal, or nearly: what the last one lacks is filled with masked items, which cost as much.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax

from r2rank_jax.config import ComputeConfig, ModelConfig
from r2rank_jax.model.logprobs import CHUNK_TOKENS
from r2rank_jax.types import ListBatch, Rationales

GIB = 2**30
# A budget nobody has set: a device that does not say how much memory it has (CPU), or code outside of a run.
DEFAULT_BUDGET = 4 * GIB
# Fewer tokens at once leave an accelerator's matrix units idle; above it, a chunk without recomputation beats a larger
# one with it. A guess until one is measured.
ENOUGH_TOKENS = 2048


def recomputing_helps() -> bool:
    """Whether "auto" may recompute layers. XLA for CPU merges what is computed twice, and so keeps it all the same: 113
    instead of 118 MB where 25 would do (docs/performance.md)."""
    return jax.default_backend() != "cpu"


class Plan(NamedTuple):
    """How an update is cut."""

    chunk_items: int
    model: ModelConfig  # its `remat` is "block" or "none"
    activation_bytes: int  # on one device, estimated


def plan_update(
    model: ModelConfig, compute: ComputeConfig, batch: ListBatch, said: Rationales, *, batch_shards: int
) -> Plan:
    """The largest chunk of items that fits, without recomputation if such a chunk keeps the machine busy.

    Args:
        model: its `remat` other than "auto" is obeyed.
        compute: holds the budget.
        batch: shapes of the global batch.
        said: shapes of its rationales.
        batch_shards: devices that the users are split over.

    Returns:
        A plan; one item at a time where not even that fits (XLA then says what it lacks).
    """
    users = -(-batch.prefix.shape[0] // batch_shards)
    items, rationales, length = said.tokens.shape[1:]
    prefix, suffix = batch.prefix.shape[1], batch.suffix.shape[2]
    budget = DEFAULT_BUDGET if compute.update_gib is None else int(compute.update_gib * GIB)
    row_tokens = users * (suffix + rationales * length)  # of one item of every user

    def size(chunk: int, remat: bool) -> int:
        first = users * prefix * kept_bytes(model, prefix, remat=remat)
        suffixes = chunk * users * suffix * kept_bytes(model, prefix + suffix, remat=remat)
        said = chunk * users * rationales * length * kept_bytes(model, prefix + suffix + length, remat=remat)
        once = chunk * row_tokens * layer_bytes(model, prefix + suffix + length) if remat else 0
        logits = 3 * CHUNK_TOKENS * model.vocabulary * 4
        return first + suffixes + said + once + logits

    def largest(remat: bool) -> int:
        most = max((n for n in range(1, items + 1) if size(n, remat) <= budget), default=0)
        chunks = -(-items // max(most, 1))
        return most and -(-items // chunks)  # the same number of chunks, with as little filling as can be

    def plan(chunk: int, remat: bool) -> Plan:
        return Plan(chunk, replace(model, remat="block" if remat else "none"), size(chunk, remat))

    auto = (False, True) if recomputing_helps() else (False,)
    choices = {"none": (False,), "block": (True,), "auto": auto}[model.remat]
    for remat in choices:
        chunk = largest(remat)
        if chunk == items or chunk * row_tokens >= ENOUGH_TOKENS or (chunk and remat is choices[-1]):
            return plan(chunk, remat)
    return plan(1, choices[-1])


def layer_bytes(model: ModelConfig, keys: int) -> int:
    """What one token leaves behind in one layer: norms, projections, attention weights over `keys` keys, MLP."""
    width = 2 if model.dtype == "bfloat16" else 4
    heads = (model.heads + 2 * model.kv_heads) * model.head_size
    linear = (4 * model.width + 2 * heads + 4 * model.mlp_width) * width
    return linear + model.heads * keys * (4 + width)


def kept_bytes(model: ModelConfig, keys: int, *, remat: bool) -> int:
    """What one token leaves behind in all layers; with `remat`, each layer's input and its keys and values."""
    width = 2 if model.dtype == "bfloat16" else 4
    if remat:
        return model.layers * (model.width + 2 * model.kv_heads * model.head_size) * width
    return model.layers * layer_bytes(model, keys)
