"""The devices against the mesh, and their memory against the estimate of `r2rank plan`."""

from __future__ import annotations

from pathlib import Path

import jax

from r2rank_jax.config import MeshConfig, RunConfig
from r2rank_jax.doctor.findings import LONGEST_REASON, Finding, Outcome, divided, fault, ok, size_text, warning
from r2rank_jax.doctor.versions import check_unseen_gpus
from r2rank_jax.plan.devices import Device, Topology
from r2rank_jax.plan.estimate import estimate
from r2rank_jax.plan.plan import judge, shortage
from r2rank_jax.runs.attention_choice import unavailable
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.objectives import check

NAME = "this machine"
_CGROUPS = Path("/sys/fs/cgroup")


def check_configuration(config: RunConfig) -> list[Finding]:
    """What only this machine can say of a configuration: functions that it names, and its attention."""
    check(config)
    config.require_critic_lists()
    attention = config.model.attention
    message = None if attention == "auto" else unavailable(config, attention)
    if message is not None:
        return [fault("configuration", *divided(message))]
    return [ok("configuration", f"{config.name}, attention {attention}, {config.model.dtype}")]


def check_devices(mesh: MeshConfig) -> Outcome:
    """Start the devices and lay the mesh over them."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        what = f"JAX must start the devices, got: {' '.join(str(error).split()):.{LONGEST_REASON}}"
        return Outcome([fault("devices", what, "set JAX_PLATFORMS, free the devices, or mend their driver")])
    local = len(jax.local_devices())
    made = make_mesh(mesh)
    shape = " x ".join(f"{axis} {size}" for axis, size in made.shape.items())
    own = "" if jax.process_count() == 1 else f", {local} in this process"
    what = f"{len(devices)} x {devices[0].device_kind}{own}; mesh {shape}"
    findings = [ok("devices", what), *check_unseen_gpus(jax.default_backend())]
    if made.size < len(devices):
        unused = f"the mesh should use every device, got {made.size} of {len(devices)}"
        findings.append(warning("devices", unused, "raise mesh.data, or another axis of the mesh"))
    return Outcome(findings, {"device kind": devices[0].device_kind})


def check_memory(config: RunConfig, devices_of_host: int) -> list[Finding]:
    """Compare the estimated peak of the run with the free memory of a device.

    Args:
        config: the run.
        devices_of_host: devices of all processes on this host, which share its memory if they are CPUs.
    """
    platform, free = jax.default_backend(), free_bytes(devices_of_host)
    if free is None:
        return [
            warning(
                "memory", "the devices should report their memory, got nothing", "compare with `r2rank plan` yourself"
            )
        ]
    shape = (config.mesh.devices // config.mesh.slices,)
    topology = Topology(NAME, platform, shape, Device(platform, free, 0.0, 0.0, 0.0), config.mesh.slices)
    estimated = estimate(config, topology)
    verdict = judge(estimated, topology, [])
    if not verdict.fits:
        return [fault("memory", *divided(shortage(verdict, topology)))]
    figures = f"{size_text(verdict.peak_bytes)} estimated, {size_text(free)} free"
    return [ok("memory", f"{figures} on each of {config.mesh.devices} devices")]


def free_bytes(devices_of_host: int) -> int | None:
    """Bytes that programs can take on each device of this process; None if the device does not say.

    A CPU has its share of the host's free memory, or of the container's if that is less.
    """
    if jax.default_backend() == "cpu":
        return host_bytes() // devices_of_host
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min((s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s), default=None)


def host_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Free bytes of this host's memory, as far as the limits of its control groups let this process take them."""
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        folder, limit, used = cgroups, "memory.max", "memory.current"  # version 2
        if controllers == "memory":
            folder, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif controllers:
            continue
        for place in (folder / group.lstrip("/"), folder):  # a container may show its own group as the root
            try:
                left = int((place / limit).read_text()) - int((place / used).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            available = min(available, max(left, 0))
    return available
