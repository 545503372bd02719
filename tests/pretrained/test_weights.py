"""Safetensors files: ours and those of the safetensors package are interchangeable, and damaged ones are refused."""

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
def test_we_read_what_the_package_writes(tmp_path, dtype):
    save_file(values(dtype), tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = stored_tensors(tmp_path)
    for name, expected in values(dtype).items():
        tensor = stored[name].read()
        assert tensor.dtype == expected.dtype and stored[name].shape == tensor.shape == expected.shape
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("limit", "files"), [(2**20, 1), (100, 2), (1, 5)])
def test_the_package_reads_what_we_write(tmp_path, dtype, limit, files):
    """The tensors take 60, 28, 96, 0 and 4 bytes in float32.

    A limit of 100 bytes gives two files: a and b; c and the rest. A limit of 1 gives a file per tensor.
    """
    write_sharded(tmp_path, SHAPES, values().__getitem__, dtype, limit * np.dtype(dtype).itemsize // 4 or 1)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) == files
    read = {}
    for path in paths:
        read |= load_file(path)
        with safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        assert path.stat().st_size % 2 == 0
    assert set(read) == set(SHAPES)
    for name, expected in values(dtype).items():
        assert read[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read[name], expected)
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(SHAPES)
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in values(dtype).values())
    stored = stored_tensors(tmp_path)
    np.testing.assert_array_equal(stored["c"].read(), values(dtype)["c"])
    assert sha256_of(stored) == hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()


def test_a_tensor_of_the_wrong_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a must have shape \(3, 5\), got \(5, 3\)"):
        write_sharded(tmp_path, {"a": (3, 5)}, lambda _: np.zeros((5, 3)), "float32", 1000)


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must start with a header of 8 bytes, got a file of 0; it is truncated"),
        (b"\x00" * 5, "must start with a header of 8 bytes, got a file of 5"),
        (header(b"{}")[:-1], "must start with a header of 2 bytes, got a file of 9"),
        ((2**60).to_bytes(8, "little") + b"{}", r"got a file of 10; it is truncated or not a safetensors file"),
        (header(b"{]"), "has a header that cannot be read"),
        (header(b"[1]"), "has a header that cannot be read"),
        (header(b'{"a": {"dtype": "F32", "shape": [2]}}'), "has a header that cannot be read"),
        (
            header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}', b"1234567"),
            r"F32 of shape \[2\] in 7",
        ),
        (header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"1234"), "it is truncated"),
        (header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"12345"), "it is too long"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value) and "download it again" in str(error.value)


def test_a_wrong_index_is_refused(tmp_path):
    write_sharded(tmp_path, SHAPES, values().__getitem__, "float32", 100)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())

    def refused(message, **weight_map):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | weight_map}))
        with pytest.raises(PretrainedError, match=message):
            stored_tensors(tmp_path)

    refused(r"a is not in the file given by the index \(1 misplaced in all\)", a=index["weight_map"]["c"])
    refused(r"other is not in the file", other=index["weight_map"]["c"])
    refused(r"names \.\./model\.safetensors, which is not in", a="../model.safetensors")
    del index["weight_map"]["b"]
    refused(r"b is not in the file")
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


def test_the_index_decides_and_other_weights_are_named(tmp_path, capsys):
    write_sharded(tmp_path, SHAPES, values().__getitem__, "float32", 100)
    assert stored_tensors(tmp_path)["a"].file.name == "model-00001-of-00002.safetensors"
    assert not capsys.readouterr().err
    zeros = {name: np.zeros_like(value) for name, value in values().items()}
    save_file(zeros, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    for name, expected in values().items():
        np.testing.assert_array_equal(stored[name].read(), expected)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "model.safetensors in " in warning and "is ignored, because" in warning

    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"or delete model.safetensors.index.json to read model.safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert not stored_tensors(tmp_path)["a"].read().any()
    assert "model-00001-of-00002.safetensors in " in capsys.readouterr().err
