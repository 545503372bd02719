"""Bytes of every program of a run on one device, from shapes and shardings alone.

Arguments and results of a program are counted exactly. Its activations are the residuals of autodiff
(`train/memory/activations.py`). Its other temporaries are estimated below as multiples of the arrays they are made
from; `tests/plan/test_plan.py` compares the estimates with XLA. Two things are not counted: the padding of TPU tiles,
and the copies that GSPMD makes where it finds no better way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.model.counting import BatchShape, cache_bytes
from r2rank_jax.model.forward import WORDS_TOKENS
from r2rank_jax.plan.devices import Topology
from r2rank_jax.plan.programs import abstract_rationales, abstract_rollout
from r2rank_jax.rollout.generate import past_sizes
from r2rank_jax.sharding import abstract_lists, abstract_params, gathered_shape, mesh_of_shapes
from r2rank_jax.train.memory.activations import layer_residual_bytes, logits_bytes, on_one_device, residual_bytes
from r2rank_jax.train.memory.chunk_choice import GIB, ChunkChoice, choose_chunks, update_budget
from r2rank_jax.train.memory.gradients import gradient_bytes
from r2rank_jax.train.state import TrainState, abstract_state
from r2rank_jax.train.trainable import split_params
from r2rank_jax.types import ListBatch, Params

WEIGHTS, MOMENTS, AVERAGE, REFERENCE = "weights", "optimizer moments", "parameter average", "reference policy"
GRADIENTS, ACTIVATIONS, CACHES, BATCH = "gradients", "activations", "KV caches", "batch"
KINDS = (WEIGHTS, MOMENTS, AVERAGE, REFERENCE, GRADIENTS, ACTIVATIONS, CACHES, BATCH)

# Float32 arrays of the size of a rollout's logits that exist at the same time while a token is sampled.
SAMPLING = 3


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device while a program runs, by kind."""

    program: dict[str, int]  # its arguments, results and temporaries
    resident: dict[str, int]  # arrays that the run keeps in memory while the program runs

    @property
    def total(self) -> int:
        return sum(self.program.values()) + sum(self.resident.values())

    def of(self, kind: str) -> int:
        return self.program.get(kind, 0) + self.resident.get(kind, 0)


@dataclass(frozen=True)
class Estimate:
    """The memory that a configuration needs on a topology."""

    config: RunConfig  # with attention and budget resolved
    programs: dict[str, MemoryUse]
    sft: ChunkChoice
    rl: ChunkChoice

    @property
    def peak(self) -> int:
        return max(use.total for use in self.programs.values())


def estimate(config: RunConfig, topology: Topology) -> Estimate:
    """Resolve the settings that a run on this topology resolves itself, and count bytes.

    Args:
        config: its mesh has as many devices as the topology.
        topology: the devices that the run would use.
    """
    config = resolved(config, topology)
    mesh = mesh_of_shapes(config.mesh)
    run = _RunState.of(mesh, config, topology.device.platform)
    choices = [
        choose_chunks(
            config,
            abstract_lists(mesh, config, users),  # type: ignore[arg-type]
            abstract_rationales(mesh, config, users, rationales),
            platform=topology.device.platform,
        )
        for users, rationales in ((config.sft.batch_users, 1), (config.rl.batch_users, config.rl.rationales))
    ]
    programs = {"sft step": _sft_step(run, choices[0]), **_rollout(run), **_rl_steps(run, choices[1])}
    return Estimate(config, programs, *choices)


def resolved(config: RunConfig, topology: Topology) -> RunConfig:
    """The configuration with the settings that `r2rank` otherwise resolves on the machine.

    Attention cannot be timed here, so "auto" becomes "einsum".
    """
    model, compute = config.model, config.compute
    if model.attention == "auto":
        model = dataclasses.replace(model, attention="einsum")
    if compute.update_gib is None and topology.device.platform != "cpu":  # a CPU does not report its memory
        gib = update_budget(config.model, config.mesh, topology.device.platform, topology.device.memory_bytes) / GIB
        compute = dataclasses.replace(compute, update_gib=gib)
    return dataclasses.replace(config, model=model, compute=compute)


def bytes_on_device(tree: Any) -> int:
    """Bytes of one device's shards of a pytree of shapes, dtypes and shardings."""

    def size(x: Any) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        width = 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize  # threefry: two words
        return math.prod(shape) * width

    return sum(map(size, jax.tree.leaves(tree)))


_abstract_state: Any = functools.cache(abstract_state)
_abstract_params: Any = functools.cache(abstract_params)


@dataclass(frozen=True)
class _RunState:
    """The state and settings that a run's programs share."""

    config: RunConfig
    sft: TrainState
    rl: TrainState
    reference: Params
    batch: ListBatch  # of RL
    mesh: AbstractMesh
    platform: str

    @classmethod
    def of(cls, mesh: AbstractMesh, config: RunConfig, platform: str) -> _RunState:
        # Parameters do not depend on these settings, and a search for a remedy asks for the same parameters many times.
        model = dataclasses.replace(config.model, dtype="float32", attention="auto", remat="auto")
        rl = config.rl
        return cls(
            config=config,
            sft=_abstract_state(mesh, model, config.sft.optimizer, config.sft.steps, config.trained),
            rl=_abstract_state(mesh, model, rl.optimizer, rl.steps * rl.updates, config.trained),
            reference=_abstract_params(mesh, model),
            batch=abstract_lists(mesh, config, rl.batch_users),  # type: ignore[arg-type]
            mesh=mesh,
            platform=platform,
        )

    @property
    def tree(self) -> int:
        """Bytes of the parameters as an update uses them: float32, gathered along fsdp."""
        return gathered_bytes(self.reference)

    @property
    def trainable(self) -> tuple[int, int]:
        """Bytes of the trained parameters among them: all but embedding and LM head, then embedding and LM head."""
        trainable = split_params(self.config.trained, self.reference)[0]
        vocabulary = {name: trainable.get(name) for name in ("embedding", "lm_head")}
        return gathered_bytes(trainable) - gathered_bytes(vocabulary), gathered_bytes(vocabulary)

    def device_shape(self, users: int, items: int, rationales: int) -> BatchShape:
        """The part of a batch that one device reads together."""
        data = self.config.data
        users //= self.config.mesh.batch_shards
        return BatchShape(users, data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, items, rationales)


def gathered_bytes(params: Params) -> int:
    """Bytes on one device of parameters that are gathered along fsdp."""
    return sum(math.prod(gathered_shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(params))


def _state(state: TrainState) -> dict[str, int]:
    return {
        WEIGHTS: bytes_on_device(state.params),
        MOMENTS: bytes_on_device(state.optimizer),
        AVERAGE: bytes_on_device(state.average),
    }


def _sft_step(run: _RunState, choice: ChunkChoice) -> MemoryUse:
    config, users = run.config, run.config.sft.batch_users
    m: Any = run.mesh
    batch = abstract_lists(m, config, users), abstract_rationales(m, config, users, 1)
    return MemoryUse(_state(run.sft) | {BATCH: bytes_on_device(batch)} | _update(run, choice, users, 1, 2), {})


def _rl_steps(run: _RunState, choice: ChunkChoice) -> dict[str, MemoryUse]:
    config, rl = run.config, run.config.rl
    rollout, assessment = abstract_rollout(run.mesh, config)
    state, reference = _state(run.rl), bytes_on_device(run.reference)
    batch = bytes_on_device((run.batch, rollout))
    assessed = bytes_on_device(assessment)
    shape = run.device_shape(rl.batch_users, choice.chunk_items, rl.rationales)
    reading = _forward(run, choice, shape)
    assess = {REFERENCE: reference, BATCH: batch + assessed, ACTIVATIONS: reading}
    resident = dict(state)
    if rl.updates > 1:  # the policy is an argument too
        assess[WEIGHTS] = resident.pop(WEIGHTS)
    if config.mesh.fsdp > 1:  # gathered: in float32 before a loop over chunks, otherwise in the compute dtype
        chunks = choice.chunk_items < config.data.candidate_items
        assess[REFERENCE] += run.tree if chunks else decoding_weights(run)
    update = (
        state | {REFERENCE: reference, BATCH: batch + assessed} | _update(run, choice, rl.batch_users, rl.rationales, 3)
    )
    return {"rl assess": MemoryUse(assess, resident), "rl update": MemoryUse(update, {})}


def _update(run: _RunState, choice: ChunkChoice, users: int, rationales: int, logits: int) -> dict[str, int]:
    """Temporaries of a gradient and its optimizer step.

    Args:
        run: the state of the run.
        choice: how the update is divided.
        users: users of the global batch.
        rationales: G.
        logits: float32 arrays of the size of a chunk's logits that exist at the same time.
    """
    config, mesh = run.config, run.config.mesh
    chunks = choice.chunk_items < config.data.candidate_items
    shape = run.device_shape(users, choice.chunk_items, rationales)
    local = on_one_device(choice.model, mesh.tensor)
    # Without a loop over chunks, GSPMD splits the logits of all users; in a loop each device has its own.
    shards = 1 if chunks else mesh.batch_shards
    slots = shape.items * rationales * shape.length
    of_logits = logits_bytes(local, shape.users * shards, slots, logits) // shards
    of_logits += 4 * local.vocabulary * local.width  # the gradient of the vocabulary, summed over chunks
    layers, vocabulary = run.trainable
    sizes = {"layers": layers, "vocabulary": vocabulary}
    gradients = int(gradient_bytes(choice.model, mesh, run.platform, chunks=chunks, **sizes))
    if chunks and mesh.fsdp > 1:  # frozen parameters are gathered before the loop too
        gradients += run.tree - layers - vocabulary
    # Logits exist at the end of the forward pass and gradients after it, so only the larger of the two counts.
    activations = residual_bytes(local, shape, config.trained) + max(of_logits - gradients, 0)
    return {GRADIENTS: gradients, ACTIVATIONS: activations}


def _forward(run: _RunState, choice: ChunkChoice, shape: BatchShape) -> int:
    """Activations of a forward pass: shared keys and values, and about half of the residuals of one layer."""
    local = on_one_device(choice.model, run.config.mesh.tensor)
    shared = cache_bytes(local, shape.users * (shape.prefix + shape.items * shape.suffix))
    return shared + layer_residual_bytes(local, shape) // 2


def _rollout(run: _RunState) -> dict[str, MemoryUse]:
    config, rl, data = run.config, run.config.rl, run.config.data
    local = on_one_device(config.model, config.mesh.tensor)
    shape = run.device_shape(rl.batch_users, data.candidate_items, rl.rationales)
    state, reference = _state(run.rl), bytes_on_device(run.reference)
    resident = {**state, REFERENCE: reference}
    weights = decoding_weights(run)
    wave = min(config.compute.wave_tokens, data.rationale_tokens)
    pasts = past_sizes(data.rationale_tokens, max(wave, 1))
    shared = cache_bytes(local, shape.users * (shape.prefix + shape.items * shape.suffix))
    own = cache_bytes(local, shape.rows)  # of one token per row
    rollout, _ = abstract_rollout(run.mesh, config)
    width = jnp.dtype(config.model.dtype).itemsize * config.model.width
    rows = bytes_on_device(rollout) + 2 * shape.rows * width + 8 * shape.rows
    batch = bytes_on_device(run.batch)
    tokens = shape.prefix + shape.items * shape.suffix  # before the rationales
    all_tokens = tokens + shape.items * shape.rationales * shape.length
    reading = layer_residual_bytes(local, shape) * tokens // all_tokens // 2
    logits = SAMPLING * shape.rows * local.vocabulary * 4
    start = {WEIGHTS: weights, CACHES: shared + wave * own, BATCH: batch + rows, ACTIVATIONS: reading}
    programs = {"rollout start": MemoryUse(start, resident)}
    resident = {**resident, BATCH: batch}
    if data.rationale_tokens:
        caches = shared + (pasts[-1] + wave) * own
        programs["rollout wave"] = MemoryUse(
            {WEIGHTS: weights, CACHES: caches, BATCH: rows, ACTIVATIONS: logits}, resident
        )
        if len(pasts) > 1:
            joined = (pasts[-2] + pasts[-1] + 2 * wave) * own  # the last wave is copied as well
            kept = {**resident, WEIGHTS: resident[WEIGHTS] + weights, CACHES: shared}
            programs["rollout merge"] = MemoryUse({CACHES: joined, BATCH: 2 * rows}, kept)
    kept = {**resident, CACHES: shared + (pasts[-1] + wave) * own}
    finish = {BATCH: rows}
    if config.model.score_reads == "words":  # the rationales are read once more, some at a time
        most = WORDS_TOKENS // config.mesh.batch_shards
        again = min(shape.rows * shape.length, max(most, shape.users * shape.rationales * shape.length))
        finish |= {WEIGHTS: weights, ACTIVATIONS: layer_residual_bytes(local, shape) * again // all_tokens // 2}
    else:  # the program uses only the head
        kept[WEIGHTS] += weights
    programs["rollout finish"] = MemoryUse(finish, kept)
    return programs


def decoding_weights(run: _RunState) -> int:
    """Bytes of a rollout's copy of the weights: adapters merged, gathered along fsdp, matrices in the compute dtype."""
    width = jnp.dtype(run.config.model.dtype).itemsize

    def size(path: Any, x: Any) -> int:
        if is_adapter(path[-1].key):
            return 0
        axes = len(x.shape) - (path[0].key == "layers")
        return math.prod(gathered_shape(x)) * (width if axes > 1 else 4)

    return sum(jax.tree.leaves(jax.tree.map_with_path(size, run.reference)))
