"""The settings that every level of an update shares, in one object."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, RunConfig, Trained
from r2rank_jax.train.memory.chunk_choice import choose_chunks
from r2rank_jax.types import ListBatch, Rationales


@dataclass(frozen=True)
class UpdateContext:
    """Where and how one update is computed. It holds no arrays, so functions that are traced may close over it.

    Attributes:
        mesh: the devices. Users are split over its data and fsdp axes, parameters along fsdp and tensor.
        model: the model's shape. Its `remat` is "none", "dots" or "block", no longer "auto".
        chunk_items: the items of each user that are read together. N or more: all items at once.
        trained: which parameters are differentiated; the others are constants.
    """

    mesh: Mesh
    model: ModelConfig
    chunk_items: int
    trained: Trained = "all"


def update_context(mesh: Mesh, config: RunConfig, batch: ListBatch, rationales: Rationales) -> UpdateContext:
    """The context of an update on this batch, with as many items at once as fit into memory.

    Args:
        mesh: made from `config.mesh`.
        config: the run.
        batch: the global batch; only its shapes are used.
        rationales: its rationales; only their shapes are used.
    """
    choice = choose_chunks(config, batch, rationales)
    return UpdateContext(mesh, choice.model, choice.chunk_items, config.trained)
