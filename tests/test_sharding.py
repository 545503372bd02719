"""Where devices go in a mesh."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.sharding import MESH_AXES, across_slices, make_mesh, part_of_batch, to_mesh
from r2rank_jax.slices import grouped_by_slice


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def devices_in(slices, processes, platform="cpu"):
    """A device for every pair of slice index and process index."""
    pairs = zip(slices, processes, strict=True)
    return [Device(id=i, slice_index=s, process_index=p, platform=platform) for i, (s, p) in enumerate(pairs)]


@pytest.mark.parametrize("shape", [(2, 4, 1), (4, 1, 2), (2, 2, 2), (8, 1, 1)])
@pytest.mark.parametrize(
    "devices",
    [
        [Device(id=i, slice_index=i % 2, platform="tpu", coords=(i // 2 % 2, i // 4, 0)) for i in range(8)],
        devices_in([0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], "gpu"),
        devices_in([0] * 8, [0, 0, 1, 1, 2, 2, 3, 3], "gpu"),
    ],
    ids=["TPU slices", "machines", "processes"],
)
def test_only_the_data_axis_crosses_slices(shape, devices):
    groups = grouped_by_slice(2, devices)
    slice_of = {device.id: i for i, group in enumerate(groups) for device in group}
    slices = np.vectorize(lambda device: slice_of[device.id])(across_slices(shape, groups))
    assert slices.shape == shape
    for row in slices:
        assert len(set(row.ravel())) == 1, "fsdp and tensor stay inside a slice"
    assert [int(row.ravel()[0]) for row in slices] == [0] * (shape[0] // 2) + [1] * (shape[0] // 2)


@pytest.mark.parametrize(
    ("slices", "devices", "expected"),
    [
        (1, devices_in([0] * 4, range(4)), [[0, 1, 2, 3]]),
        # The index decides, not the process: two processes on each machine, or one with the devices of two slices.
        (2, devices_in([0, 1, 0, 1], [0, 0, 1, 1]), [[0, 2], [1, 3]]),
        (2, devices_in([3, 3, 2, 2], [0] * 4), [[2, 3], [0, 1]]),
        # A fast network may join machines: they need not be declared, and several may form a slice.
        (1, devices_in([0, 0, 1, 1], [0, 0, 1, 1]), [[0, 1, 2, 3]]),
        (2, devices_in([0, 1, 2, 3], range(4)), [[0, 1], [2, 3]]),
        # Without an index, consecutive processes share a machine, in whatever order their devices are listed.
        (2, devices_in([-1] * 4, [3, 2, 1, 0]), [[3, 2], [1, 0]]),
        (2, [SimpleNamespace(id=i, process_index=i, platform="gpu") for i in range(4)], [[0, 1], [2, 3]]),
        (
            4,
            [SimpleNamespace(id=i, process_index=0, platform="cpu") for i in range(8)],
            [[0, 1], [2, 3], [4, 5], [6, 7]],
        ),
    ],
)
def test_devices_of_a_slice_belong_together(slices, devices, expected):
    assert [[device.id for device in group] for group in grouped_by_slice(slices, devices)] == expected


@pytest.mark.parametrize(
    ("slices", "devices", "message"),
    [
        (
            1,
            devices_in([0] * 4 + [1] * 4, [0] * 8, "tpu"),
            "of the devices, 2, got 1; set mesh.slices to 2 and mesh.data to 2 or",
        ),
        (4, devices_in([0] * 4 + [1] * 4, range(8), "tpu"), "of the devices, 2, got 4; set mesh.slices to 2"),
        (2, devices_in([0] * 4, range(4), "tpu"), "of the devices, 1, got 2; set mesh.slices to 1$"),
        (2, devices_in([0, 0, 0, 1], [0] * 4, "tpu"), "equally many devices, got 3, 1; use slices of one size"),
        (
            2,
            devices_in([0] * 4, [0] * 4, "gpu"),
            "divide the number of processes, 1, got 2; set mesh.slices to the number",
        ),
        (2, devices_in([0] * 3, range(3)), "divide the number of processes, 3, got 2; set mesh.slices to the number"),
        (2, devices_in([0, 1, 2], [0] * 3), "divide the number of machines, 3, got 2; set mesh.slices to the number"),
        (2, devices_in([0] * 4, [0, 0, 0, 1]), "equally many devices, got 3, 1; use slices of one size"),
    ],
)
def test_slices_that_are_declared_wrongly(slices, devices, message):
    with pytest.raises(ConfigError, match=message):
        grouped_by_slice(slices, devices)


def test_slices_of_fake_devices_hold_consecutive_ones():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, slices=2))
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))
    with pytest.raises(ConfigError, match=r"set mesh\.slices to the number of machines"):
        grouped_by_slice(4, jax.devices()[:6])


def mesh_of_processes(shape, processes):
    """A mesh whose devices belong to these processes, in order."""
    devices = np.array([Device(id=i, slice_index=0, process_index=p) for i, p in enumerate(processes)], object)
    return SimpleNamespace(devices=devices.reshape(shape), shape=dict(zip(MESH_AXES, shape)), size=len(processes))


@pytest.mark.parametrize(
    ("shape", "processes", "places"),
    [
        ((1, 1, 1), [0], [(0,)]),
        ((4, 1, 1), [0, 0, 1, 1], [(0, 1), (2, 3)]),
        ((2, 1, 2), [0, 0, 1, 1], [(0,), (1,)]),
        ((1, 1, 4), [0, 0, 1, 1], [(0,), (0,)]),  # heads are split over both processes, which read the same users
        ((2, 1, 2), [0, 1, 0, 1], [(0, 1), (0, 1)]),
        ((1, 4, 1), [0, 1, 1, 0], [(0, 3), (1, 2)]),  # as the hosts of a torus lie
        ((2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0,), (0,), (1,), (1,)]),
    ],
)
def test_a_process_reads_the_users_of_its_devices(monkeypatch, shape, processes, places):
    for process, expected in enumerate(places):
        monkeypatch.setattr("jax.process_index", lambda: process)  # noqa: B023
        assert part_of_batch(mesh_of_processes(shape, processes)) == (expected, shape[0] * shape[1])


def test_rows_come_to_the_devices_they_were_brought_for():
    """The devices of one process in any order: the global array is the batch."""
    devices = np.array(jax.devices())[[3, 0, 2, 1]].reshape(2, 2, 1)
    rows = np.arange(24).reshape(8, 3)
    found = to_mesh(jax.sharding.Mesh(devices, MESH_AXES), {"x": rows})["x"]
    np.testing.assert_array_equal(found, rows)
    assert found.addressable_shards[0].data.shape == (2, 3)
