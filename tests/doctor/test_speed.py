"""All-reduces and commits are timed on eight devices, and commits are restored bit by bit."""

import re

import jax
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, ModelConfig, RunConfig
from r2rank_jax.doctor import speed
from r2rank_jax.sharding import make_mesh, row_of_each_device, split_parameter, sum_along

CONFIG = RunConfig(name="small", model=ModelConfig(vocabulary=64, width=16, layers=1))
SIZES = MeshConfig(data=2, fsdp=2, tensor=2)


def test_the_timed_program_sums_along_one_axis():
    mesh = make_mesh(SIZES)
    rows = np.arange(8, dtype=np.float32)[:, None]
    x = jax.device_put(rows, row_of_each_device(mesh))
    for axis, name in enumerate(("data", "fsdp", "tensor")):
        cube = rows.reshape(2, 2, 2)
        expected = np.broadcast_to(cube.sum(axis, keepdims=True), cube.shape).reshape(8, 1)
        np.testing.assert_array_equal(sum_along(mesh, name)(x), expected)


def test_parameters_are_split_over_fsdp_and_tensor_and_copied_along_data():
    assert split_parameter(make_mesh(SIZES)).shard_shape((8, 3)) == (2, 3)


@pytest.mark.slow
def test_every_axis_of_several_devices_is_timed(monkeypatch):
    monkeypatch.setattr(speed, "REDUCED_BYTES", {"cpu": 2**20})
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    assert speed.axes_to_reduce(mesh) == ["data", "tensor"]
    (found,) = speed.all_reduce(mesh, "data")
    assert found.check == "all-reduce data" and found.verdict == "ok"
    rate, mib, ms, latency = map(float, re.findall(r"[\d.e-]+(?= GB| MiB| ms)", found.what))
    assert rate == pytest.approx(1.5 * 2**20 * mib / (ms / 1e3) / 1e9, rel=0.02) and latency > 0


def test_the_time_of_a_commit_is_that_of_its_bytes_and_a_constant(monkeypatch):
    monkeypatch.setattr(speed, "state_bytes", lambda _: {"sft": 2**30, "rl": 2**29})
    found = speed._commit_finding(CONFIG, 32 * 2**20, 1.0, 2.0, 0.5)
    assert "32 MiB written and sealed in 2 s, read in 0.5 s (16 and 64 MiB/s)" in found.what
    assert "about 33 s for this run's 1 GiB" in found.what, "1 s and 1 s per 32 MiB"


@pytest.mark.slow
def test_a_commit_of_a_split_state_is_timed_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "COMMITTED_BYTES", {"cpu": 2**20})
    (found,) = speed.commit_and_restore(CONFIG, make_mesh(SIZES), tmp_path)
    assert found.verdict == "ok", found
    one, other = speed._random_state(make_mesh(SIZES), 2**12)[:2]
    assert speed._same([one], [one]) == [] and speed._same([one], [other])[0].verdict == "fault"
