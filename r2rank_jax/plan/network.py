"""What a step sends from slice to slice, and how long that takes at least."""

from __future__ import annotations

from typing import NamedTuple

from r2rank_jax.config import RunConfig
from r2rank_jax.plan.compiled import CompiledProgram
from r2rank_jax.plan.devices import Topology
from r2rank_jax.plan.estimate import gathered_bytes
from r2rank_jax.sharding import abstract_params, mesh_of_shapes
from r2rank_jax.train.trainable import split_params


class Crossing(NamedTuple):
    """The traffic of one phase's step between slices."""

    bytes: int  # that each slice sends to the others
    least_seconds: float  # at the rate of its network, while nothing else uses it; 0 = unknown
    compiled: bool  # counted in compiled programs, not estimated


def crossing_of_steps(config: RunConfig, topology: Topology, programs: list[CompiledProgram]) -> dict[str, Crossing]:
    """The traffic between slices of a step of SFT and of RL; empty with one slice.

    Compiled programs count with what XLA made of them. The programs of a rollout are left out: they send only a few
    numbers from slice to slice, although all devices wait for one of them at every token, whether any row goes on.

    Args:
        config: of the run.
        topology: the devices.
        programs: those that were compiled; may be none.
    """
    if topology.slices == 1:
        return {}
    compiled = {one.name: one.crossing_bytes for one in programs if not one.error}
    estimate = gradient_bytes_out(config)
    crossing = {}
    for step, parts in {
        "sft step": {"sft step": 1},
        "rl step": {"rl assess": 1, "rl update": config.rl.updates},
    }.items():
        known = all(name in compiled for name in parts)
        updates = parts.get("rl update", 1)
        size = sum(times * compiled[name] for name, times in parts.items()) if known else updates * estimate
        rate = topology.network_bytes_per_s
        crossing[step] = Crossing(size, size / rate if rate else 0.0, known)
    return crossing


def gradient_bytes_out(config: RunConfig) -> int:
    """Bytes that each of S slices sends at least while one update sums its gradients over users.

    Every gradient crosses once, in float32. The devices of a slice first add theirs up, and the slices then all-reduce
    the sum: each sends 2 (S - 1) / S of it. XLA for TPUs does that; a plain ring over all devices sends up to
    S / (S - 1) times as much. What is not counted: sums of scalars, and that XLA reduces some gradients several times
    where it places the sums itself (all items at once on a mesh without fsdp).
    """
    mesh, slices = config.mesh, config.mesh.slices
    trained = split_params(config.trained, abstract_params(mesh_of_shapes(mesh), config.model))[0]  # type: ignore[arg-type]
    return 2 * (slices - 1) * mesh.tensor * gathered_bytes(trained) // slices
