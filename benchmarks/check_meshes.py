"""Every mesh of 1, 2, 4 and 8 devices learns what one device learns, and restores what any other saved.

    python benchmarks/check_meshes.py                      about 10 minutes on 2 cores: 8 fake devices, 20 meshes

A tiny Qwen3 (QK-norm, untied embeddings; 4 heads over 2 key-value heads, which 4 and 8 devices along `tensor` do not
divide, so that they are copied) takes 20 steps of SFT and 20 of RL on each. Prints the largest relative difference of a
loss from one device's, and whether the final state came back bit for bit on the next mesh; then one JSON line. Exit
status 1 if a loss differs by more than 1e-5 or a bit does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from workload import Shape, make

from r2rank_jax.checkpoint import Checkpoints
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
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import make_mesh, to_mesh
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
MESHES = [
    MeshConfig(data=data, fsdp=fsdp, tensor=devices // data // fsdp)
    for devices in (1, 2, 4, 8)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if devices % (data * fsdp) == 0
]


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
    """The final state of RL and all losses; RL starts where SFT ended."""
    mesh = make_mesh(config.mesh)
    batches = [to_mesh(mesh, each) for each in lists]
    state = fresh_state(mesh, MODEL, OPTIMIZER, STEPS, seed=0)
    step, sft, rl = make_sft_step(mesh, config), [], []
    for batch, said in batches:
        state, metrics = step(state, batch, said)
        sft.append(float(metrics["loss"]))
    reference = jax.tree.map(jnp.copy, state.params)
    write, (assess, update) = make_rollout(mesh, config, STOP), make_rl_steps(mesh, config)
    for at, (batch, _) in enumerate(batches):
        rollout = jax.block_until_ready(write(state.params, batch, jax.random.key(at)))
        known = jax.block_until_ready(assess(state.params, reference, batch, rollout))
        state, metrics = jax.block_until_ready(update(state, reference, batch, rollout, known))
        rl.append(float(metrics["loss"]))
    return state, sft, rl


def difference(found: list[float], expected: list[float]) -> float:
    return float(np.max(np.abs(np.subtract(found, expected)) / np.abs(expected)))


def comes_back(state: TrainState, elsewhere: MeshConfig, folder: Path) -> bool:
    """Whether a state that is saved where it lies is the same, to the bit, on another mesh."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    like = abstract_state(make_mesh(elsewhere), MODEL, OPTIMIZER, STEPS)
    restored, _ = checkpoints.restore(1, like)
    checkpoints.close()
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    placed = all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(like)))
    return placed and all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def main() -> int:
    worst, bitwise = {"sft": 0.0, "rl": 0.0}, True
    expected: tuple[list[float], list[float]] | None = None
    lists = [jax.tree.map(np.asarray, make(SHAPE, seed)[1:]) for seed in range(STEPS)]
    print(f"{'data x fsdp x tensor':22}{'SFT':>10}{'RL':>10}   restored on the next")
    with tempfile.TemporaryDirectory() as folder:
        for at, mesh in enumerate(MESHES):
            state, sft, rl = train(configured(mesh), lists)
            expected = expected or (sft, rl)
            off = {"sft": difference(sft, expected[0]), "rl": difference(rl, expected[1])}
            same = comes_back(state, MESHES[(at + 1) % len(MESHES)], Path(folder) / str(at))
            worst, bitwise = {name: max(worst[name], off[name]) for name in worst}, bitwise and same
            name = f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}"
            print(f"{name:22}{off['sft']:10.1e}{off['rl']:10.1e}   {'bit for bit' if same else 'DIFFERS'}", flush=True)
    print(
        json.dumps(
            {"meshes": len(MESHES), **{f"{k}_rel": float(f"{v:.3g}") for k, v in worst.items()}} | {"bitwise": bitwise}
        )
    )
    return int(max(worst.values()) > TOLERANCE or not bitwise)


if __name__ == "__main__":
    sys.exit(main())
