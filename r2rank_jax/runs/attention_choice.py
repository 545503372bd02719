"""Chooses the attention backend of a run: measures those that the machine supports and takes the fastest."""

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

from r2rank_jax.config import RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.attention import Segment, attend, unsupported
from r2rank_jax.runs.session.log import say
from r2rank_jax.sharding import make_mesh, sum_over_users, users
from r2rank_jax.types import Array

TIMED_RUNS = 7  # after one that compiles
NEEDS = {"cudnn": "gpu", "splash": "tpu"}  # einsum runs anywhere

# Queries; then, for each segment, its keys and values and the mask of real ones.
Problem = tuple[Array, list[tuple[Array, Array]], list[Array]]


def choose_attention(config: RunConfig, run_dir: Path) -> RunConfig:
    """Resolve `model.attention`. All processes of a run must call this; the times of process 0 decide.

    A run keeps the backend that it started with, if this machine supports it. Otherwise a resumed run would not be
    equal in every bit, and `r2rank rank` would time an update before it ranks.

    Args:
        config: of the run; its `model.attention` may be "auto".
        run_dir: holds `config.json` once a phase has started there.

    Returns:
        `config` itself if it names a backend, else a copy that names one.

    Raises:
        ConfigError: the named backend cannot run on this machine, or `model.attention` is "auto" and no backend runs.
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
    """The backend that earlier phases in this run directory used."""
    try:
        backend = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["model"]["attention"]
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not our file: other code reports that
        return None
    return str(backend)


def unavailable(config: RunConfig, backend: str) -> str | None:
    """Why a backend cannot run on this machine (requirement, given value, remedy), or None if it can."""
    platform = jax.default_backend()
    if NEEDS.get(backend, platform) != platform:
        return (
            f"model.attention={backend} needs a {NEEDS[backend].upper()}, got {platform}; "
            f"set model.attention to einsum or auto"
        )
    # XLA splits the rest of the rollout and of SFT over devices, but it cannot split a Mosaic kernel.
    if backend == "splash" and config.mesh.devices > 1:
        return (
            f"model.attention=splash runs on one device, got a mesh of {config.mesh.devices}; "
            f"set model.attention to einsum, or mesh.data, mesh.fsdp and mesh.tensor to 1"
        )
    # In an update, `shard_map` splits users and XLA splits heads; XLA cannot split the heads of cuDNN's kernel.
    if backend == "cudnn" and config.mesh.tensor > 1:
        return (
            f"model.attention=cudnn does not split heads, got mesh.tensor={config.mesh.tensor}; "
            f"set model.attention to einsum, or mesh.tensor to 1"
        )
    return unsupported(backend, config.model.dtype, config.model.head_size)


def fastest(candidates: dict[str, Callable[[], Any]]) -> str:
    """The candidate with the smallest median time. A candidate that fails is skipped, and its error is printed.

    Raises:
        ConfigError: all candidates fail.
    """
    # All processes must compute, because the mesh may span them. Their clocks differ, so process 0 decides for all.
    own_times = np.array([_milliseconds(name, run) for name, run in candidates.items()], np.float32)
    times_ms = np.asarray(multihost_utils.broadcast_one_to_all(own_times))
    best = list(candidates)[int(np.argmin(times_ms))]
    if not np.isfinite(times_ms).any():
        raise ConfigError(
            f"one attention backend must run one user of the RL update, got errors from {', '.join(candidates)}; "
            f"set model.attention to {best} to continue without measuring"
        )
    shown = [f"{name} {ms:.2f} ms" for name, ms in zip(candidates, times_ms, strict=True) if math.isfinite(ms)]
    say(f"attention: {', '.join(shown)}; using {best}")
    return best


def _milliseconds(name: str, run: Callable[[], Any]) -> float:
    try:
        jax.block_until_ready(run())
        times_s = []
        for _ in range(TIMED_RUNS):
            start = time.perf_counter()
            jax.block_until_ready(run())
            times_s.append(time.perf_counter() - start)
    except Exception as error:  # of a kernel, its compiler or the memory: another backend may still run
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"attention: {name} skipped: {reason}")
        return math.inf
    return 1e3 * median(times_s)


def _problem(config: RunConfig, mesh: Mesh) -> Problem:
    """Attention of one layer's rationales to prefix, items and themselves, one user per device, without padding."""
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
    """Attention forward and backward, compiled as in the chunks of an update, where each device has its own users."""

    def on_device(_: Any, problem: Problem) -> tuple[tuple[()], Any]:
        q, kv, valid = problem  # masks are arguments, because XLA would fold constants away

        def forward(q: Array, kv: list[tuple[Array, Array]]) -> Array:
            *context, own = [Segment(k, v, real) for (k, v), real in zip(kv, valid, strict=True)]
            return attend(backend, q, context, own)

        out, pull = jax.vjp(forward, q, kv)
        return (), pull(out)

    return jax.jit(lambda problem: sum_over_users(mesh, on_device)((), problem)[1])
