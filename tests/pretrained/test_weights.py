"""Safetensors files: those of the format's own package and ours are alike; what is broken is refused."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from r2rank_jax.errors import PretrainedError
from r2rank_jax.pretrained.weights import read_header, sha256_of, stored_tensors, write_sharded

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 3, 4), "nothing": (0, 3), "one": ()}


def values(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_reads_what_the_package_writes(tmp_path, dtype):
    save_file(values(dtype), tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = stored_tensors(tmp_path)
    for name, wanted in values(dtype).items():
        found = stored[name].read()
        assert found.dtype == wanted.dtype and stored[name].shape == found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("limit", "files"), [(2**20, 1), (100, 2), (1, 5)])
def test_the_package_reads_what_is_written(tmp_path, dtype, limit, files):
    """Bytes at float32: 60, 28, 96, 0, 4. At most 100 a file: a and b, c and the rest. At most 1: each its own."""
    write_sharded(tmp_path, SHAPES, values().__getitem__, dtype, limit * np.dtype(dtype).itemsize // 4 or 1)
    found = sorted(tmp_path.glob("*.safetensors"))
    assert len(found) == files
    read = {}
    for path in found:
        read |= load_file(path)
        with safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        assert path.stat().st_size % 2 == 0
    assert set(read) == set(SHAPES)
    for name, wanted in values(dtype).items():
        assert read[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read[name], wanted)
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(SHAPES)
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in values(dtype).values())
    again = stored_tensors(tmp_path)
    np.testing.assert_array_equal(again["c"].read(), values(dtype)["c"])
    assert sha256_of(again) == hashlib.sha256(b"".join(p.read_bytes() for p in found)).hexdigest()


def test_a_tensor_of_another_shape_than_announced_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a must have shape \(3, 5\), got \(5, 3\)"):
        write_sharded(tmp_path, {"a": (3, 5)}, lambda _: np.zeros((5, 3)), "float32", 1000)


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must start with a header of 8 bytes, got a file of 0; it is cut short"),
        (b"\x00" * 5, "must start with a header of 8 bytes, got a file of 5"),
        (header(b"{}")[:-1], "must start with a header of 2 bytes, got a file of 9"),
        ((2**60).to_bytes(8, "little") + b"{}", r"got a file of 10; it is cut short or no safetensors file"),
        (header(b"{]"), "has a header that cannot be read"),
        (header(b"[1]"), "has a header that cannot be read"),
        (header(b'{"a": {"dtype": "F32", "shape": [2]}}'), "has a header that cannot be read"),
        (
            header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}', b"1234567"),
            r"F32 of shape \[2\] in 7",
        ),
        (header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"1234"), "it is cut short"),
        (header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"12345"), "it is too long"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value) and "download it again" in str(error.value)


def test_an_index_that_is_wrong_is_refused(tmp_path):
    write_sharded(tmp_path, SHAPES, values().__getitem__, "float32", 100)
    path = tmp_path / "model.safetensors.index.json"
    right = json.loads(path.read_text())

    def refused(message, **weight_map):
        path.write_text(json.dumps({"weight_map": right["weight_map"] | weight_map}))
        with pytest.raises(PretrainedError, match=message):
            stored_tensors(tmp_path)

    refused(r"a is not where it says \(1 in all\)", a=right["weight_map"]["c"])
    refused(r"other is not where it says", other=right["weight_map"]["c"])
    refused(r"names \.\./model\.safetensors, which is not in", a="../model.safetensors")
    del right["weight_map"]["b"]
    refused(r"b is not where it says")
    path.write_text("[]")
    with pytest.raises(PretrainedError, match="cannot be read"):
        stored_tensors(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(
        PretrainedError, match=r"must hold model.safetensors or model.safetensors.index.json, got nothing"
    ):
        stored_tensors(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(PretrainedError, match=r"got pytorch_model-00001-of-00002.bin .*save_pretrained\(NEW_DIR\)"):
        stored_tensors(tmp_path)
