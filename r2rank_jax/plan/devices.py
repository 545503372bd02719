"""Accelerators with their manufacturers' figures, and topologies as `--topology` names them.

Memory is the part that JAX may use. TPUs reserve a small part of their memory; the sizes given here are those in the
TPU compiler's messages. On GPUs, JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION is set. Rates are for
dense bfloat16 matrix products and for the device's own memory.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.train.memory.chunk_choice import GIB

GPU_SHARE = 0.75
TERA = 1e12


class Device(NamedTuple):
    """One accelerator, as JAX counts devices."""

    platform: str  # "tpu", "gpu" or "cpu"
    memory_bytes: int  # available to programs
    flops_per_s: float  # bfloat16, dense; 0 = unknown
    bytes_per_s: float  # of its memory; 0 = unknown
    gpu: GPU | None = None


class GPU(NamedTuple):
    """Properties that XLA's compiler for NVIDIA needs of a GPU that is not present."""

    name: str
    capability: int  # major version; the minor version of all these GPUs is 0
    cores: int
    fpus_per_core: int
    clock_ghz: float
    shared_per_core: int
    shared_per_block: int
    l2_bytes: int


_AMPERE = GPU("NVIDIA A100-SXM4", 8, 108, 64, 1.41, 167_936, 166_912, 40 * 2**20)
_HOPPER = GPU("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 233_472, 232_448, 50 * 2**20)
_BLACKWELL = GPU("NVIDIA B200", 10, 148, 128, 1.965, 233_472, 232_448, 132_644_864)


def _gpu(memory_bytes: int, tera_flops: float, tera_bytes: float, gpu: GPU) -> Device:
    return Device("gpu", int(GPU_SHARE * memory_bytes), tera_flops * TERA, tera_bytes * TERA, gpu)


def _tpu(memory_gib: float, tera_flops: float, tera_bytes: float) -> Device:
    return Device("tpu", int(memory_gib * GIB), tera_flops * TERA, tera_bytes * TERA)


# Sources: cloud.google.com/tpu/docs (system architecture of each generation); NVIDIA's data sheets of A100, H100, H200
# and HGX B200. A GPU's memory is what its driver reports, a little less than the data sheet says.
DEVICES = {
    "v4": _tpu(30.75, 275, 1.228),
    "v5e": _tpu(15.75, 197, 0.819),
    "v5p": _tpu(95.74, 459, 2.765),
    "v6e": _tpu(31.25, 918, 1.640),
    "a100-40": _gpu(42_298_834_944, 312, 1.555, _AMPERE),
    "a100-80": _gpu(85_100_068_864, 312, 2.039, _AMPERE),
    "h100": _gpu(84_942_979_072, 989, 3.352, _HOPPER),
    "h200": _gpu(151_397_597_184, 989, 4.8, _HOPPER._replace(name="NVIDIA H200 141GB HBM3e")),
    "b200": _gpu(191_514_411_008, 2250, 7.672, _BLACKWELL),
    "cpu": Device("cpu", 0, 0.0, 0.0),  # fake devices share the memory of this machine
}
TORUS_AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}


class Topology(NamedTuple):
    """Devices of one kind."""

    name: str  # as given on the command line
    kind: str
    shape: tuple[int, ...]
    device: Device

    @property
    def devices(self) -> int:
        return math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """Read `v5p:4x4x8`, `h200:8` or `cpu:8`.

    Raises:
        ConfigError: an unknown kind, or sizes that do not fit the kind.
    """
    kind, _, sizes = name.partition(":")
    if kind not in DEVICES:
        raise ConfigError(
            f"--topology must be KIND:SIZE with KIND one of {', '.join(DEVICES)}, got {name!r}; "
            f"for example v5p:2x2x2, h200:8 or cpu:8"
        )
    axes = TORUS_AXES.get(kind, 1)
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != axes or min(shape, default=0) < 1:
        example = "x".join(["2"] * axes) if axes > 1 else "8"
        sizes_needed = f"{axes} sizes, in chips" if axes > 1 else "a number of devices"
        raise ConfigError(f"--topology {kind} needs {sizes_needed}, got {name!r}; for example {kind}:{example}")
    device = DEVICES[kind]
    if kind == "cpu":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        device = device._replace(memory_bytes=machine // shape[0])
    return Topology(name, kind, shape, device)


def require_mesh(mesh: MeshConfig, topology: Topology) -> None:
    """Check that the mesh uses every device of the topology.

    Raises:
        ConfigError: it uses more or fewer.
    """
    if mesh.devices == topology.devices:
        return
    rest, left = divmod(topology.devices, mesh.tensor * mesh.data)
    remedy = (
        f"set --mesh.fsdp {rest}" if rest and not left else f"set --mesh.fsdp {topology.devices} and the others to 1"
    )
    raise ConfigError(
        f"mesh data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} = {mesh.devices} must equal the number of "
        f"devices of the topology, but {topology.name} has {topology.devices}; {remedy}, or choose a topology of "
        f"{mesh.devices}"
    )


def target_config(topology: Topology) -> str:
    """XLA's `GpuTargetConfigProto` in text form: the properties that the compiler would query from the GPU."""
    gpu, memory = topology.device.gpu, topology.device.memory_bytes
    assert gpu is not None
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {gpu.shared_per_core}
  shared_memory_per_block_optin: {gpu.shared_per_block}
  core_count: {gpu.cores}  fpus_per_core: {gpu.fpus_per_core}  clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: {int(topology.device.bytes_per_s)}  l2_cache_size: {gpu.l2_bytes}
  device_memory_size: {int(memory / GPU_SHARE)}
  cuda_compute_capability {{ major: {gpu.capability} }}
  device_vendor: "NVIDIA Corporation"  name: "{gpu.name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9  minor: 10  patch: 0 }}
device_description_str: "{gpu.name}"
"""
