"""`r2rank model` and `r2rank export`: models from and to the Hugging Face format."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from r2rank_jax.cli.arguments import positive_number
from r2rank_jax.cli.run_places import fetched, run_place, stored_run
from r2rank_jax.files.places import require_folder
from r2rank_jax.phases import PHASES


def add_model(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `model` with its actions, and `export`."""
    group = commands.add_parser("model", help="download or import a pretrained model")
    group.set_defaults(carry_out=_model)
    model = group.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    fetch = model.add_parser("fetch", help="download a pretrained model as a Hugging Face folder", allow_abbrev=False)
    fetch.add_argument("name", metavar="NAME", help="name of the model; there is one: smollm2-135m-instruct")
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder to write")
    imported = model.add_parser("import", help="convert a Hugging Face folder to parameters", allow_abbrev=False)
    imported.add_argument("source", metavar="HF_DIR", help="folder with safetensors, or a hub id (org/name)")
    imported.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder to write")
    _add_export(commands.add_parser("export", help="write a run's policy as a Hugging Face folder", allow_abbrev=False))


def _model(arguments: argparse.Namespace, _: list[str]) -> int:
    require_folder(arguments.out, "--out")
    if arguments.action == "fetch":
        from r2rank_jax.pretrained.fetching import fetch

        fetch(arguments.name, arguments.out)
    else:
        from r2rank_jax.pretrained.importing import import_model

        import_model(arguments.source, arguments.out)
    return 0


def _add_export(export: argparse.ArgumentParser) -> None:
    export.set_defaults(carry_out=_export)
    export.add_argument(
        "source", type=run_place, metavar="RUN_OR_MODEL_DIR", help="run directory or its address, or imported model"
    )
    export.add_argument("--out", type=Path, required=True, metavar="HF_DIR", help="new folder to write")
    export.add_argument(
        "--phase", default="rl", choices=PHASES, help="phase whose policy is exported, for a run (default: rl)"
    )
    export.add_argument(
        "--form",
        default="causal-lm",
        choices=("causal-lm", "scorer", "adapters"),
        help="causal-lm writes rationales; scorer scores them (sequence classification with one label); adapters holds "
        "LoRA adapters for PEFT (default: causal-lm)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the stored weights; what rounding changes is measured and printed (default: the type that the "
        "model came in, or float32 if it was trained from scratch or is a trained scorer)",
    )
    export.add_argument(
        "--shard-gib",
        type=positive_number,
        default=4.0,
        metavar="GIB",
        help="largest size of one file of a whole model, in GiB (default: 4)",
    )


def _export(arguments: argparse.Namespace, _: list[str]) -> int:
    require_folder(arguments.out, "--out")
    from r2rank_jax.pretrained.exporting import export

    options = {name: getattr(arguments, name) for name in ("phase", "form", "dtype", "shard_gib")}
    stored = stored_run(arguments, "source", use="read", phases=[arguments.phase])
    with nullcontext() if stored is None else fetched(stored):
        export(arguments.source, arguments.out, **options)
    return 0
