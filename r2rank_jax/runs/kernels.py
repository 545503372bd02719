"""What a run takes from its machine: the attention that is fastest there, and how much memory an update may use."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from r2rank_jax.config import ConfigError, RunConfig
from r2rank_jax.model.attention import Segment, attend, unsupported
from r2rank_jax.runs.log import say
from r2rank_jax.sharding import make_mesh, sum_over_users, users
from r2rank_jax.train.chunk_choice import GIB, update_budget
from r2rank_jax.train.gradient_memory import held_bytes
from r2rank_jax.types import Array

RUNS = 7  # timed, after one that compiles
NEEDS = {"cudnn": "gpu", "splash": "tpu"}  # einsum runs anywhere

# Queries; then of each segment its keys and values, and which of them are real.
Problem = tuple[Array, list[tuple[Array, Array]], list[Array]]


def choose_attention(config: RunConfig, run_dir: Path) -> RunConfig:
    """Resolve `model.attention`; in several processes, all call this and process 0's clock decides.

    What a run began with it goes on with, if this machine has it: a resumed run would not be the same to the bit
    otherwise, and to rank lists nobody wants to time an update first.

    Args:
        config: what was asked for.
        run_dir: holds `config.json` once a phase has begun there.

    Returns:
        `config` itself where a backend is named, else a copy that names one.

    Raises:
        ConfigError: the named backend cannot run on this machine; or "auto" found none that runs.
    """
    if config.model.attention != "auto":
        refusal = unavailable(config, config.model.attention)
        if refusal is not None:
            raise ConfigError(refusal)
        return config
    backends = [name for name in ("einsum", *NEEDS) if unavailable(config, name) is None]
    best = _recorded(run_dir)
    if best not in backends:
        best = backends[0]
        if len(backends) > 1:
            mesh = make_mesh(config.mesh)
            problem = _problem(config, mesh)
            best = fastest({name: partial(_update(name, mesh), problem) for name in backends})
    model = dataclasses.replace(config.model, attention=best)  # type: ignore[arg-type]
    return dataclasses.replace(config, model=model)


def _recorded(run_dir: Path) -> str | None:
    """The backend that a phase in this run directory computed with."""
    try:
        found = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["model"]["attention"]
    except (OSError, ValueError, KeyError, TypeError):  # nothing there, or nothing of ours: not for this to judge
        return None
    return str(found)


def choose_budget(config: RunConfig) -> RunConfig:
    """Resolve `compute.update_gib`: half of what parameters, optimizer and gradients leave free on the device that has
    least; in several processes, all call this and come to the same number, on which their programs depend.

    Returns:
        `config` itself where a budget is set or the devices do not say what they have.
    """
    if config.compute.update_gib is not None:
        return config
    stats = jax.local_devices()[0].memory_stats() or {}
    here = np.array(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0), np.float64)
    free = float(np.min(multihost_utils.process_allgather(here)))
    if free <= 0:
        return config
    platform = jax.default_backend()
    held = held_bytes(config.model, config.mesh, platform)
    budget = update_budget(config.model, config.mesh, platform, free)
    say(f"memory: {free / GIB:.1f} GiB free, {held / GIB:.1f} for the model, {budget / GIB:.1f} for activations")
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, update_gib=budget / GIB))


def unavailable(config: RunConfig, backend: str) -> str | None:
    """Why a backend cannot run here: requirement, what came, remedy. None where it can."""
    platform = jax.default_backend()
    if NEEDS.get(backend, platform) != platform:
        return (
            f"model.attention={backend} needs a {NEEDS[backend].upper()}, this machine computes on {platform}; "
            f"set model.attention to einsum or auto"
        )
    # XLA cannot split a Mosaic kernel over devices by itself, as it does the rest of the rollout and of SFT.
    if backend == "splash" and config.mesh.devices > 1:
        return (
            f"model.attention=splash runs on one device, got a mesh of {config.mesh.devices}; "
            f"set model.attention to einsum, or mesh.data, mesh.fsdp and mesh.tensor to 1"
        )
    # Nor cuDNN's kernel where users are split by `shard_map` and heads are left to XLA, as in the chunks of an update.
    if backend == "cudnn" and config.mesh.tensor > 1:
        return (
            f"model.attention=cudnn does not split heads, got mesh.tensor={config.mesh.tensor}; "
            f"set model.attention to einsum, or mesh.tensor to 1"
        )
    return unsupported(backend, config.model.dtype, config.model.head_size)


def fastest(candidates: dict[str, Callable[[], Any]]) -> str:
    """The candidate with the least median time; one that fails is left out, with a line that says so.

    Raises:
        ConfigError: all failed.
    """
    # All processes compute, as a mesh over several of them asks, but clocks differ: one of them decides for all.
    here = np.array([_milliseconds(name, run) for name, run in candidates.items()], np.float32)
    took = np.asarray(multihost_utils.broadcast_one_to_all(here))
    best = list(candidates)[int(np.argmin(took))]
    if not np.isfinite(took).any():
        raise ConfigError(
            f"no attention backend runs one user of the RL update, tried {', '.join(candidates)}; "
            f"set model.attention to {best} to go on without measuring"
        )
    shown = [f"{name} {ms:.2f} ms" for name, ms in zip(candidates, took, strict=True) if math.isfinite(ms)]
    say(f"attention: {', '.join(shown)}: {best}")
    return best


def _milliseconds(name: str, run: Callable[[], Any]) -> float:
    try:
        jax.block_until_ready(run())
        took = []
        for _ in range(RUNS):
            start = time.perf_counter()
            jax.block_until_ready(run())
            took.append(time.perf_counter() - start)
    except Exception as error:  # whatever a kernel, its compiler or the memory says: there is another backend
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"attention: {name} left out: {reason}")
        return math.inf
    return 1e3 * median(took)


def _problem(config: RunConfig, mesh: Mesh) -> Problem:
    """One layer's rationales on top of their items and the prefix, of one user per device; nothing is padding."""
    model, data, forks = config.model, config.data, config.rl.rationales
    count, kv_heads, items = config.mesh.batch_shards, model.kv_heads, data.candidate_items
    segments = [  # N|1, G|1, tokens
        (1, 1, data.prefix_tokens),
        (items, 1, data.suffix_tokens),
        (items, forks, max(data.rationale_tokens, 1)),
    ]

    @partial(jax.jit, out_shardings=users(mesh))
    def make() -> Problem:
        def tokens(n: int, g: int, length: int, *last: int) -> Array:
            shape = (count, kv_heads, n, g, length, *last, model.head_size)
            return jnp.cos(jnp.arange(math.prod(shape))).astype(model.dtype).reshape(shape)

        q = tokens(*segments[-1], model.heads // kv_heads) * model.head_size**-0.5
        kv = [(tokens(*segment).swapaxes(-1, -2), tokens(*segment)) for segment in segments]
        return q, kv, [jnp.ones((count, *segment), bool) for segment in segments]

    return make()


def _update(backend: str, mesh: Mesh) -> Callable[[Problem], Any]:
    """Attention forward and backward, compiled as in the chunks of an update: each device has its own users."""

    def on_device(_: Any, problem: Problem) -> tuple[tuple[()], Any]:
        q, kv, valid = problem  # what is real is an argument: as a constant it would be folded away

        def forward(q: Array, kv: list[tuple[Array, Array]]) -> Array:
            *context, own = [Segment(k, v, real) for (k, v), real in zip(kv, valid, strict=True)]
            return attend(backend, q, context, own)

        out, pull = jax.vjp(forward, q, kv)
        return (), pull(out)

    return jax.jit(lambda problem: sum_over_users(mesh, on_device)((), problem)[1])
