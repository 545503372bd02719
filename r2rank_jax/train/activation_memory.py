"""How many items an update reads at once: what fits into a budget of activations.

What autodiff keeps is not guessed: one and two layers are traced, without computing anything, and what their
derivatives hold on to is counted; the rest is linear. `tests/train/test_chunks.py` holds the sum against what XLA
allocates. Chunks are equal, or nearly: what the last one lacks is filled with masked items, which cost as much.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta

from r2rank_jax.config import ComputeConfig, MeshConfig, ModelConfig, Trained
from r2rank_jax.model.counting import Lists, parameters
from r2rank_jax.model.forward import read_rationales
from r2rank_jax.model.logprobs import CHUNK_TOKENS
from r2rank_jax.model.transformer import LOOPED_LAYERS, initial_params
from r2rank_jax.train.trainable import join, split
from r2rank_jax.types import ListBatch, Params, Rationales

Remat = Literal["none", "dots", "block"]
GIB = 2**30
# A budget nobody has set: a device that does not say how much memory it has (CPU), or code outside of a run.
DEFAULT_BUDGET = 4 * GIB
# Fewer tokens at once leave an accelerator's matrix units idle; above it, a chunk without recomputation beats a larger
# one with it. A guess until one is measured.
ENOUGH_TOKENS = 2048
# Sizes of a traced batch: primes that no weight has, by which it is known what belongs to users, items and rationales.
TRACED_USERS, TRACED_ITEMS, TRACED_RATIONALES = 1_000_003, 10_007, 1_009
# Arrays like a chunk's logits, float32, that are there together: probabilities and slope; the reference's.
LOGITS = 3


class Copies(NamedTuple):
    """How often parameters are there as float32 trees while an update runs, beyond what the state holds: gradients of
    each segment, sums of them, and weights that XLA has gathered, cast or transposed for a whole loop."""

    layers: float
    vocabulary: float  # embedding and LM head


class Trees(NamedTuple):
    """Measured on compiled updates whose parameters outweigh their activations (docs/performance.md)."""

    whole: Copies  # all items at once
    whole_split: Copies  # the same with parameters split along fsdp
    chunks: Copies
    chunks_split: Copies


# By platform; of layers that are written out, and of a loop over layers. On accelerators weights are cast to bfloat16.
# All items at once on split parameters is measured on one looped model; elsewhere it counts as much as chunks do.
TREES = {
    "cpu": (
        Trees(Copies(5.5, 3.5), Copies(4.5, 2.3), Copies(4.2, 1.9), Copies(4.5, 2.3)),
        Trees(Copies(3.3, 4.3), Copies(5.1, 3.0), Copies(4.1, 2.0), Copies(5.1, 3.0)),
    ),
    "gpu": (
        Trees(Copies(2.5, 2.5), Copies(3.0, 2.1), Copies(2.5, 1.9), Copies(3.0, 2.1)),
        Trees(Copies(3.0, 0.5), Copies(2.0, 2.0), Copies(3.0, 0.5), Copies(3.0, 1.3)),
    ),
    "tpu": (
        Trees(Copies(3.2, 3.2), Copies(2.8, 2.8), Copies(2.4, 2.4), Copies(2.8, 2.8)),
        Trees(Copies(2.3, 2.0), Copies(1.5, 1.5), Copies(2.5, 0.8), Copies(2.5, 1.8)),
    ),
}


def gradient_bytes(
    model: ModelConfig, mesh: MeshConfig, platform: str, *, chunks: bool, layers: float, vocabulary: float
) -> float:
    """What an update adds to what the run holds, besides activations.

    Args:
        model: its depth decides whether layers are a loop.
        mesh: how parameters are split.
        platform: that the update is to run on.
        chunks: whether items are read a few at a time.
        layers: bytes of the parameters that are trained, split along tensor only, but for
        vocabulary: those of embedding and LM head.
    """
    trees = TREES[platform][model.layers >= LOOPED_LAYERS]
    if mesh.fsdp > 1:
        copies = trees.chunks_split if chunks else trees.whole_split
    else:
        copies = trees.chunks if chunks else trees.whole
    return copies.layers * layers + copies.vocabulary * vocabulary


def recomputing_helps(model: ModelConfig, platform: str) -> bool:
    """Whether "auto" may recompute layers. XLA for CPU merges what is computed twice in layers that are written out,
    and so keeps it all the same (108 instead of 112 MiB where 25 would do), but not in a loop over layers (29 instead
    of 249)."""
    return platform != "cpu" or model.layers >= LOOPED_LAYERS


class Plan(NamedTuple):
    """How an update is cut."""

    chunk_items: int
    model: ModelConfig  # its `remat` is no longer "auto"
    activation_bytes: int  # on one device, estimated


def plan_update(
    model: ModelConfig,
    compute: ComputeConfig,
    batch: ListBatch,
    said: Rationales,
    *,
    batch_shards: int,
    tensor: int = 1,
    trained: Trained = "all",
    platform: str | None = None,
) -> Plan:
    """The largest chunk of items that fits, without recomputation if such a chunk keeps the machine busy.

    Args:
        model: its `remat` other than "auto" is obeyed.
        compute: holds the budget.
        batch: shapes of the global batch.
        said: shapes of its rationales.
        batch_shards: devices that the users are split over.
        tensor: devices that heads, MLP columns and the vocabulary are split over.
        trained: what is differentiated.
        platform: that the update is to run on; None: this process's.

    Returns:
        A plan; one item at a time where not even that fits (XLA then says what it lacks).
    """
    users = -(-batch.prefix.shape[0] // batch_shards)
    items, rationales, length = said.tokens.shape[1:]
    suffix = batch.suffix.shape[2]
    budget = DEFAULT_BUDGET if compute.update_gib is None else int(compute.update_gib * GIB)
    row_tokens = users * (suffix + rationales * length)  # of one item of every user
    local = on_one_device(model, tensor)

    def size(chunk: int, remat: Remat) -> int:
        lists = Lists(users, batch.prefix.shape[1], suffix, length, chunk, rationales)
        here = replace(local, remat=remat)
        return kept_bytes(here, lists, trained) + logits_bytes(local, users, chunk * rationales * length)

    def largest(remat: Remat) -> int:
        most = max((n for n in range(1, items + 1) if size(n, remat) <= budget), default=0)
        chunks = -(-items // max(most, 1))
        return most and -(-items // chunks)  # the same number of chunks, with as little filling as can be

    def plan(chunk: int, remat: Remat) -> Plan:
        return Plan(chunk, replace(model, remat=remat), size(chunk, remat))

    choices: tuple[Remat, ...] = ("none",) if model.remat == "auto" else (model.remat,)
    if model.remat == "auto" and recomputing_helps(model, platform or jax.default_backend()):
        choices = ("none", "block")
    for remat in choices:
        chunk = largest(remat)
        if chunk == items or chunk * row_tokens >= ENOUGH_TOKENS or (chunk and remat == choices[-1]):
            return plan(chunk, remat)
    return plan(1, choices[-1])


def update_budget(model: ModelConfig, mesh: MeshConfig, platform: str, free_bytes: float) -> float:
    """Bytes of activations for an update where nobody has set them: half of what the model and its step leave free.

    Args:
        model: its shape.
        mesh: how it is split.
        platform: that the update is to run on.
        free_bytes: on the device that has least.
    """
    return max((free_bytes - held_bytes(model, mesh, platform)) / 2, 0.01 * free_bytes)


def held_bytes(model: ModelConfig, mesh: MeshConfig, platform: str) -> float:
    """What a device holds besides activations: policy, its average, two moments and the reference, which are split, and
    what an update in chunks adds."""
    matrices = 1 if model.tied_embeddings else 2
    tree = 4 * parameters(model) / mesh.tensor
    vocabulary = 4 * matrices * model.vocabulary * model.width / mesh.tensor
    return 5 * tree / mesh.fsdp + gradient_bytes(
        model, mesh, platform, chunks=True, layers=tree - vocabulary, vocabulary=vocabulary
    )


def on_one_device(model: ModelConfig, tensor: int) -> ModelConfig:
    """The model as one device of a tensor axis computes it; what the axis does not divide is copied."""

    def part(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    heads, kv_heads = part(model.heads), part(model.kv_heads)
    if heads % kv_heads:  # fewer key-value heads than devices: XLA decides; count all heads
        heads = model.heads
    return replace(
        model, heads=heads, kv_heads=kv_heads, mlp_width=part(model.mlp_width), vocabulary=part(model.vocabulary)
    )


def logits_bytes(model: ModelConfig, users: int, slots: int, arrays: int = LOGITS) -> int:
    """Logits of the tokens that are looked at together, of `slots` tokens of each of some users."""
    return arrays * users * min(slots, max(1, CHUNK_TOKENS // users)) * model.vocabulary * 4


def kept_bytes(model: ModelConfig, lists: Lists, trained: Trained = "all") -> int:
    """What prefixes, items and rationales leave behind for the backward pass.

    Args:
        model: as one device computes it. With `remat`, one layer's own activations are added, once.
        lists: as many users and items as one device reads together.
        trained: what is differentiated.
    """
    layer, rest = _per_layer(replace(model, remat="none"), lists, trained)
    if model.remat == "none":
        return model.layers * layer + rest
    kept, rest = _per_layer(model, lists, trained)
    return model.layers * kept + layer + rest


def layer_bytes(model: ModelConfig, lists: Lists) -> int:
    """What one layer alone leaves behind, without `remat`, where all is trained."""
    return _per_layer(replace(model, remat="none"), lists, "all")[0]


def _per_layer(model: ModelConfig, lists: Lists, trained: Trained) -> tuple[int, int]:
    """Bytes of one more layer, and of what is there besides layers."""
    model = replace(model, attention="auto", vocabulary=8)  # what matters not, so that fewer models are traced
    sizes = lists.prefix, lists.suffix, lists.length
    one, two = (_traced(replace(model, layers=layers), *sizes, trained).of(lists) for layers in (1, 2))
    return two - one, 2 * one - two


class _Kept(NamedTuple):
    """Bytes of each user, of each of its items, and of each of their rationales."""

    user: int
    item: int
    rationale: int

    def of(self, lists: Lists) -> int:
        return lists.users * (self.user + lists.items * (self.item + lists.rationales * self.rationale))


@functools.cache
def _traced(model: ModelConfig, prefix: int, suffix: int, length: int, trained: Trained) -> _Kept:
    """What a derivative holds on to."""
    u, n, g = TRACED_USERS, TRACED_ITEMS, TRACED_RATIONALES

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    batch = ListBatch(
        user=leaf(u),
        items=leaf(u, n),
        prefix=leaf(u, prefix),
        prefix_length=leaf(u),
        suffix=leaf(u, n, suffix),
        suffix_length=leaf(u, n),
        labels=leaf(u, n),
        mask=leaf(u, n),
    )
    said = Rationales(tokens=leaf(u, n, g, length), length=leaf(u, n, g), stopped=leaf(u, n, g))
    params = jax.eval_shape(lambda: meta.unbox(initial_params(model, jax.random.key(0))))
    moved, rest = split(trained, params)

    def read(moved: Params, rest: Params, batch: ListBatch, said: Rationales) -> Any:
        return jax.vjp(lambda moved: read_rationales(model, join(moved, rest), batch, said), moved)

    states, pull = jax.eval_shape(read, moved, rest, batch, said)
    slope = jax.ShapeDtypeStruct(states.predicting.shape, jnp.float32)  # made together with the logits
    of_user = of_item = of_rationale = 0
    for x in (*jax.tree.leaves(pull), states.predicting, states.last, slope):
        each, not_of_users = divmod(math.prod(x.shape) * x.dtype.itemsize, u)
        if not_of_users:
            continue
        if each % (n * g) == 0:
            of_rationale += each // (n * g)
        elif each % n == 0:
            of_item += each // n
        else:
            of_user += each
    return _Kept(of_user, of_item, of_rationale)
