"""`r2rank model` and `r2rank export`: Hugging Face in and out."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `model` with its actions, and `export`."""
    group = commands.add_parser("model", help="fetch, import")
    group.set_defaults(carry_out=_model)
    model = group.add_subparsers(dest="action", required=True)
    fetch = model.add_parser("fetch", help="get a pretrained model as a Hugging Face folder", allow_abbrev=False)
    fetch.add_argument("name", help="smollm2-135m-instruct")
    fetch.add_argument("--out", type=Path, required=True, help="new folder to write")
    imported = model.add_parser("import", help="Hugging Face folder -> parameters", allow_abbrev=False)
    imported.add_argument("source", metavar="HF_DIR", help="folder with safetensors, or a hub id (org/name)")
    imported.add_argument("--out", type=Path, required=True, help="new folder to write")
    _add_export(commands.add_parser("export", help="run or model -> Hugging Face folder", allow_abbrev=False))


def _model(known: argparse.Namespace, _: list[str]) -> int:
    if known.action == "fetch":
        from r2rank_jax.pretrained.fetching import fetch

        fetch(known.name, known.out)
    else:
        from r2rank_jax.pretrained.importing import import_model

        import_model(known.source, known.out)
    return 0


def _add_export(export: argparse.ArgumentParser) -> None:
    export.set_defaults(carry_out=_export)
    export.add_argument("source", type=Path, metavar="RUN_OR_MODEL_DIR")
    export.add_argument("--out", type=Path, required=True, help="directory to write")
    export.add_argument("--phase", default="rl", choices=("sft", "sft_continued", "rl"), help="of a run directory")
    export.add_argument(
        "--form",
        default="causal-lm",
        choices=("causal-lm", "scorer", "adapters"),
        help="writes rationales; scores them (sequence classification with one label); adapters as PEFT reads them",
    )
    export.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the stored weights")
    export.add_argument("--shard-gib", type=float, default=4.0, help="most that one file of a whole model may hold")


def _export(known: argparse.Namespace, _: list[str]) -> int:
    from r2rank_jax.pretrained.exporting import export

    options = {name: getattr(known, name) for name in ("phase", "form", "dtype", "shard_gib")}
    export(known.source, known.out, **options)
    return 0
