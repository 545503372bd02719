"""Bytes of gradients and copied parameters during an update, from tables of measurements.

These arrays depend on how XLA schedules an update, which no formula predicts. The tables were measured on compiled
updates whose parameters outweigh their activations (docs/performance.md).
"""

from __future__ import annotations

from typing import NamedTuple

from r2rank_jax.config import MeshConfig, ModelConfig
from r2rank_jax.model.counting import parameters
from r2rank_jax.model.transformer import LOOPED_LAYERS


class Copies(NamedTuple):
    """Float32 copies of the parameters that exist while an update runs, beyond those in the train state.

    They are gradients of each segment, sums of gradients, and weights that XLA has gathered, cast or transposed before
    a loop.
    """

    layers: float
    vocabulary: float  # embedding and LM head


class CopyTable(NamedTuple):
    """Measured copies, by how the update reads its items and how the parameters are split."""

    whole: Copies  # all items at once
    whole_split: Copies  # all items at once, parameters split along fsdp
    chunks: Copies
    chunks_split: Copies


# For each platform: the table for layers that are written out, then the table for a loop over layers. On accelerators
# weights are cast to bfloat16. Reading all items at once with split parameters was measured on one looped model only;
# the other tables use the figure for chunks.
COPY_TABLES = {
    "cpu": (
        CopyTable(Copies(5.5, 3.5), Copies(4.5, 2.3), Copies(4.2, 1.9), Copies(4.5, 2.3)),
        CopyTable(Copies(3.3, 4.3), Copies(5.1, 3.0), Copies(4.1, 2.0), Copies(5.1, 3.0)),
    ),
    "gpu": (
        CopyTable(Copies(2.5, 2.5), Copies(3.0, 2.1), Copies(2.5, 1.9), Copies(3.0, 2.1)),
        CopyTable(Copies(3.0, 0.5), Copies(2.0, 2.0), Copies(3.0, 0.5), Copies(3.0, 1.3)),
    ),
    "tpu": (
        CopyTable(Copies(3.2, 3.2), Copies(2.8, 2.8), Copies(2.4, 2.4), Copies(2.8, 2.8)),
        CopyTable(Copies(2.3, 2.0), Copies(1.5, 1.5), Copies(2.5, 0.8), Copies(2.5, 1.8)),
    ),
}


def gradient_bytes(
    model: ModelConfig, mesh: MeshConfig, platform: str, *, chunks: bool, layers: float, vocabulary: float
) -> float:
    """Bytes of gradients and copied parameters that an update allocates on each device.

    Args:
        model: its depth decides whether the layers are a loop.
        mesh: how parameters are split.
        platform: where the update runs: "cpu", "gpu" or "tpu".
        chunks: whether items are read a few at a time.
        layers: bytes of the trained parameters of all layers, split along tensor only.
        vocabulary: bytes of the trained embedding and LM head, split along tensor only.
    """
    table = COPY_TABLES[platform][model.layers >= LOOPED_LAYERS]
    if mesh.fsdp > 1:
        copies = table.chunks_split if chunks else table.whole_split
    else:
        copies = table.chunks if chunks else table.whole
    return copies.layers * layers + copies.vocabulary * vocabulary


def held_bytes(model: ModelConfig, mesh: MeshConfig, platform: str) -> float:
    """Bytes that an update in chunks needs on each device besides activations.

    The policy, its average, two moments and the reference are split along fsdp; `gradient_bytes` gives the rest.
    """
    matrices = 1 if model.tied_embeddings else 2
    tree = 4 * parameters(model) / mesh.tensor
    vocabulary = 4 * matrices * model.vocabulary * model.width / mesh.tensor
    return 5 * tree / mesh.fsdp + gradient_bytes(
        model, mesh, platform, chunks=True, layers=tree - vocabulary, vocabulary=vocabulary
    )
