"""Shared parts of the benchmarks of the model path: shapes, prompts, FLOP counts, and the speed of the machine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from r2rank_jax.config import ComputeConfig, DataConfig, ModelConfig, RLConfig, RunConfig
from r2rank_jax.model.counting import BatchShape, forward_flops, update_flops
from r2rank_jax.model.presets import QWEN2_5_1_5B
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.runs.attention_choice import choose_attention
from r2rank_jax.runs.memory_budget import choose_budget
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.memory.chunk_choice import DEFAULT_BUDGET, GIB, choose_chunks
from r2rank_jax.types import OF_ITEMS, OF_USERS, ListBatch, Params, Rationales


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of a batch."""

    model: ModelConfig
    users: int = 1
    prefix: int = 256  # P
    suffix: int = 24  # S
    length: int = 64  # T
    items: int = 20  # N
    rationales: int = 4  # G
    wave_tokens: int = 16

    @property
    def rows(self) -> int:
        return self.users * self.items * self.rationales


# The shape of the figures in docs/performance.md, small enough for two CPU cores.
REFERENCE = Shape(
    ModelConfig(
        vocabulary=8192,
        width=256,
        layers=4,
        heads=4,
        kv_heads=2,
        head_size=64,
        mlp_width=1024,
        attention_bias=True,
        rope_theta=1e6,
    )
)
# Qwen2.5-1.5B, for one accelerator. Random weights take the same time as trained ones. Decoding is one wave, because
# XLA for GPUs takes most of a minute to compile each program of a wave with 28 unrolled layers (H200,
# docs/performance.md).
QWEN_1_5B = Shape(QWEN2_5_1_5B, prefix=1000, suffix=100, length=256, wave_tokens=256)
# To check within a minute that a benchmark runs. Its figures are not meaningful.
SMOKE = dataclasses.replace(
    REFERENCE,
    model=dataclasses.replace(REFERENCE.model, vocabulary=512, width=64, layers=2, head_size=16, mlp_width=128),
    prefix=32,
    suffix=8,
    length=32,
    items=4,
    rationales=2,
)
SHAPES = {"reference": REFERENCE, "qwen2.5-1.5b": QWEN_1_5B, "smoke": SMOKE}


def make(shape: Shape, seed: int = 0) -> tuple[Params, ListBatch, Rationales]:
    """Random parameters, prompts and rationales, without padding."""
    rng = np.random.default_rng(seed)
    u, n, g = shape.users, shape.items, shape.rationales

    def tokens(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.integers(2, shape.model.vocabulary, sizes), jnp.int32)

    labels = np.zeros((u, n), np.float32)
    labels[:, 0] = 1.0
    batch = ListBatch(
        user=jnp.arange(u, dtype=jnp.int32),
        position=jnp.zeros(u, jnp.int32),
        items=jnp.asarray(np.stack([rng.permutation(10_000)[:n] for _ in range(u)]), jnp.int32),
        prefix=tokens(u, shape.prefix),
        prefix_length=jnp.full((u,), shape.prefix, jnp.int32),
        suffix=tokens(u, n, shape.suffix),
        suffix_length=jnp.full((u, n), shape.suffix, jnp.int32),
        labels=jnp.asarray(labels),
        mask=jnp.ones((u, n), bool),
    )
    rationales = Rationales(
        tokens=tokens(u, n, g, shape.length),
        length=jnp.full((u, n, g), shape.length, jnp.int32),
        stopped=jnp.zeros((u, n, g), bool),
    )
    params = jax.jit(lambda key: meta.unbox(initial_params(shape.model, key)))(jax.random.key(seed))
    return params, batch, rationales


def independent(batch: ListBatch, rationales: Rationales) -> tuple[ListBatch, Rationales]:
    """The same rationales without sharing: every row becomes a separate user with its own copy of the prompt."""
    users, items, groups = rationales.length.shape

    def rows(x: Any, axes: int) -> Any:
        x = jnp.asarray(x).reshape(x.shape[:axes] + (1,) * (3 - axes) + x.shape[axes:])
        x = jnp.broadcast_to(x, (users, items, groups, *x.shape[3:]))
        return x.reshape(users * items * groups, *x.shape[3:])

    per_user = {name: rows(getattr(batch, name), 1) for name in OF_USERS}
    per_item = {name: rows(getattr(batch, name), 2)[:, None] for name in OF_ITEMS}
    alone = ListBatch(**per_user, **per_item)
    return alone, jax.tree.map(lambda x: rows(x, 3)[:, None, None], rationales)


def rows_that_fit(shape: Shape, alone: ListBatch, rationales: Rationales) -> int:
    """The largest number of independent rows that fit into memory in one update, among the divisors of their number.
    They have one item each, so an update cannot read them in chunks of items."""
    config, rows = run_config(shape), alone.user.shape[0]
    budget = DEFAULT_BUDGET if config.compute.update_gib is None else config.compute.update_gib * GIB
    for some in (n for n in range(rows, 1, -1) if rows % n == 0):
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((some, *x.shape[1:]), x.dtype), (alone, rationales))  # noqa: B023
        if choose_chunks(config, *part).activation_bytes <= budget:
            return some
    return 1


def flops(shape: Shape) -> dict[str, float]:
    """Floating point operations of one pass of each kind, counted as in docs/performance.md.

    In passes named "independent", every rationale has its own copy of the prompt.
    """
    c = shape.model
    sizes = BatchShape(shape.users, shape.prefix, shape.suffix, shape.length, shape.items, shape.rationales)
    return {
        "update": update_flops(c, sizes),
        "update_independent": update_flops(c, sizes, shared=False),
        "logits": forward_flops(c, sizes) - forward_flops(c, sizes, logits=False),
        "rollout": forward_flops(c, sizes),
        "rollout_independent": forward_flops(c, sizes, shared=False),
    }


def matmul_rate(dtype: str, size: int = 2048) -> float:
    """FLOP/s of a square matrix product on this machine, which is 100% in the tables."""
    if jax.default_backend() != "cpu":
        size = 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a: a @ a)
    return 2.0 * size**3 / min(seconds(lambda: product(x), rounds=8))


def seconds(call: Callable[[], Any], rounds: int) -> list[float]:
    """Wall seconds of each call, after one call that compiles."""
    jax.block_until_ready(call())
    times_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times_s.append(time.perf_counter() - start)
    return times_s


def generator(shape: Shape, rationales: int, kind: type[Generator] = Generator, **settings: Any) -> Generator:
    """A rollout of this shape, in which no rationale ends early unless `settings` has a stop token."""
    config = run_config(shape)
    return kind(
        make_mesh(config.mesh),
        config.model,
        rationales=rationales,
        max_tokens=shape.length,
        wave_tokens=shape.wave_tokens,
        **({"stop_token": shape.model.vocabulary} | settings),
    )


def prefill_and_decode_seconds(shape: Shape, rounds: int) -> tuple[float, float]:
    """Median seconds of prefill (prefixes, items and forking), and of the rest of a rollout."""
    params, batch, _ = make(shape)
    write = generator(shape, shape.rationales)
    keys = row_keys(jax.random.key(0), batch.user, batch.position, batch.items, shape.rationales)
    whole = median(seconds(lambda: write(params, batch, None, keys), rounds))
    prefill = median(seconds(lambda: write._run(write._begin, write._weights(params), batch, keys), rounds))
    return prefill, whole - prefill


def device() -> str:
    """A description of the device."""
    kind = jax.devices()[0].device_kind
    return f"{jax.default_backend()}: {kind}, {platform.machine()}, jax {jax.__version__}"


@functools.cache
def run_config(shape: Shape) -> RunConfig:
    """The configuration that `r2rank rl` would use for this shape on this machine, with measured attention and a memory
    budget."""
    config = RunConfig(
        name="benchmark",
        model=shape.model,
        data=DataConfig(
            prefix_tokens=shape.prefix,
            suffix_tokens=shape.suffix,
            rationale_tokens=shape.length,
            candidate_items=shape.items,
        ),
        compute=ComputeConfig(wave_tokens=shape.wave_tokens),
        rl=RLConfig(batch_users=shape.users, rationales=shape.rationales, temperature=1.0),
    )
    with tempfile.TemporaryDirectory() as empty_folder:
        return choose_budget(choose_attention(config, Path(empty_folder)))


@dataclass(frozen=True)
class Line:
    """One row of a table. Times are medians, without compilation."""

    name: str
    seconds: float
    compile_s: float | None = None
    tokens: int | None = None  # rationale tokens that were decoded or learned from
    flops: float | None = None  # counted, see `flops`
    peak_bytes: int | None = None  # allocated in addition to the arguments


def print_table(lines: list[Line], rate: float) -> None:
    """Print the table of a benchmark; `rate` is `matmul_rate` in the same run."""
    header = ("", "seconds", "compile s", "tokens/s", "GFLOP", "of matmul rate", "peak MiB")
    rows = [header]
    for line in lines:
        rows.append(
            (
                line.name,
                f"{line.seconds:.3f}",
                "" if line.compile_s is None else f"{line.compile_s:.1f}",
                "" if line.tokens is None else f"{line.tokens / line.seconds:,.0f}",
                "" if line.flops is None else f"{line.flops / 1e9:,.0f}",
                "" if line.flops is None else f"{line.flops / line.seconds / rate:.0%}",
                "" if line.peak_bytes is None else f"{line.peak_bytes / 2**20:,.0f}",
            )
        )
    sizes = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        first, *rest = (cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, sizes)))
        print("  ".join([first, *rest]).rstrip())
    print(f"matmul rate {rate / 1e9:,.0f} GFLOP/s; {device()}")


def parse(description: str | None) -> tuple[Shape, int, bool]:
    """Parse the arguments that the benchmarks share: shape, rounds, and whether peers are measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="reference")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="number of timed calls; medians are shown")
    parser.add_argument("--no-peers", action="store_true", help="do not measure torch and TRL")
    arguments = parser.parse_args()
    return dataclasses.replace(SHAPES[arguments.shape], users=arguments.users), arguments.rounds, not arguments.no_peers


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Coordinate benchmarks that run at the same time: they compile together, but measure one at a time.

    The environment variable `TURN_FILE` names their lock file. Without it, this does nothing.
    """
    path = os.environ.get("TURN_FILE")
    if path is None:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def report(name: str, value: float) -> None:
    """Print a figure as soon as it is measured, so that it is not lost if the benchmark is stopped."""
    print(f"{name} = {value:.4g}", flush=True)


def peak_gib() -> float:
    """The peak memory of JAX on the first device so far; 0 if the device does not report it (CPU)."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", 0) / GIB


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA or torch refused an allocation."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
