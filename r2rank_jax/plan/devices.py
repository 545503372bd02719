"""Accelerators with their manufacturers' figures, and topologies as `--topology` names them.

Memory is the part that JAX may use. TPUs reserve a small part of their memory; the sizes given here are those in the
TPU compiler's messages. On GPUs, JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION is set. Rates are for
dense bfloat16 matrix products, for the device's own memory, and for its share of the network between slices.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.train.memory.chunk_choice import GIB

GPU_SHARE = 0.75
TERA = 1e12
GIGABIT = 1e9 / 8


class Device(NamedTuple):
    """One accelerator, as JAX counts devices."""

    platform: str  # "tpu", "gpu" or "cpu"
    memory_bytes: int  # available to programs
    flops_per_s: float  # bfloat16, dense; 0 = unknown
    bytes_per_s: float  # of its memory; 0 = unknown
    network_bytes_per_s: float  # out of its slice, its share of the network of its machine; 0 = unknown
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


def _gpu(memory_bytes: int, tera_flops: float, tera_bytes: float, network_gbit: float, gpu: GPU) -> Device:
    memory = int(GPU_SHARE * memory_bytes)
    return Device("gpu", memory, tera_flops * TERA, tera_bytes * TERA, network_gbit * GIGABIT, gpu)


def _tpu(memory_gib: float, tera_flops: float, tera_bytes: float, network_gbit: float) -> Device:
    return Device("tpu", int(memory_gib * GIB), tera_flops * TERA, tera_bytes * TERA, network_gbit * GIGABIT)


# Sources: cloud.google.com/tpu/docs (system architecture of each generation); NVIDIA's data sheets of A100, H100, H200
# and HGX B200. A GPU's memory is what its driver reports, a little less than the data sheet says.
# Network of TPUs: the same pages' bandwidth of the data-center network per pod, divided by its chips (v5e: 6.4 Tbit/s
# for 256, v6e: 25.6 Tbit/s for 256); for v4 and v5p the 6.25e9 bytes/s per chip of jax-ml.github.io/scaling-book/tpus.
# Network of GPUs: the adapter that DGX systems have for each GPU, ConnectX-6 of 200 Gbit/s (DGX A100) or ConnectX-7 of
# 400 Gbit/s (DGX H100, H200, B200; docs.nvidia.com/dgx-basepod). A machine with fewer adapters is slower.
DEVICES = {
    "v4": _tpu(30.75, 275, 1.228, 50),
    "v5e": _tpu(15.75, 197, 0.819, 25),
    "v5p": _tpu(95.74, 459, 2.765, 50),
    "v6e": _tpu(31.25, 918, 1.640, 100),
    "a100-40": _gpu(42_298_834_944, 312, 1.555, 200, _AMPERE),
    "a100-80": _gpu(85_100_068_864, 312, 2.039, 200, _AMPERE),
    "h100": _gpu(84_942_979_072, 989, 3.352, 400, _HOPPER),
    "h200": _gpu(151_397_597_184, 989, 4.8, 400, _HOPPER._replace(name="NVIDIA H200 141GB HBM3e")),
    "b200": _gpu(191_514_411_008, 2250, 7.672, 400, _BLACKWELL),
    "cpu": Device("cpu", 0, 0.0, 0.0, 0.0),  # fake devices share the memory of this machine
}
TORUS_AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}


_NAME = re.compile(r"(?:(\d+)x)?([^:]*):?(.*)", re.DOTALL)


class Topology(NamedTuple):
    """Devices of one kind, in one or several slices of equal shape."""

    name: str  # as given on the command line
    kind: str
    shape: tuple[int, ...]  # of one slice
    device: Device
    slices: int = 1

    @property
    def devices(self) -> int:
        return self.slices * self.devices_per_slice

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def of_slice(self) -> str:
        """The name of one slice."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def network_bytes_per_s(self) -> float:
        """What the devices of one slice together send to other slices; 0 = unknown."""
        return self.devices_per_slice * self.device.network_bytes_per_s


def parse_topology(name: str) -> Topology:
    """Read `v5p:4x4x8`, `h200:8` or `cpu:8`, or several such slices: `2xv5p:4x4x8`, or `2xh200:8` for two machines.

    Raises:
        ConfigError: an unknown kind, or sizes that do not fit the kind.
    """
    number, kind, sizes = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    slices = int(number or 1)
    if kind not in DEVICES or slices < 1:
        raise ConfigError(
            f"--topology must be KIND:SIZE with KIND one of {', '.join(DEVICES)}, got {name!r}; for example "
            "v5p:2x2x2, h200:8, cpu:8, or 2xh200:8 for two slices"
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
        device = device._replace(memory_bytes=machine // (slices * shape[0]))
    return Topology(name, kind, shape, device, slices)


def require_mesh(mesh: MeshConfig, topology: Topology) -> None:
    """Check that the mesh uses every device of the topology, in as many slices.

    Raises:
        ConfigError: it uses more or fewer devices, or another number of slices.
    """
    if mesh.slices != topology.slices:
        slices = topology.slices
        data = "" if mesh.data % slices == 0 else f" --mesh.data {slices}"
        slice_name = topology.of_slice
        if len(topology.shape) == 1 and topology.devices % mesh.slices == 0:  # the same devices, divided otherwise
            slice_name = f"{topology.kind}:{topology.devices // mesh.slices}"
        other = slice_name if mesh.slices == 1 else f"{mesh.slices}x{slice_name}"
        raise ConfigError(
            f"mesh.slices must be the number of slices of the topology, {slices} for {topology.name}, got "
            f"{mesh.slices}; set --mesh.slices {slices}{data}, or choose a topology such as {other}"
        )
    if mesh.devices == topology.devices:
        return
    rest, left = divmod(topology.devices, mesh.tensor * mesh.data)
    remedy = f"set --mesh.fsdp {rest}"
    if left or not rest:
        remedy = f"set --mesh.fsdp {topology.devices_per_slice} and the others to 1"
        if topology.slices > 1:
            remedy = f"set --mesh.fsdp {topology.devices_per_slice}, --mesh.data {topology.slices} and --mesh.tensor 1"
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
