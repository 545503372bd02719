"""Check that every mesh of 1, 2, 4 and 8 devices gives the losses of one device and restores any other mesh's state.

    python benchmarks/check_meshes.py                      about 10 minutes on 2 cores: 8 fake devices, 20 meshes
    python benchmarks/check_meshes.py --processes 2        2 processes of 2 devices each over loopback: 6 meshes

A tiny Qwen3 (QK-norm, untied embeddings; 4 heads over 2 key-value heads, which 4 and 8 devices along `tensor` do not
divide, so that they are replicated) is trained for 20 steps of SFT and 20 of RL on each mesh. The script prints the
largest relative difference between a loss and that of one device, and whether the next mesh restored the final state
bit for bit; then one JSON line. The exit status is 1 if a loss differs by more than 1e-5 or a restored state differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# One process has 8 fake devices. Each of several processes, started by launch/local.sh, has 2. With as many threads as
# devices, independent collectives could fill XLA's pool and wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "64")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_force_host_platform_device_count={2 if 'R2RANK_COORDINATOR' in os.environ else 8} "
    "--xla_cpu_multi_thread_eigen=false"
)

import jax
import jax.numpy as jnp
import numpy as np
from workload import Shape, make

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.cli.runs import join_processes
from r2rank_jax.config import (
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import gather, make_mesh, part_of_batch, to_mesh
from r2rank_jax.train.rl_step import make_rl_steps
from r2rank_jax.train.sft_step import make_sft_step
from r2rank_jax.train.state import TrainState, abstract_state, fresh_state

STEPS, STOP, TOLERANCE = 20, 3, 1e-5
MODEL = ModelConfig(
    vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_width=64, qk_norm=True,
    tied_embeddings=False,
)  # fmt: skip
SHAPE = Shape(MODEL, users=8, prefix=8, suffix=4, length=6, items=5, rationales=2)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9)
LAUNCH = Path(__file__).parent.parent / "launch/local.sh"
LIMIT_S = 1200  # time limit for a run with several processes


def meshes_of(*numbers: int) -> list[MeshConfig]:
    """Every mesh with one of these numbers of devices."""
    return [
        MeshConfig(data=data, fsdp=fsdp, tensor=devices // data // fsdp)
        for devices in numbers
        for data in (1, 2, 4, 8)
        for fsdp in (1, 2, 4, 8)
        if devices % (data * fsdp) == 0
    ]


class MeshResult(NamedTuple):
    """The losses on one mesh, and whether its final state could be restored."""

    mesh: str
    sft: list[float]  # losses
    rl: list[float]
    restored: bool  # the next mesh restored the final state bit for bit


def configured(mesh: MeshConfig) -> RunConfig:
    return RunConfig(
        name="meshes",
        model=MODEL,
        mesh=mesh,
        data=DataConfig(rationale_tokens=SHAPE.length),
        sft=SFTConfig(steps=STEPS, batch_users=SHAPE.users, optimizer=OPTIMIZER),
        rl=RLConfig(steps=STEPS, batch_users=SHAPE.users, optimizer=OPTIMIZER, temperature=1.0),
        evaluation=EvaluationConfig(batch_users=SHAPE.users),
    )


def train(config: RunConfig, lists: list[Any]) -> tuple[TrainState, list[float], list[float]]:
    """Train with SFT, then RL; return the final state and the losses of both phases."""
    mesh = make_mesh(config.mesh)
    part = part_of_batch(mesh)
    rows = np.arange(SHAPE.users).reshape(part.parts, -1)[list(part.places)]
    mine = jax.tree.map(lambda x: x[rows.ravel()], lists)
    batches = [to_mesh(mesh, each) for each in mine]
    state = fresh_state(mesh, MODEL, OPTIMIZER, STEPS, seed=0)
    step, sft, rl = make_sft_step(mesh, config), [], []
    for batch, rationales in batches:
        state, metrics = step(state, batch, rationales)
        sft.append(float(metrics["loss"]))
    reference = jax.tree.map(jnp.copy, state.params)
    write, (assess, update) = make_rollout(mesh, config, STOP), make_rl_steps(mesh, config)
    for at, (batch, _) in enumerate(batches):
        rollout = jax.block_until_ready(write(state.params, batch, jax.random.key(at)))
        assessed = jax.block_until_ready(assess(state.params, reference, batch, rollout))
        state, metrics = jax.block_until_ready(update(state, reference, batch, rollout, assessed))
        rl.append(float(metrics["loss"]))
    return state, sft, rl


def difference(losses: list[float], expected: list[float]) -> float:
    return float(np.max(np.abs(np.subtract(losses, expected)) / np.abs(expected)))


def is_restored(state: TrainState, source: MeshConfig, target: MeshConfig, folder: Path) -> bool:
    """Whether a state saved on the mesh `source` is restored bit for bit on the mesh `target`."""
    checkpoints = Checkpoints(folder)
    record = PhaseRecord(
        phase="rl",
        config={},
        iterator={},
        steps=STEPS,
        wall_s=0.0,
        finished=True,
        has_average=state.average is not None,
    )
    checkpoints.save(1, state, record)
    checkpoints.wait()
    mesh = make_mesh(target)
    like = abstract_state(mesh, MODEL, OPTIMIZER, STEPS)
    restored, _ = checkpoints.restore(1, like)
    checkpoints.close()
    placed = all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(like)))
    pairs = zip(jax.tree.leaves(gather(make_mesh(source), state)), jax.tree.leaves(gather(mesh, restored)), strict=True)
    return placed and all(np.array_equal(a, b) for a, b in pairs)


def learn(meshes: list[MeshConfig], folder: Path) -> Iterator[MeshResult]:
    """Train on each mesh. With several processes, every process must call this."""
    lists = [jax.tree.map(np.asarray, make(SHAPE, seed)[1:]) for seed in range(STEPS)]
    for at, mesh in enumerate(meshes):
        state, sft, rl = train(configured(mesh), lists)
        restored = is_restored(state, mesh, meshes[(at + 1) % len(meshes)], folder / str(at))
        yield MeshResult(f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}", sft, rl, restored)


def learn_together(processes: int, folder: str) -> Iterator[MeshResult]:
    """The same in several processes; the first one prints the results."""
    command = [str(LAUNCH), str(processes), str(Path(__file__).resolve()), "--folder", folder]
    environment = os.environ | {"R2RANK_COMMAND": sys.executable, "R2RANK_TIMEOUT_S": str(LIMIT_S)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launched:
        assert launched.stdout is not None
        for line in launched.stdout:
            if line.startswith("[0] {"):
                yield MeshResult(**json.loads(line.removeprefix("[0] ")))
    if launched.returncode:
        raise SystemExit(f"{processes} processes: launch/local.sh ended with {launched.returncode}")


def compare(expected: MeshResult, results: Iterator[MeshResult]) -> int:
    """Print the table and the JSON line, and return the exit status."""
    print(f"{'data x fsdp x tensor':22}{'SFT':>10}{'RL':>10}   restored on the next mesh")
    worst, bitwise, meshes = {"sft": 0.0, "rl": 0.0}, True, 0
    for each in results:
        off = {"sft": difference(each.sft, expected.sft), "rl": difference(each.rl, expected.rl)}
        worst, bitwise = {name: max(worst[name], off[name]) for name in worst}, bitwise and each.restored
        meshes += 1
        restored = "bit for bit" if each.restored else "DIFFERS"
        print(f"{each.mesh:22}{off['sft']:10.1e}{off['rl']:10.1e}   {restored}", flush=True)
    largest = {f"{name}_rel": float(f"{value:.3g}") for name, value in worst.items()}
    print(json.dumps({"meshes": meshes, **largest, "bitwise": bitwise}))
    return int(max(worst.values()) > TOLERANCE or not bitwise)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--processes", type=int, default=1, help="number of processes; if more than one, each has two fake devices"
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # for the processes that this one starts
    args = parser.parse_args()
    if "R2RANK_COORDINATOR" in os.environ:
        join_processes()
        for each in learn(meshes_of(jax.device_count()), args.folder):
            if jax.process_index() == 0:
                print(json.dumps(each._asdict()), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        single, rest = meshes_of(1), meshes_of(2, 4, 8)
        (expected,) = learn(single, Path(folder) / "single")
        if args.processes > 1:
            return compare(expected, learn_together(args.processes, folder))
        return compare(expected, learn([*single, *rest], Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
