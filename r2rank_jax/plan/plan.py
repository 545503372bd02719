"""`r2rank plan`: what a run would need of a machine, and whether that machine has it.

Prints a table and, last, one line of JSON. With `--backend compile` the run's real programs are compiled for the
topology, whose hardware need not be there, and what XLA says stands below what was estimated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r2rank_jax.config import RunConfig
from r2rank_jax.model.counting import Lists, decode_bytes, forward_flops, parameters, update_flops
from r2rank_jax.plan.compiled import Measured, compile_programs, missing_compiler
from r2rank_jax.plan.devices import Topology, parse_topology, require_mesh
from r2rank_jax.plan.estimate import KINDS, Estimate, Use, estimate
from r2rank_jax.plan.remedy import Remedy, nearest_remedy
from r2rank_jax.train.activation_memory import GIB

RECOMPUTED = {"none": "nothing", "dots": "all but products with weights", "block": "layers"}  # by `model.remat`

Backend = Literal["abstract", "compile"]


def run(config: RunConfig, topology_name: str, backend: Backend, compiler: Path | None) -> str | None:
    """Print the plan.

    Args:
        config: the run.
        topology_name: as in `--topology`.
        backend: estimate only, or compile too.
        compiler: folder with the compiler of the platform, see `plan/compiled.py`.

    Returns:
        Why it does not fit, with what would; None where it does.

    Raises:
        ConfigError: an unknown topology, or one of another size than the mesh.
    """
    topology = parse_topology(topology_name)
    require_mesh(config.mesh, topology)
    found, memory = estimate(config, topology), topology.device.memory_bytes
    work = _work(found.config, topology)
    _print_estimate(found, topology, work)
    measured: list[Measured] = []
    note = None
    if backend == "compile":
        measured, note = _compile(found, topology, compiler)
    verdict = _judge(found, topology, measured)
    print(f"fits: {'yes' if verdict.fits else 'no'}, {_gib(verdict.peak_bytes)} of {_gib(memory)} GiB on each device")
    print(json.dumps(_as_json(found, topology, work, measured, note, verdict, backend)))
    return None if verdict.fits else _message(verdict, topology)


class Verdict(NamedTuple):
    """Whether a run fits, and what would."""

    fits: bool
    peak_bytes: int
    refusal: str | None  # the compiler's
    remedy: Remedy | None


def _judge(found: Estimate, topology: Topology, measured: list[Measured]) -> Verdict:
    """What was compiled counts, and for the rest the estimate. A remedy is an estimate: where the compiler found more
    than was estimated, it has as much less memory."""
    memory = topology.device.memory_bytes
    totals = {name: use.total for name, use in found.programs.items()}
    totals |= {one.name: _compiled_total(one, found.programs[one.name]) for one in measured if not one.error}
    peak = max(totals.values())
    refusal = next((f"{one.name}: {one.error}" for one in measured if one.error), None)
    if peak <= memory and refusal is None:
        return Verdict(True, peak, None, None)
    limit = min(memory, memory * found.peak / peak)
    if refusal is not None:
        limit = min(limit, 0.9 * found.peak)
    smaller = topology._replace(device=topology.device._replace(memory_bytes=int(limit)))
    return Verdict(False, peak, refusal, nearest_remedy(found, smaller))


def _compile(found: Estimate, topology: Topology, folder: Path | None) -> tuple[list[Measured], str | None]:
    missing = missing_compiler(topology, folder)
    if missing is not None:
        print(f"not compiled: {missing}; what follows is estimated")
        return [], missing

    def heard(one: Measured) -> None:
        if one.error:
            print(f"compiled {one.name}: refused after {one.seconds:.0f} s: {one.error}", flush=True)
            return
        total = _compiled_total(one, found.programs[one.name])
        estimated = found.programs[one.name].total
        calls = [f"{kind} {n.calls:,} times, {_gib(n.bytes)} GiB" for kind, n in one.collectives.items()]
        print(
            f"compiled {one.name} in {one.seconds:.0f} s: {_gib(total)} GiB (estimated {_gib(estimated)}), "
            f"temporaries {_gib(one.temporary_bytes)}; {'; '.join(calls) or 'no collectives'}",
            flush=True,
        )

    # What "auto" would choose on the machine must not be chosen anew in a process that has no such machine.
    phases = {
        "sft": replace(found.config, model=found.sft.model),
        "rl": replace(found.config, model=found.rl.model),
    }
    measured, failure = compile_programs(phases, topology, folder, heard=heard)
    if failure:
        print(f"not all compiled: {failure}; the rest is estimated")
    return measured, failure


def _compiled_total(one: Measured, use: Use) -> int:
    return one.bytes + sum(use.beside.values())


def _work(config: RunConfig, topology: Topology) -> dict[str, dict[str, float]]:
    """FLOPs of all devices by formula, and the seconds that they take at the device's own rates, at least."""
    data, model, rl = config.data, config.model, config.rl
    sizes = data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, data.candidate_items
    sft, lists = Lists(config.sft.batch_users, *sizes, 1), Lists(rl.batch_users, *sizes, rl.rationales)
    forward = forward_flops(model, lists)
    read = forward_flops(model, lists, logits=False)
    assess = read if rl.updates == 1 else read + forward  # the policy's own log-probabilities
    flops = {
        "sft step": update_flops(model, sft, trained=config.trained),
        "rl rollout": forward,
        "rl assess": assess,
        "rl update": rl.updates * update_flops(model, lists, trained=config.trained),
    }
    rate, bandwidth = topology.device.flops_per_s, topology.device.bytes_per_s
    # Users are split over data x fsdp; their weights are read by each device, a part of them along tensor.
    local = lists._replace(users=lists.users // config.mesh.batch_shards)
    reading = decode_bytes(model, local) / config.mesh.tensor
    work = {}
    for name, n in flops.items():
        least = n / (rate * topology.devices) if rate else 0.0
        if name == "rl rollout" and bandwidth:
            least = max(least, reading / bandwidth)
        work[name] = {"flops": n, "least_seconds": least}
    return work


def _print_estimate(found: Estimate, topology: Topology, work: dict[str, dict[str, float]]) -> None:
    config, mesh = found.config, found.config.mesh
    memory = _gib(topology.device.memory_bytes)
    print(f"{config.name} on {topology.name}: {topology.devices} devices, {memory} GiB of each for programs")
    print(f"mesh: data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}; attention {config.model.attention}")
    print(f"parameters: {parameters(config.model):,}, computing in {config.model.dtype}")
    for phase, plan in (("sft", found.sft), ("rl", found.rl)):
        print(
            f"{phase} update: {plan.chunk_items} of {config.data.candidate_items} items at once, "
            f"{RECOMPUTED[plan.model.remat]} recomputed"
        )
    for name, each in work.items():
        least = f", at least {each['least_seconds']:.3g} s" if each["least_seconds"] else ""
        print(f"{name}: {each['flops']:.3g} FLOPs{least}")
    names = list(found.programs)
    width = max(map(len, names))
    print("GiB on one device, estimated")
    print(" " * 18 + "  ".join(name.rjust(width) for name in names))
    for kind in (*KINDS, "all"):
        cells = [use.total if kind == "all" else use.of(kind) for use in found.programs.values()]
        if any(cells):
            print(f"{kind:18}" + "  ".join((_gib(n) if n else "").rjust(width) for n in cells))


def _message(verdict: Verdict, topology: Topology) -> str:
    """Requirement, what came, remedy."""
    memory, remedy = topology.device.memory_bytes, verdict.remedy
    asked = f"the run needs {_gib(verdict.peak_bytes)} GiB on each device"
    if verdict.refusal is not None:
        asked = f"the compiler refused {verdict.refusal}"
    text = f"a device of {topology.name} has {_gib(memory)} GiB for programs, {asked}; "
    if remedy is None:
        return text + "no change of at most three settings fits: take a topology of more or larger devices"
    short = _typed(remedy.short_flags) or "as it is"
    return text + (
        f"set {_typed(remedy.flags)}, estimated at {_gib(remedy.peak_bytes)} GiB "
        f"({short}: {_gib(remedy.short_peak_bytes)} GiB)"
    )


def _typed(flags: dict[str, str]) -> str:
    return " ".join(f"{flag} {value}" for flag, value in flags.items())


def _as_json(
    found: Estimate,
    topology: Topology,
    work: dict[str, dict[str, float]],
    measured: list[Measured],
    note: str | None,
    verdict: Verdict,
    backend: Backend,
) -> dict[str, Any]:
    compiled = {
        one.name: {
            "bytes": _compiled_total(one, found.programs[one.name]) if not one.error else None,
            "program_bytes": one.bytes,
            "temporary_bytes": one.temporary_bytes,
            "compile_seconds": round(one.seconds, 1),
            "collectives": {kind: n._asdict() for kind, n in one.collectives.items()},
            "error": one.error,
        }
        for one in measured
    }
    estimated = {
        name: {
            "bytes": use.total,
            "program_bytes": sum(use.program.values()),
            "kinds": {kind: use.of(kind) for kind in KINDS if use.of(kind)},
        }
        for name, use in found.programs.items()
    }
    remedy = None
    if verdict.remedy is not None:
        flags, peak, _, short_flags, short_peak = verdict.remedy
        remedy = {"flags": flags, "peak_bytes": peak}
        remedy["one_step_less"] = {"flags": short_flags, "peak_bytes": short_peak}
    return {
        "name": found.config.name,
        "topology": topology.name,
        "devices": topology.devices,
        "backend": backend,
        "parameters": parameters(found.config.model),
        "memory_bytes": topology.device.memory_bytes,
        "peak_bytes": verdict.peak_bytes,
        "fits": verdict.fits,
        "work": work,
        "chunk_items": {"sft": found.sft.chunk_items, "rl": found.rl.chunk_items},
        "remat": {"sft": found.sft.model.remat, "rl": found.rl.model.remat},
        "estimated": estimated,
        "compiled": compiled,
        "not_compiled": note,
        "remedy": remedy,
    }


def _gib(size: float) -> str:
    """GiB with as many digits as say something."""
    gib = size / GIB
    return f"{gib:,.1f}" if gib >= 10 else f"{gib:.2f}" if gib >= 0.1 else f"{gib:.4f}"
