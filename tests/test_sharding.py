"""Where devices go in a mesh."""

import dataclasses

import numpy as np
import pytest

from r2rank_jax.config import ConfigError
from r2rank_jax.sharding import across_slices


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
    with pytest.raises(ConfigError, match=r"mesh\.data=1 must be a multiple of the 2 slices"):
        across_slices((1, 8, 1), 2, [Device(id=i, slice_index=i // 4) for i in range(8)])
