"""Bytes of every program of a run on one device, from shapes and shardings alone.

What is an argument or a result of a program is counted exactly. Of its temporaries, activations are what autodiff keeps
(`train/activation_memory.py`), the rest is written down below as multiples of what it is made of, held against XLA by
`tests/runs/test_plan.py`. Not counted: the padding of TPU tiles, and what GSPMD copies because it found no better way.
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
from r2rank_jax.model.counting import Lists, cache_bytes
from r2rank_jax.plan.devices import Topology
from r2rank_jax.plan.programs import abstract_rationales, abstract_rollout
from r2rank_jax.rollout.generate import past_sizes
from r2rank_jax.runs.inputs import abstract_lists
from r2rank_jax.sharding import abstract_params, mesh_of_shapes
from r2rank_jax.train.activation_memory import (
    GIB,
    Plan,
    gradient_bytes,
    kept_bytes,
    layer_bytes,
    logits_bytes,
    on_one_device,
    plan_update,
    update_budget,
)
from r2rank_jax.train.state import TrainState, abstract_state
from r2rank_jax.train.trainable import split
from r2rank_jax.types import ListBatch, Params

WEIGHTS, MOMENTS, AVERAGE, REFERENCE = "weights", "optimizer moments", "parameter average", "reference policy"
GRADIENTS, ACTIVATIONS, CACHES, BATCH = "gradients", "activations", "KV caches", "batch"
KINDS = (WEIGHTS, MOMENTS, AVERAGE, REFERENCE, GRADIENTS, ACTIVATIONS, CACHES, BATCH)

# Arrays as large as a rollout's logits, float32, that are there together while a token is drawn.
SAMPLING = 3


@dataclass(frozen=True)
class Use:
    """Bytes on one device while a program runs, by kind."""

    program: dict[str, int]  # its arguments, results and temporaries
    beside: dict[str, int]  # what the run keeps meanwhile

    @property
    def total(self) -> int:
        return sum(self.program.values()) + sum(self.beside.values())

    def of(self, kind: str) -> int:
        return self.program.get(kind, 0) + self.beside.get(kind, 0)


@dataclass(frozen=True)
class Estimate:
    """A configuration on a topology."""

    config: RunConfig  # with attention and budget decided
    programs: dict[str, Use]
    sft: Plan
    rl: Plan

    @property
    def peak(self) -> int:
        return max(use.total for use in self.programs.values())


def estimate(config: RunConfig, topology: Topology) -> Estimate:
    """Decide what a run on this topology would decide for itself, and count.

    Args:
        config: its mesh has as many devices as the topology.
        topology: where it is to run.
    """
    config = decided(config, topology)
    mesh = mesh_of_shapes(config.mesh)
    held = _Held.of(mesh, config, topology.device.platform)
    plans = [
        plan_update(
            config.model,
            config.compute,
            abstract_lists(mesh, config, users),  # type: ignore[arg-type]
            abstract_rationales(mesh, config, users, rationales),
            batch_shards=config.mesh.batch_shards,
            tensor=config.mesh.tensor,
            trained=config.trained,
            platform=topology.device.platform,
        )
        for users, rationales in ((config.sft.batch_users, 1), (config.rl.batch_users, config.rl.rationales))
    ]
    programs = {"sft step": _sft_step(held, plans[0]), **_rollout(held), **_rl_steps(held, plans[1])}
    return Estimate(config, programs, *plans)


def decided(config: RunConfig, topology: Topology) -> RunConfig:
    """The configuration with what `r2rank` decides on the machine itself; attention is not measured: einsum."""
    model, compute = config.model, config.compute
    if model.attention == "auto":
        model = dataclasses.replace(model, attention="einsum")
    if compute.update_gib is None and topology.device.platform != "cpu":  # a CPU does not say what it has
        gib = update_budget(config.model, config.mesh, topology.device.platform, topology.device.memory_bytes) / GIB
        compute = dataclasses.replace(compute, update_gib=gib)
    return dataclasses.replace(config, model=model, compute=compute)


def bytes_on_device(tree: Any) -> int:
    """Bytes of one device's part of a pytree of shapes, types and shardings."""

    def size(x: Any) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        width = 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize  # threefry: two words
        return math.prod(shape) * width

    return sum(map(size, jax.tree.leaves(tree)))


_abstract_state: Any = functools.cache(abstract_state)
_abstract_params: Any = functools.cache(abstract_params)


@dataclass(frozen=True)
class _Held:
    """What a run's programs have in common."""

    config: RunConfig
    sft: TrainState
    rl: TrainState
    reference: Params
    batch: ListBatch  # of RL
    mesh: AbstractMesh
    platform: str

    @classmethod
    def of(cls, mesh: AbstractMesh, config: RunConfig, platform: str) -> _Held:
        # Parameters do not depend on how they are computed with; a search asks for the same ones again and again.
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
        """Parameters as an update uses them: float32, gathered along fsdp."""
        return _gathered_bytes(self.reference)

    @property
    def moved(self) -> tuple[int, int]:
        """Those of them that are trained: without embedding and LM head, and these."""
        moved = split(self.config.trained, self.reference)[0]
        vocabulary = {name: moved.get(name) for name in ("embedding", "lm_head")}
        return _gathered_bytes(moved) - _gathered_bytes(vocabulary), _gathered_bytes(vocabulary)

    def lists(self, users: int, items: int, rationales: int) -> Lists:
        """What one device reads together."""
        data = self.config.data
        users //= self.config.mesh.batch_shards
        return Lists(users, data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, items, rationales)


def _gathered_bytes(params: Params) -> int:
    return sum(math.prod(_gathered(x)) * x.dtype.itemsize for x in jax.tree.leaves(params))


def _gathered(leaf: Any) -> tuple[int, ...]:
    """Shape on one device with the fsdp axis undone."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    return tuple(full if axis == "fsdp" else part for full, part, axis in zip(leaf.shape, shape, leaf.sharding.spec))


def _state(state: TrainState) -> dict[str, int]:
    return {
        WEIGHTS: bytes_on_device(state.params),
        MOMENTS: bytes_on_device(state.optimizer),
        AVERAGE: bytes_on_device(state.average),
    }


def _sft_step(held: _Held, plan: Plan) -> Use:
    config, users = held.config, held.config.sft.batch_users
    m: Any = held.mesh
    batch = abstract_lists(m, config, users), abstract_rationales(m, config, users, 1)
    return Use(_state(held.sft) | {BATCH: bytes_on_device(batch)} | _update(held, plan, users, 1, 2), {})


def _rl_steps(held: _Held, plan: Plan) -> dict[str, Use]:
    config, rl = held.config, held.config.rl
    rollout, assessment = abstract_rollout(held.mesh, config)
    state, reference = _state(held.rl), bytes_on_device(held.reference)
    batch = bytes_on_device((held.batch, rollout))
    known = bytes_on_device(assessment)
    lists = held.lists(rl.batch_users, plan.chunk_items, rl.rationales)
    reading = _forward(held, plan, lists)
    assess = {REFERENCE: reference, BATCH: batch + known, ACTIVATIONS: reading}
    beside = dict(state)
    if rl.updates > 1:  # the policy is read too
        assess[WEIGHTS] = beside.pop(WEIGHTS)
    if config.mesh.fsdp > 1:  # gathered: before a loop over chunks as they are, else in the type of the computation
        chunks = plan.chunk_items < config.data.candidate_items
        assess[REFERENCE] += held.tree if chunks else decoding_weights(held)
    update = (
        state | {REFERENCE: reference, BATCH: batch + known} | _update(held, plan, rl.batch_users, rl.rationales, 3)
    )
    return {"rl assess": Use(assess, beside), "rl update": Use(update, {})}


def _update(held: _Held, plan: Plan, users: int, rationales: int, logits: int) -> dict[str, int]:
    """Temporaries of a gradient and its step; `logits` arrays like a chunk's logits are there together."""
    config, mesh = held.config, held.config.mesh
    chunks = plan.chunk_items < config.data.candidate_items
    lists = held.lists(users, plan.chunk_items, rationales)
    local = on_one_device(plan.model, mesh.tensor)
    # Read whole, GSPMD splits a chunk of logits of all users; in a loop each device has one of its own.
    shards = 1 if chunks else mesh.batch_shards
    slots = lists.items * rationales * lists.length
    of_logits = logits_bytes(local, lists.users * shards, slots, logits) // shards
    of_logits += 4 * local.vocabulary * local.width  # the vocabulary's derivative, which adds up meanwhile
    layers, vocabulary = held.moved
    sizes = {"layers": layers, "vocabulary": vocabulary}
    gradients = int(gradient_bytes(plan.model, mesh, held.platform, chunks=chunks, **sizes))
    if chunks and mesh.fsdp > 1:  # what stays is gathered before the loop all the same
        gradients += held.tree - layers - vocabulary
    # Logits come at the end of the forward pass, gradients after them: the larger of both counts.
    return {GRADIENTS: gradients, ACTIVATIONS: kept_bytes(local, lists, config.trained) + max(of_logits - gradients, 0)}


def _forward(held: _Held, plan: Plan, lists: Lists) -> int:
    """Activations of a forward pass: keys and values of what is shared, and about half of what a layer would keep."""
    local = on_one_device(plan.model, held.config.mesh.tensor)
    shared = cache_bytes(local, lists.users * (lists.prefix + lists.items * lists.suffix))
    return shared + layer_bytes(local, lists) // 2


def _rollout(held: _Held) -> dict[str, Use]:
    config, rl, data = held.config, held.config.rl, held.config.data
    local = on_one_device(config.model, config.mesh.tensor)
    lists = held.lists(rl.batch_users, data.candidate_items, rl.rationales)
    state, reference = _state(held.rl), bytes_on_device(held.reference)
    beside = {**state, REFERENCE: reference}
    weights = decoding_weights(held)
    wave = min(config.compute.wave_tokens, data.rationale_tokens)
    pasts = past_sizes(data.rationale_tokens, max(wave, 1))
    shared = cache_bytes(local, lists.users * (lists.prefix + lists.items * lists.suffix))
    own = cache_bytes(local, lists.rows)  # of one token each
    rollout, _ = abstract_rollout(held.mesh, config)
    width = jnp.dtype(config.model.dtype).itemsize * config.model.width
    rows = bytes_on_device(rollout) + 2 * lists.rows * width + 8 * lists.rows
    batch = bytes_on_device(held.batch)
    tokens = lists.prefix + lists.items * lists.suffix  # those before the rationales, out of all
    reading = layer_bytes(local, lists) * tokens // (tokens + lists.items * lists.rationales * lists.length) // 2
    logits = SAMPLING * lists.rows * local.vocabulary * 4
    start = {WEIGHTS: weights, CACHES: shared + wave * own, BATCH: batch + rows, ACTIVATIONS: reading}
    found = {"rollout start": Use(start, beside)}
    beside = {**beside, BATCH: batch}
    if data.rationale_tokens:
        caches = shared + (pasts[-1] + wave) * own
        found["rollout wave"] = Use({WEIGHTS: weights, CACHES: caches, BATCH: rows, ACTIVATIONS: logits}, beside)
        if len(pasts) > 1:
            joined = (pasts[-2] + pasts[-1] + 2 * wave) * own  # the last wave is copied too
            outside = {**beside, WEIGHTS: beside[WEIGHTS] + weights, CACHES: shared}
            found["rollout merge"] = Use({CACHES: joined, BATCH: 2 * rows}, outside)
    outside = {**beside, CACHES: shared + (pasts[-1] + wave) * own}
    outside[WEIGHTS] += weights  # of which it reads the head
    found["rollout finish"] = Use({BATCH: rows}, outside)
    return found


def decoding_weights(held: _Held) -> int:
    """The copy that a rollout makes: adapters merged, gathered along fsdp, matrices in the type of the computation."""
    width = jnp.dtype(held.config.model.dtype).itemsize

    def size(path: Any, x: Any) -> int:
        if is_adapter(path[-1].key):
            return 0
        axes = len(x.shape) - (path[0].key == "layers")
        return math.prod(_gathered(x)) * (width if axes > 1 else 4)

    return sum(jax.tree.leaves(jax.tree.map_with_path(size, held.reference)))
