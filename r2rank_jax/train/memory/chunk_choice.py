"""How many items an update reads at once: as many as fit into a budget of activations.

Chunks have equal sizes, or nearly: the last chunk is filled up with masked items, which cost as much as real ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import jax

from r2rank_jax.config import MeshConfig, ModelConfig, RunConfig
from r2rank_jax.model.counting import BatchShape
from r2rank_jax.model.transformer import LOOPED_LAYERS
from r2rank_jax.train.memory.activations import logits_bytes, on_one_device, residual_bytes
from r2rank_jax.train.memory.gradients import held_bytes
from r2rank_jax.types import ListBatch, Rationales

Remat = Literal["none", "dots", "block"]
GIB = 2**30
# The budget where none is set: code outside of a run, or a device (a CPU) that does not report its memory.
DEFAULT_BUDGET = 4 * GIB
# Fewer tokens than this leave an accelerator's matrix units idle. Above it, a small chunk without recomputation is
# preferred to a larger one with it. Not measured yet.
ENOUGH_TOKENS = 2048


class ChunkChoice(NamedTuple):
    """How an update is divided into chunks."""

    chunk_items: int  # items of each user that are read together
    model: ModelConfig  # its `remat` is no longer "auto"
    activation_bytes: int  # on one device, estimated


def choose_chunks(
    config: RunConfig, batch: ListBatch, rationales: Rationales, *, platform: str | None = None
) -> ChunkChoice:
    """The largest chunk of items that fits, without recomputation if such a chunk keeps the device busy.

    Args:
        config: its `compute` gives the budget, its `mesh` the split of users and weights. A `model.remat` other than
            "auto" is obeyed.
        batch: shapes of the global batch.
        rationales: shapes of its rationales.
        platform: where the update runs: "cpu", "gpu" or "tpu"; None: this process's platform.

    Returns:
        The choice. Where not even one item fits it is one item, and XLA reports what is missing.
    """
    model, budget_gib = config.model, config.compute.update_gib
    users = -(-batch.prefix.shape[0] // config.mesh.batch_shards)
    items, groups, length = rationales.tokens.shape[1:]
    suffix = batch.suffix.shape[2]
    budget = DEFAULT_BUDGET if budget_gib is None else int(budget_gib * GIB)
    item_tokens = users * (suffix + groups * length)  # of one item of every user
    local = on_one_device(model, config.mesh.tensor)

    def size(chunk: int, remat: Remat) -> int:
        shape = BatchShape(users, batch.prefix.shape[1], suffix, length, chunk, groups)
        saved = residual_bytes(replace(local, remat=remat), shape, config.trained)
        return saved + logits_bytes(local, users, chunk * groups * length)

    def largest(remat: Remat) -> int:
        most = max((n for n in range(1, items + 1) if size(n, remat) <= budget), default=0)
        chunks = -(-items // max(most, 1))
        return most and -(-items // chunks)  # the same number of chunks, with the fewest masked items

    def choice(chunk: int, remat: Remat) -> ChunkChoice:
        return ChunkChoice(chunk, replace(model, remat=remat), size(chunk, remat))

    remats: tuple[Remat, ...] = ("none",) if model.remat == "auto" else (model.remat,)
    if model.remat == "auto" and recomputing_helps(model, platform or jax.default_backend()):
        remats = ("none", "block")
    for remat in remats:
        chunk = largest(remat)
        if chunk == items or chunk * item_tokens >= ENOUGH_TOKENS or (chunk and remat == remats[-1]):
            return choice(chunk, remat)
    return choice(1, remats[-1])


def recomputing_helps(model: ModelConfig, platform: str) -> bool:
    """Whether "auto" may recompute layers on this platform.

    In layers that are written out, XLA for CPU merges the two computations of a layer, and so keeps its activations
    anyway (108 instead of 112 MiB, where 25 would do). In a loop over layers it does not (29 instead of 249 MiB).
    """
    return platform != "cpu" or model.layers >= LOOPED_LAYERS


def update_budget(model: ModelConfig, mesh: MeshConfig, platform: str, free_bytes: float) -> float:
    """Bytes of activations for an update where the configuration sets no budget.

    This is half of the memory that the model and its update leave free.

    Args:
        model: its shape.
        mesh: how it is split.
        platform: where the update runs: "cpu", "gpu" or "tpu".
        free_bytes: free memory of the device that has least.
    """
    return max((free_bytes - held_bytes(model, mesh, platform)) / 2, 0.01 * free_bytes)
