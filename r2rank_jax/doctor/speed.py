"""Speed of what the processes do together: all-reduces along each axis of the mesh, commits to the run directory."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.config import RunConfig
from r2rank_jax.doctor.findings import MIB, Finding, fault, ok, size_text
from r2rank_jax.doctor.storage import state_bytes
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.sharding import MESH_AXES, row_of_each_device, split_parameter, sum_along

REDUCED_BYTES = {"cpu": 4 * MIB}
"""Bytes of one device in a timed all-reduce, by platform."""
REDUCED_ELSEWHERE = 64 * MIB
COMMITTED_BYTES = {"cpu": 32 * MIB}
"""Bytes of the state in a timed commit, by platform."""
COMMITTED_ELSEWHERE = 512 * MIB
ARRAYS = 8
REPEATS = 5


def all_reduce(mesh: Mesh, axis: str) -> list[Finding]:
    """Time an all-reduce along one axis. All processes must call this.

    The rate is what every device sends in a ring, 2 (n - 1) / n of its bytes.
    """
    size, devices = REDUCED_BYTES.get(jax.default_backend(), REDUCED_ELSEWHERE), mesh.shape[axis]
    reduce = sum_along(mesh, axis)
    large_s, small_s = (_seconds(mesh, reduce, columns) for columns in (size // 4, 1))
    rate = 2 * (devices - 1) / devices * size / large_s
    figures = f"{rate / 1e9:.3g} GB/s of each device ({size // MIB} MiB in {1e3 * large_s:.3g} ms)"
    return [ok(f"all-reduce {axis}", f"{figures}, latency {1e3 * small_s:.3g} ms, {devices} devices")]


def axes_to_reduce(mesh: Mesh) -> list[str]:
    """The axes of more than one device."""
    return [axis for axis in MESH_AXES if mesh.shape[axis] > 1]


def _seconds(mesh: Mesh, reduce: Any, columns: int) -> float:
    make = jax.jit(lambda: jnp.ones((mesh.size, columns), jnp.float32), out_shardings=row_of_each_device(mesh))
    x = jax.block_until_ready(make())
    jax.block_until_ready(reduce(x))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(reduce(x))  # every time: queued collectives of several processes can deadlock on CPU
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def commit_and_restore(config: RunConfig, mesh: Mesh, scratch: Path) -> list[Finding]:
    """Commit a state and restore it, as a run does. All processes must call this.

    A commit takes time that its size does not change, so that a small one and a larger one are timed, and a line
    through both gives the time of this configuration's commit.

    Args:
        config: of the run.
        mesh: over which the states are split as parameters are.
        scratch: folder on the file system of the run directory; the caller removes it.
    """
    size = COMMITTED_BYTES.get(jax.default_backend(), COMMITTED_ELSEWHERE)
    small, large = _random_state(mesh, mesh.size * ARRAYS * 4), _random_state(mesh, size)
    record = PhaseRecord(phase="sft", config={}, iterator=None, steps=2, wall_s=0.0, finished=False, has_average=False)
    checkpoints = Checkpoints(scratch / "sft")
    committed_s = []
    for step, state in ((1, small), (2, large)):
        start = time.perf_counter()
        checkpoints.save(step, state, record)
        checkpoints.wait()
        committed_s.append(time.perf_counter() - start)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), large)
    start = time.perf_counter()
    restored = jax.block_until_ready(checkpoints.restore(2, like)[0])
    restored_s = time.perf_counter() - start
    checkpoints.close()
    return [_commit_finding(config, size, committed_s[0], committed_s[1], restored_s), *_same(large, restored)]


def _commit_finding(config: RunConfig, size: int, least_s: float, whole_s: float, restored_s: float) -> Finding:
    per_byte_s = max(whole_s - least_s, 0.0) / size
    state = max(state_bytes(config).values())
    estimate_s = least_s + per_byte_s * state
    figures = f"{size // MIB} MiB written and sealed in {whole_s:.2g} s, read in {restored_s:.2g} s"
    rates = f"{size / MIB / whole_s:.3g} and {size / MIB / restored_s:.3g} MiB/s"
    return ok("checkpoints", f"{figures} ({rates}); about {estimate_s:.2g} s for this run's {size_text(state)}")


def _same(saved: list[jax.Array], restored: list[jax.Array]) -> list[Finding]:
    """A fault if the bits of this process's shards changed on the way."""
    for a, b in zip(saved, restored, strict=True):
        for own, back in zip(a.addressable_shards, b.addressable_shards, strict=True):
            if not np.array_equal(np.asarray(own.data), np.asarray(back.data)):
                what = "a commit must be restored as it was saved, got other numbers"
                return [fault("checkpoints", what, "put --run-dir on another file system")]
    return []


def _random_state(mesh: Mesh, size: int) -> list[jax.Array]:
    """Arrays of about `size` bytes; random, as the files are compressed."""
    split = split_parameter(mesh)
    rows, columns = mesh.size, max(size // ARRAYS // mesh.size // 4, 1)

    def shard(index: tuple[slice, ...] | None, array: int) -> np.ndarray:
        assert index is not None
        start, stop, _ = index[0].indices(rows)
        return np.random.default_rng([array, start]).standard_normal((stop - start, columns), np.float32)

    return [
        jax.make_array_from_callback((rows, columns), split, lambda index, array=array: shard(index, array))  # type: ignore[misc]
        for array in range(ARRAYS)
    ]
