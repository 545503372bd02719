"""Where devices go in a mesh."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from r2rank_jax.errors import ConfigError
from r2rank_jax.sharding import MESH_AXES, across_slices, part_of_batch, to_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize("shape", [(2, 4, 1), (4, 1, 2), (2, 2, 2)])
def test_only_the_data_axis_crosses_slices(shape):
    devices = [Device(id=i, slice_index=i % 2) for i in range(8)]
    slices = np.vectorize(lambda device: device.slice_index)(across_slices(shape, 2, devices))
    assert slices.shape == shape
    for row in slices:
        assert len(set(row.ravel())) == 1, "fsdp and tensor stay inside a slice"
    assert {int(row.ravel()[0]) for row in slices} == {0, 1}


def test_slices_must_divide_the_data_axis():
    with pytest.raises(ConfigError, match=r"mesh\.data=1 must be a multiple of the number of TPU slices, 2"):
        across_slices((1, 8, 1), 2, [Device(id=i, slice_index=i // 4) for i in range(8)])


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
