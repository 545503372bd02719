"""Compile programs for a machine that need not be present, with the compiler of one platform per process.

    cpu     JAX itself, on as many fake devices as requested
    tpu     pip install --target compilers/tpu --no-deps 'libtpu==0.0.42.*'          (what jax 0.10.2 was released with)
    gpu     pip install --target compilers/cuda --no-deps jax-cuda13-plugin jax-cuda13-pjrt          (jax's own version)

The folder is added to the path of a separate process, `python -m r2rank_jax.plan.compiled`, which reads a request from
stdin and prints one line of JSON for each program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from r2rank_jax.config import RunConfig, from_json, to_json
from r2rank_jax.plan.collectives import Collectives, Slices, count_collectives
from r2rank_jax.plan.devices import Topology, parse_topology, target_config
from r2rank_jax.plan.programs import lowered_rl, lowered_sft
from r2rank_jax.sharding import make_mesh

DEFAULT_FOLDER = {"tpu": Path("compilers/tpu"), "gpu": Path("compilers/cuda")}
INSTALL = {
    "tpu": "pip install --target {folder} --no-deps 'libtpu==0.0.42.*'",
    "gpu": "pip install --target {folder} --no-deps jax-cuda13-plugin=={jax} jax-cuda13-pjrt=={jax}",
}
CONTENT = {"tpu": "libtpu", "gpu": "jax_plugins"}


@dataclass(frozen=True)
class CompiledProgram:
    """XLA's memory analysis and collectives of one program on one device."""

    name: str
    bytes: int = 0  # arguments, results and temporaries at the peak
    temporary_bytes: int = 0
    seconds: float = 0.0  # compile time
    collectives: dict[str, Collectives] = field(default_factory=dict)
    error: str | None = None  # the compiler's message, if it failed

    @property
    def crossing_bytes(self) -> int:
        """Bytes that each slice sends to the others in one run of the program."""
        return sum(one.crossing_bytes for one in self.collectives.values())


def missing_compiler(topology: Topology, folder: Path | None) -> str | None:
    """Why programs cannot be compiled for a topology on this machine, with the remedy; None if they can."""
    platform = topology.device.platform
    if topology.kind == "v4":
        return "the compiler targets single cores of a v4, but JAX runs on pairs of cores; use --backend abstract"
    if platform == "cpu":
        return None
    folder = folder or DEFAULT_FOLDER[platform]
    if (folder / CONTENT[platform]).is_dir():
        return None
    command = INSTALL[platform].format(folder=folder, jax=jax.__version__)
    return f"compiling for {topology.name} needs {CONTENT[platform]} in {folder}, which is missing; run: {command}"


def compile_programs(
    phases: dict[str, RunConfig],
    topology: Topology,
    folder: Path | None,
    *,
    on_program: Callable[[CompiledProgram], None],
) -> tuple[list[CompiledProgram], str | None]:
    """Compile the programs of SFT and RL.

    Args:
        phases: "sft" and "rl" -> a configuration in which no setting is left to resolve on the machine.
        topology: the devices to compile for.
        folder: holds the compiler; None = the default folder.
        on_program: called with each program as soon as it is compiled.

    Returns:
        The programs, and why some are missing if the process failed.
    """
    request = {"topology": topology.name, "phases": {name: to_json(config) for name, config in phases.items()}}
    command = [sys.executable, "-m", "r2rank_jax.plan.compiled"]
    programs = []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(topology, folder),
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                programs.append(_from_json(json.loads(line)))
                on_program(programs[-1])
        errors = process.stderr.read().strip().splitlines()
    if process.returncode == 0:
        return programs, None
    return programs, errors[-1] if errors else f"exit code {process.returncode}"


def _environment(topology: Topology, folder: Path | None) -> dict[str, str]:
    platform = topology.device.platform
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    if platform == "cpu":
        flag = f"--xla_force_host_platform_device_count={topology.devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    else:
        paths.insert(0, str((folder or DEFAULT_FOLDER[platform]).resolve()))
    if platform == "tpu":
        environment |= {
            # Without these settings libtpu asks the cloud for them.
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            # Compiles in a quarter of the time (32 s instead of 127 s) and uses up to a seventh more memory, so the
            # result is an upper bound.
            "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": os.environ.get("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0"),
        }
    if platform == "gpu":
        environment["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    return environment | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _from_json(line: dict[str, Any]) -> CompiledProgram:
    collectives = {kind: Collectives(*values) for kind, values in line.pop("collectives").items()}
    return CompiledProgram(collectives=collectives, **line)


def devices_of(topology: Topology) -> list[jax.Device]:
    """Devices of a topology, for compilation only."""
    from jax.experimental import topologies

    if topology.device.platform == "cpu":
        return jax.devices()
    if topology.device.platform == "tpu":
        hosts = (*(min(size, 2) for size in topology.shape[:2]), 1)  # at most 2 x 2 chips per host
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.of_slice, chips_per_host_bounds=hosts, num_slices=topology.slices
        ).devices
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=topology.kind,
        topology=f"{topology.slices}x1x{topology.devices_per_slice}",  # one process on each machine
        target_config=target_config(topology),
    ).devices


def _serve(request: dict[str, Any]) -> None:
    topology = parse_topology(request["topology"])
    devices = devices_of(topology)
    for phase, lowered in (("sft", lowered_sft), ("rl", lowered_rl)):
        if phase not in request["phases"]:
            continue
        config = from_json(request["phases"][phase])
        for name, program in lowered(make_mesh(config.mesh, devices), config):
            print(json.dumps(asdict(_compile(name, program, topology))), flush=True)


def _compile(name: str, program: jax.stages.Lowered, topology: Topology) -> CompiledProgram:
    began = time.monotonic()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:  # too large for the device, or a compiler bug
        return CompiledProgram(name, error=str(error).strip().splitlines()[0], seconds=time.monotonic() - began)
    memory = compiled.memory_analysis()
    assert memory is not None
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    whole += memory.temp_size_in_bytes
    # Temporaries may reuse the memory of donated arguments. XLA for CPU does not report the peak.
    peak = whole if topology.device.platform == "cpu" else memory.peak_memory_in_bytes or whole
    return CompiledProgram(
        name,
        bytes=peak,
        temporary_bytes=memory.temp_size_in_bytes,
        seconds=time.monotonic() - began,
        collectives=count_collectives(compiled.as_text() or "", Slices(topology.slices, topology.devices_per_slice)),
    )


if __name__ == "__main__":
    _serve(json.load(sys.stdin))
