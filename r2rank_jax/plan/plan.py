"""`r2rank plan`: how much memory and work a run needs, and whether it fits on a topology.

Prints a table and then one line of JSON. With `--backend compile`, the run's programs are compiled for the topology,
whose hardware need not be present, and XLA's figures are printed below the estimates.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r2rank_jax.config import RunConfig
from r2rank_jax.model.counting import BatchShape, decode_bytes, forward_flops, parameters, update_flops
from r2rank_jax.plan.compiled import CompiledProgram, compile_programs, missing_compiler
from r2rank_jax.plan.devices import Topology, parse_topology, require_mesh
from r2rank_jax.plan.estimate import KINDS, Estimate, MemoryUse, estimate
from r2rank_jax.plan.network import Crossing, crossing_of_steps
from r2rank_jax.plan.remedy import Remedy, nearest_remedy
from r2rank_jax.train.memory.chunk_choice import GIB

RECOMPUTED = {"none": "nothing", "dots": "all but products with weights", "block": "layers"}  # by `model.remat`

Backend = Literal["abstract", "compile"]


def run(config: RunConfig, topology_name: str, backend: Backend, compiler: Path | None) -> str | None:
    """Estimate a run on a topology and print the result.

    Args:
        config: the run.
        topology_name: the value of `--topology`.
        backend: "abstract" estimates only; "compile" compiles the programs as well.
        compiler: folder with the compiler of the platform, see `plan/compiled.py`.

    Returns:
        Why the run does not fit, with a remedy; None if it fits.

    Raises:
        ConfigError: an unknown topology, or one whose number of devices differs from the mesh's.
    """
    topology = parse_topology(topology_name)
    require_mesh(config.mesh, topology)
    estimated, memory = estimate(config, topology), topology.device.memory_bytes
    work = _work(estimated.config, topology)
    _print_estimate(estimated, topology, work)
    programs: list[CompiledProgram] = []
    note = None
    if backend == "compile":
        programs, note = _compile(estimated, topology, compiler)
    crossing = crossing_of_steps(estimated.config, topology, programs)
    if crossing:
        _print_crossing(crossing, topology)
    verdict = judge(estimated, topology, programs)
    print(f"fits: {'yes' if verdict.fits else 'no'}, {_gib(verdict.peak_bytes)} of {_gib(memory)} GiB on each device")
    print(json.dumps(_as_json(estimated, topology, work, crossing, programs, note, verdict, backend)))
    return None if verdict.fits else shortage(verdict, topology)


class Verdict(NamedTuple):
    """Whether a run fits, and a remedy if it does not."""

    fits: bool
    peak_bytes: int
    refusal: str | None  # the compiler's message, if it failed
    remedy: Remedy | None


def judge(estimated: Estimate, topology: Topology, programs: list[CompiledProgram]) -> Verdict:
    """Compare the memory needed with the memory available.

    Compiled programs count with their measured size, all others with their estimate. The remedy is an estimate: if the
    measured peak exceeds the estimated one, the search for a remedy gets proportionally less memory.
    """
    memory = topology.device.memory_bytes
    totals = {name: use.total for name, use in estimated.programs.items()}
    totals |= {one.name: _compiled_total(one, estimated.programs[one.name]) for one in programs if not one.error}
    peak = max(totals.values())
    refusal = next((f"{one.name}: {one.error}" for one in programs if one.error), None)
    if peak <= memory and refusal is None:
        return Verdict(True, peak, None, None)
    limit = min(memory, memory * estimated.peak / peak)
    if refusal is not None:
        limit = min(limit, 0.9 * estimated.peak)
    smaller = topology._replace(device=topology.device._replace(memory_bytes=int(limit)))
    return Verdict(False, peak, refusal, nearest_remedy(estimated, smaller))


def _compile(estimated: Estimate, topology: Topology, folder: Path | None) -> tuple[list[CompiledProgram], str | None]:
    missing = missing_compiler(topology, folder)
    if missing is not None:
        print(f"not compiled: {missing}; the figures are estimates")
        return [], missing

    def print_program(one: CompiledProgram) -> None:
        if one.error:
            print(f"compiling {one.name} failed after {one.seconds:.0f} s: {one.error}", flush=True)
            return
        total = _compiled_total(one, estimated.programs[one.name])
        estimated_total = estimated.programs[one.name].total
        calls = [f"{kind} {n.calls:,} times, {_gib(n.bytes)} GiB" for kind, n in one.collectives.items()]
        if topology.slices > 1:
            calls.append(f"out of each slice {_gib(one.crossing_bytes)} GiB")
        print(
            f"compiled {one.name} in {one.seconds:.0f} s: {_gib(total)} GiB (estimated {_gib(estimated_total)}), "
            f"temporaries {_gib(one.temporary_bytes)}; {'; '.join(calls) or 'no collectives'}",
            flush=True,
        )

    # "auto" settings are already resolved for the topology; the compiling process must not resolve them again.
    phases = {
        "sft": replace(estimated.config, model=estimated.sft.model),
        "rl": replace(estimated.config, model=estimated.rl.model),
    }
    programs, failure = compile_programs(phases, topology, folder, on_program=print_program)
    if failure:
        print(f"not all compiled: {failure}; the rest is estimated")
    return programs, failure


def _compiled_total(one: CompiledProgram, use: MemoryUse) -> int:
    return one.bytes + sum(use.resident.values())


def _work(config: RunConfig, topology: Topology) -> dict[str, dict[str, float]]:
    """FLOPs of all devices by formula, and the least time in seconds that they can take at the device's peak rates."""
    data, model, rl = config.data, config.model, config.rl
    sizes = data.prefix_tokens, data.suffix_tokens, data.rationale_tokens, data.candidate_items
    sft, shape = BatchShape(config.sft.batch_users, *sizes, 1), BatchShape(rl.batch_users, *sizes, rl.rationales)
    forward = forward_flops(model, shape)
    read = forward_flops(model, shape, logits=False)
    assess = read if rl.updates == 1 else read + forward  # also computes the policy's log-probabilities
    flops = {
        "sft step": update_flops(model, sft, trained=config.trained),
        "rl rollout": forward,
        "rl assess": assess,
        "rl update": rl.updates * update_flops(model, shape, trained=config.trained),
    }
    rate, bandwidth = topology.device.flops_per_s, topology.device.bytes_per_s
    # Users are split over data x fsdp. Every device reads all weights, or its share of them along tensor.
    local = shape._replace(users=shape.users // config.mesh.batch_shards)
    reading = decode_bytes(model, local) / config.mesh.tensor
    work = {}
    for name, n in flops.items():
        least = n / (rate * topology.devices) if rate else 0.0
        if name == "rl rollout" and bandwidth:
            least = max(least, reading / bandwidth)
        work[name] = {"flops": n, "least_seconds": least}
    return work


def _print_estimate(estimated: Estimate, topology: Topology, work: dict[str, dict[str, float]]) -> None:
    config, mesh = estimated.config, estimated.config.mesh
    memory = _gib(topology.device.memory_bytes)
    print(f"{config.name} on {topology.name}: {topology.devices} devices, {memory} GiB of each for programs")
    slices = f" in {mesh.slices} slices" if mesh.slices > 1 else ""
    print(
        f"mesh: data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}{slices}; attention {config.model.attention}"
    )
    print(f"parameters: {parameters(config.model):,}, computing in {config.model.dtype}")
    for phase, choice in (("sft", estimated.sft), ("rl", estimated.rl)):
        print(
            f"{phase} update: {choice.chunk_items} of {config.data.candidate_items} items at once, "
            f"{RECOMPUTED[choice.model.remat]} recomputed"
        )
    for name, each in work.items():
        least = f", at least {each['least_seconds']:.3g} s" if each["least_seconds"] else ""
        print(f"{name}: {each['flops']:.3g} FLOPs{least}")
    names = list(estimated.programs)
    width = max(map(len, names))
    print("GiB on one device, estimated")
    print(" " * 18 + "  ".join(name.rjust(width) for name in names))
    for kind in (*KINDS, "all"):
        cells = [use.total if kind == "all" else use.of(kind) for use in estimated.programs.values()]
        if any(cells):
            print(f"{kind:18}" + "  ".join((_gib(n) if n else "").rjust(width) for n in cells))


def _print_crossing(crossing: dict[str, Crossing], topology: Topology) -> None:
    parts = []
    for step, one in crossing.items():
        seconds = f" in {one.least_seconds:.3g} s" if one.least_seconds else ""
        parts.append(f"{step} {_gib(one.bytes)} GiB{seconds} ({'compiled' if one.compiled else 'estimated'})")
    rate = topology.network_bytes_per_s / 1e9
    print(f"out of each slice, at least: {'; '.join(parts)}{f'; at {rate:,.4g} GB/s' if rate else ''}")


def shortage(verdict: Verdict, topology: Topology) -> str:
    """Why a run does not fit: requirement, actual value, remedy."""
    memory, remedy = topology.device.memory_bytes, verdict.remedy
    problem = f"the run needs {_gib(verdict.peak_bytes)} GiB on each device"
    if verdict.refusal is not None:
        problem = f"the compiler failed on {verdict.refusal}"
    text = f"a device of {topology.name} has {_gib(memory)} GiB for programs, but {problem}; "
    if remedy is None:
        return text + "no change of up to three settings fits; choose a topology with more or larger devices"
    short = _typed(remedy.short_flags) or "without changes"
    return text + (
        f"set {_typed(remedy.flags)}, estimated at {_gib(remedy.peak_bytes)} GiB "
        f"({short}: {_gib(remedy.short_peak_bytes)} GiB)"
    )


def _typed(flags: dict[str, str]) -> str:
    return " ".join(f"{flag} {value}" for flag, value in flags.items())


def _as_json(
    estimated: Estimate,
    topology: Topology,
    work: dict[str, dict[str, float]],
    crossing: dict[str, Crossing],
    programs: list[CompiledProgram],
    note: str | None,
    verdict: Verdict,
    backend: Backend,
) -> dict[str, Any]:
    compiled = {
        one.name: {
            "bytes": _compiled_total(one, estimated.programs[one.name]) if not one.error else None,
            "program_bytes": one.bytes,
            "temporary_bytes": one.temporary_bytes,
            "compile_seconds": round(one.seconds, 1),
            "collectives": {kind: n._asdict() for kind, n in one.collectives.items()},
            "error": one.error,
        }
        for one in programs
    }
    estimates = {
        name: {
            "bytes": use.total,
            "program_bytes": sum(use.program.values()),
            "kinds": {kind: use.of(kind) for kind in KINDS if use.of(kind)},
        }
        for name, use in estimated.programs.items()
    }
    remedy = None
    if verdict.remedy is not None:
        flags, peak, _, short_flags, short_peak = verdict.remedy
        remedy = {"flags": flags, "peak_bytes": peak}
        remedy["one_step_less"] = {"flags": short_flags, "peak_bytes": short_peak}
    return {
        "name": estimated.config.name,
        "topology": topology.name,
        "devices": topology.devices,
        "slices": topology.slices,
        "backend": backend,
        "parameters": parameters(estimated.config.model),
        "memory_bytes": topology.device.memory_bytes,
        "peak_bytes": verdict.peak_bytes,
        "fits": verdict.fits,
        "work": work,
        "across_slices": {step: one._asdict() for step, one in crossing.items()},
        "chunk_items": {"sft": estimated.sft.chunk_items, "rl": estimated.rl.chunk_items},
        "remat": {"sft": estimated.sft.model.remat, "rl": estimated.rl.model.remat},
        "estimated": estimates,
        "compiled": compiled,
        "not_compiled": note,
        "remedy": remedy,
    }


def _gib(size: float) -> str:
    """GiB with two or three significant digits."""
    gib = size / GIB
    return f"{gib:,.1f}" if gib >= 10 else f"{gib:.2f}" if gib >= 0.1 else f"{gib:.4f}"
