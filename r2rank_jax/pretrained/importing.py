"""`r2rank model import`: convert a Hugging Face directory to our parameters.

Everything is checked before anything is written, and no code in the directory is ever run, except for the chat
template, which is rendered once, in a process with limits.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r2rank_jax.config import MeshConfig, ModelConfig
from r2rank_jax.data.prompts.frame import Frame, reads_the_clock, render_frame
from r2rank_jax.errors import PretrainedError
from r2rank_jax.files.atomic import replacing_folder
from r2rank_jax.files.checksums import write_seal
from r2rank_jax.model.hf_config import architecture_of, config_from_hf, positions_from_hf
from r2rank_jax.model.hf_names import LANGUAGE_HEAD, SCORE_HEAD, Tensor, ignorable, tensors
from r2rank_jax.pretrained.folder import TOKENIZER_FOLDER, ModelCard, ModelOrigin, save_params, write_model_card
from r2rank_jax.pretrained.tokenizer_files import COPIED, copy_tokenizer, read_json, read_special_ids
from r2rank_jax.pretrained.weights import (
    DTYPES,
    INDEX,
    SCORE_FILE,
    Stored,
    dtype_of,
    read_header,
    sha256_of,
    stored_tensors,
)
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.types import Array, Params

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FROM_HUB = ("config.json", "model*.safetensors", INDEX, SCORE_FILE, *COPIED, "README.md", "LICENSE*")


def import_model(source: str, out: Path) -> ModelCard:
    """Read a Hugging Face directory and write the folder that `pretrained.folder` describes.

    Args:
        source: a directory, or a hub id ("org/name") to download through `huggingface_hub`.
        out: folder to write. It must be empty or not exist, and it does not exist after a failure.

    Returns:
        The description of the imported model.

    Raises:
        ConfigError: the model is not supported, or the tokenizer does not belong to the model.
        DataError: the chat template gives no frame, see `render_frame`.
        PretrainedError: files are missing, damaged or pickled, or the tensors are not those of the architecture.
    """
    require_free(out)
    folder = locate(source)
    values = read_json(folder / "config.json")
    config = config_from_hf(values)
    family, form = architecture_of(values)
    stored = stored_tensors(folder)
    weights = dict(stored)
    if form == "causal-lm" and (folder / SCORE_FILE).is_file():
        stored |= read_header(folder / SCORE_FILE)
    wanted = tensors(config, language_head=True, score_head=SCORE_HEAD in stored or form == "scorer")
    require_tensors(wanted, stored, config)
    special = read_special_ids(folder, values, config.vocabulary)
    dtype = dtype_of(weights[tensor.name] for tensor in wanted if tensor.name in weights)
    card = ModelCard(
        config=config,
        pad=special.pad,
        stop=special.stop,
        source=ModelOrigin(
            architecture=values["architectures"][0],
            sha256=sha256_of(stored),
            positions=positions_from_hf(values),
            bos=special.bos,
            hub_id=None if Path(source).is_dir() else source,
            licence=license_of(folder),
            dtype=dtype,
        ),
        frame=_frame(folder),
    )
    mesh = make_mesh(MeshConfig(fsdp=jax.device_count()))
    params = read_params(wanted, stored, abstract_params(mesh, config))
    with replacing_folder(out) as partial:
        write_model_card(partial, card)
        copy_tokenizer(folder, partial / TOKENIZER_FOLDER)
        copy_license(folder, partial)
        save_params(partial, params)
        write_seal(partial)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{out}: {card.source.architecture}, {size:,} parameters, {family} family, weights in {dtype}")
    return card


def _frame(folder: Path) -> Frame:
    """Render the chat template of the files that are copied, because a run reads no others."""
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer(folder, Path(scratch))
        frame = render_frame(Path(scratch), folder)
        if reads_the_clock(Path(scratch)):
            kept = json.dumps(frame.before, ensure_ascii=False)
            print(f"r2rank: the chat template reads the clock; prompts keep the text of this import: {kept}")
        return frame


def locate(source: str) -> Path:
    """Return the directory `source`, or download it if it is not a directory but a hub id.

    Raises:
        PretrainedError: there is no such directory, and nothing could be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise PretrainedError(f"HF_DIR must be a directory or a hub id (org/name), got {source}, which is neither")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=list(_FROM_HUB)))
    except Exception as error:  # connection, name, permission, offline mode: many exception types of several packages
        raise PretrainedError(
            f"{source} is not a directory, and as a hub id it could not be downloaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); check the name and the network, or copy "
            "the model's files to this machine and name their directory"
        ) from error


def require_free(out: Path) -> None:
    """Raise `PretrainedError` if an output folder is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PretrainedError(f"--out must be a new or empty folder, got {out}, which is in use; choose another")


def require_tensors(wanted: Sequence[Tensor], stored: Mapping[str, Stored], config: ModelConfig) -> None:
    """Check the names, shapes and types of a whole checkpoint from its headers.

    Raises:
        PretrainedError: the message lists tensors that are missing, unknown, or of the wrong shape or type.
    """
    by_name = {tensor.name: tensor for tensor in wanted}
    missing = [name for name in by_name if name not in stored]
    extra = [name for name in stored if name not in by_name and not ignorable(name, config)]
    shared = [(tensor, stored[tensor.name]) for tensor in wanted if tensor.name in stored]
    shapes = [f"{t.name} must be {list(t.shape)}, got {list(s.shape)}" for t, s in shared if t.shape != s.shape]
    types = [f"{t.name} is {s.dtype}" for t, s in shared if s.dtype not in DTYPES]
    problems = [f"missing: {_some(missing)}"] * bool(missing) + [f"unknown: {_some(extra)}"] * bool(extra)
    problems += [f"shapes: {_some(shapes)}"] * bool(shapes)
    problems += [f"types other than {', '.join(DTYPES)}: {_some(types)}"] * bool(types)
    if not problems:
        return
    remedy = "use the weights that belong to this config.json"
    if missing == [LANGUAGE_HEAD] and SCORE_HEAD in stored:
        remedy = "a scorer whose embeddings are not tied cannot write rationales: import its CausalLM"
    raise PretrainedError(f"the tensors must match config.json; {'; '.join(problems)}. Remedy: {remedy}")


def read_params(wanted: Sequence[Tensor], stored: Mapping[str, Stored], like: Params) -> Params:
    """Stream tensors from disk into sharded arrays, one at a time.

    The host holds one tensor in its stored type. The devices hold the parameters and one copy of that tensor.

    A scoring head that is not among the tensors is initialized to zeros. The scale of hidden states differs between
    pretrained models by orders of magnitude, so random weights of a fixed scale would give nearly equal scores in one
    model and extreme ones in another. With zeros every ranking is equally likely, and the head's gradient is not zero.

    Args:
        wanted: tensors from `tensors`, already checked.
        stored: from `stored_tensors`.
        like: abstract parameters with shardings.
    """
    leaves: dict[tuple[str, ...], Array] = {}
    places: dict[tuple[str, ...], jax.ShapeDtypeStruct] = {
        tuple(part.key for part in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    for path, place in places.items():
        sources = [tensor for tensor in wanted if tensor.path == path]
        leaves[path] = _stacked(sources, stored, place) if sources else _zeros(place)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[tuple(part.key for part in path)], like)


def _zeros(place: jax.ShapeDtypeStruct) -> Array:
    return jax.jit(lambda: jnp.zeros(place.shape, place.dtype), out_shardings=place.sharding)()


def _stacked(sources: Sequence[Tensor], stored: Mapping[str, Stored], place: jax.ShapeDtypeStruct) -> Array:
    """Read one leaf. If it has layers, they are written into one array in place."""
    (first, *_), sharding = sources, place.sharding
    if first.layer is None:
        piece = jax.device_put(first.to_ours(stored[first.name].read()), sharding)
        return jax.jit(lambda x: x.astype(place.dtype), out_shardings=sharding)(piece)
    assert isinstance(sharding, NamedSharding)
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))

    def put(whole: Array, piece: Array, layer: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(whole, piece.astype(place.dtype), layer, 0)

    put_in_place = jax.jit(put, donate_argnums=0, out_shardings=sharding)
    whole = _zeros(place)
    for tensor in sources:
        piece = jax.device_put(tensor.to_ours(stored[tensor.name].read()), of_layer)
        whole = jax.block_until_ready(
            put_in_place(whole, piece, jnp.int32(tensor.layer))
        )  # otherwise reading would run ahead and hold more tensors
    return whole


def license_of(folder: Path) -> str | None:
    """The license that a model's README names in its YAML header (between lines of ---)."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    match = re.search(r"^license:[ \t]*(\S+)[ \t]*$", head[1], re.MULTILINE) if head else None
    return match[1].strip("\"'") if match else None


def copy_license(source: Path, target: Path) -> None:
    """Copy the text of the base model's license, which may require that its text be included."""
    for path in sorted(source.glob("LICENSE*")):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 8
    return ", ".join(names[:8]) + (f" and {rest} more" if rest > 0 else "")
