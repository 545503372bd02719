"""Read and write safetensors files, one tensor at a time.

The format is a length (8 bytes, little-endian), that many bytes of JSON (name -> dtype, shape, [start, end) in the
data), then the data. The `safetensors` package maps whole files into memory, and writes a file from a dictionary with
all of its tensors. A model that fills the accelerators may not fit into the host's memory at all, so this module
handles one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from r2rank_jax.errors import PretrainedError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SCORE_FILE = "score_head.safetensors"
"""File next to an exported CausalLM with its scoring head, for which transformers' CausalLM has no parameter."""
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
StoredDtype = Literal["float32", "bfloat16", "float16"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_LONGEST_HEADER = 100_000_000  # bytes; the limit in the safetensors package
_BYTES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Stored:
    """Where a tensor is stored."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""

    def read(self) -> np.ndarray:
        """Read the tensor in its stored type."""
        kind = DTYPES[self.dtype]
        return np.fromfile(self.file, kind, math.prod(self.shape), offset=self.start).reshape(self.shape)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Locate every tensor of a checkpoint by reading only the files' headers.

    If there is an index, it decides which files are read. A warning names the other files of weights, which a merged or
    an older copy of the model may have left in the folder.

    Args:
        folder: folder with `model.safetensors.index.json` and the files that it names, or with `model.safetensors`.

    Raises:
        PretrainedError: there are no such files, or pickles instead, or a file is truncated or inconsistent.
    """
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise PretrainedError(_nothing_to_read(folder))
        _warn_of_other_weights(folder, {SINGLE}, f"there is no {INDEX}")
        return read_header(folder / SINGLE)
    index = _weight_map(folder / INDEX)
    stored: dict[str, Stored] = {}
    for file in sorted(set(index.values())):
        if Path(file).name != file or not (folder / file).is_file():
            whole = f", or delete {INDEX} to read {SINGLE}" if (folder / SINGLE).is_file() else ""
            raise PretrainedError(f"{INDEX} names {file}, which is not in {folder}; download the model again{whole}")
        stored |= read_header(folder / file)
    _warn_of_other_weights(folder, set(index.values()), f"{INDEX} does not name it")
    misplaced = sorted(name for name, file in index.items() if name not in stored or stored[name].file.name != file)
    misplaced += sorted(set(stored) - set(index))
    if misplaced:
        raise PretrainedError(
            f"{INDEX} and the files it names must agree, but {misplaced[0]} is not in the file given by the index "
            f"({len(misplaced)} misplaced in all); download the model again"
        )
    return stored


def read_header(path: Path) -> dict[str, Stored]:
    """Locate the tensors of one safetensors file.

    Raises:
        PretrainedError: the header is damaged, or the file's size does not match the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise PretrainedError(
                f"{path} must start with a header of {length if size >= 8 else 8} bytes, got a file of {size}; it is "
                "truncated or not a safetensors file: download it again"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            stored = {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PretrainedError(f"{path} has a header that cannot be read ({error!r}); download it again") from error
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != end:
        raise PretrainedError(
            f"{path} must hold {end} bytes according to its header, got {size}; it is "
            f"{'truncated' if size < end else 'too long'}: download it again"
        )
    return stored


def dtype_of(stored: Iterable[Stored]) -> StoredDtype:
    """The type of a checkpoint's tensors; float32, which holds every value of the others, if they have several."""
    types = {str(DTYPES[tensor.dtype]) for tensor in stored}
    return next((dtype for dtype in get_args(StoredDtype) if types == {dtype}), "float32")


def sha256_of(stored: Mapping[str, Stored]) -> str:
    """SHA-256 of the files' bytes, concatenated in order of their names: `cat *.safetensors | sha256sum`."""
    digest = hashlib.sha256()
    for path in sorted({tensor.file for tensor in stored.values()}):
        with path.open("rb") as file:
            while block := file.read(_BYTES_AT_ONCE):
                digest.update(block)
    return digest.hexdigest()


def write_sharded(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    value: Callable[[str], Any],
    dtype: StoredDtype,
    shard_bytes: int,
) -> None:
    """Write `model.safetensors`, or several files and their index.

    Args:
        folder: folder to write to.
        shapes: name -> shape, in the order of writing.
        value: returns a tensor by name; called for one tensor at a time.
        dtype: type of the stored tensors.
        shard_bytes: maximum size of the tensors in a file, unless a single tensor is larger.
    """
    width = np.dtype(dtype).itemsize
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        needed = math.prod(shape) * width
        if needed > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= needed
    if len(shards) == 1:
        write_file(folder / SINGLE, shapes, value, dtype)
        return
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        write_file(folder / file, {name: shapes[name] for name in names}, value, dtype)
    index = {
        "metadata": {"total_size": sum(math.prod(shape) for shape in shapes.values()) * width},
        "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(
    path: Path, shapes: Mapping[str, tuple[int, ...]], value: Callable[[str], Any], dtype: StoredDtype
) -> None:
    """Write one safetensors file. The arguments are those of `write_sharded`."""
    kind = np.dtype(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * kind.itemsize
        code = next(code for code, dtype_of_code in DTYPES.items() if dtype_of_code == kind)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            array = np.asarray(value(name), dtype=kind, order="C")
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
            array.tofile(file)


def _warn_of_other_weights(folder: Path, read: set[str], reason: str) -> None:
    for path in sorted(folder.glob("model*.safetensors")):
        if path.name not in read:
            print(f"r2rank: {path.name} in {folder} is ignored, because {reason}", file=sys.stderr)


def _stored(path: Path, data: int, entry: dict[str, Any]) -> Stored:
    start, end = entry["data_offsets"]
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{dtype} of shape {list(shape)} in {end - start} bytes")
    return Stored(path, dtype, shape, data + start)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PretrainedError(f"{index} cannot be read ({error!r}); download it again") from error


def _nothing_to_read(folder: Path) -> str:
    pickles: Sequence[str] = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"weights must be safetensors, got {', '.join(pickles)} in {folder}: reading a pickle can run code that "
            "somebody put into it. Use a revision of the model that has safetensors, or, if you trust the file, "
            "convert it with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    contents = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    return f"{folder} must hold {SINGLE} or {INDEX}, got {contents}; download the model again"
