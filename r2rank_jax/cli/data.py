"""`r2rank data`: fetch, prepare, audit, card, synthesize."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from r2rank_jax.cli.arguments import count, seed, whole_number
from r2rank_jax.cli.overrides import dotted_fields, parsed
from r2rank_jax.config import DataConfig
from r2rank_jax.config.checks import checked
from r2rank_jax.data.prepared.settings import (
    DEFAULT_PROTOCOLS,
    LABELS,
    NEGATIVES,
    ON_ERROR,
    PROTOCOLS,
    QUOTES,
    TIME_UNITS,
    Settings,
)
from r2rank_jax.errors import UsageError
from r2rank_jax.files.places import require_file, require_folder

if TYPE_CHECKING:
    from r2rank_jax.data.teacher.protocol import Teacher

TEMPLATE = "template"


def add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` and its actions."""
    group = commands.add_parser("data", help="fetch, prepare, audit, card, synthesize")
    group.set_defaults(carry_out=_data)
    data = group.add_subparsers(dest="action", required=True)
    fetch = data.add_parser("fetch", help="download the source files of a public data set", allow_abbrev=False)
    fetch.add_argument(
        "name",
        help="ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, ml-latest-small, amazon-YEAR/CATEGORY, or "
        "amazon-2023/CATEGORY/5core/last_out; docs/data_sources.md lists all of them",
    )
    fetch.add_argument("--out", type=Path, required=True, help="folder for the source files")
    prepare = data.add_parser("prepare", help="make splits and frozen candidate lists", allow_abbrev=False)
    prepare.add_argument("--source", type=Path, required=True, help="folder with the source files")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    _add_prepare(prepare)
    audit = data.add_parser("audit", help="check a prepared folder; exit code 1 if it has faults", allow_abbrev=False)
    audit.add_argument("directory", type=Path, metavar="DIR", help="folder that `data prepare` wrote")
    card = data.add_parser("card", help="rewrite the card and the figures of a prepared folder", allow_abbrev=False)
    card.add_argument("directory", type=Path, metavar="DIR", help="folder that `data prepare` wrote")
    card.add_argument("--tokenizer", type=Path, help="tokenizer.json; without it, words are counted")
    _add_synthesize(
        data.add_parser(
            "synthesize", help="write training rationales with a teacher", allow_abbrev=False, add_help=False
        )
    )


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument(
        "--kind", help="format of the source, such as amazon-2023 or plain; default: detected from the files"
    )
    prepare.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="the file's own name for a column, for plain files: user=uid",
    )
    prepare.add_argument(
        "--time-unit", choices=TIME_UNITS, help="unit of the source's times; default: read off its rows"
    )
    prepare.add_argument(
        "--quote", choices=QUOTES, help="none: quotation marks are text, for plain files that quote nothing"
    )
    prepare.add_argument("--seed", type=seed, default=0, help="seed of the negatives")
    prepare.add_argument("--candidates", type=count, default=20, help="items per list, positives included")
    prepare.add_argument("--protocols", nargs="+", default=DEFAULT_PROTOCOLS, choices=PROTOCOLS, help="splits to make")
    prepare.add_argument("--k-core", type=whole_number, default=0, help="least interactions of a user or item; 0: off")
    prepare.add_argument("--positive-rating", type=float, help="minimum rating of a positive; default: none")
    prepare.add_argument("--labels", default="binary", choices=LABELS, help="graded: 1 + floor(rating - threshold)")
    prepare.add_argument("--negatives", default="uniform", choices=NEGATIVES, help="how negatives are drawn")
    prepare.add_argument("--run", help="a retriever's run for --negatives run: TREC or JSONL")
    prepare.add_argument("--last-n", type=count, default=3, help="positives per list in protocol last_n")
    prepare.add_argument("--cold-fraction", type=float, default=0.1, help="share of test users in cold_users")
    prepare.add_argument("--bucket-rows", type=count, default=1_000_000, help="interactions per bucket; bounds memory")
    prepare.add_argument("--on-error", default="fatal", choices=ON_ERROR, help="how malformed rows are handled")
    prepare.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="number of processes")
    prepare.add_argument("--ray", action="store_true", help="use Ray Data (needs the extra data-ray)")


def _column(text: str) -> tuple[str, str]:
    """One --column."""
    key, equals, name = text.partition("=")
    if not (key and equals and name):
        raise UsageError(f"--column must be KEY=NAME, as user=reviewer_id, got {text!r}")
    return key, name


def _data(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 if an audit finds faults, or a teacher left lists unfinished."""
    if hasattr(arguments, "out"):
        (require_file if arguments.action == "synthesize" else require_folder)(arguments.out, "--out")
    if arguments.action == "synthesize":
        return _synthesize(arguments, overrides)
    if arguments.action == "fetch":
        from r2rank_jax.data.fetch.fetch import fetch

        fetch(arguments.name, arguments.out)
    elif arguments.action == "prepare":
        from r2rank_jax.data.card.writing import write_card
        from r2rank_jax.data.prepare.prepare import prepare

        columns = [_column(text) for text in arguments.column]
        arguments.columns = dict(columns)
        if len(columns) > len(arguments.columns):
            raise UsageError(
                f"--column must name each key once, got {', '.join(arguments.column)}; remove the duplicate"
            )
        settings = {
            f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings) if hasattr(arguments, f.name)
        }
        prepare(
            arguments.source,
            arguments.out,
            workers=arguments.workers,
            ray=arguments.ray,
            describe=write_card,
            **settings,
        )
    elif arguments.action == "audit":
        from r2rank_jax.data.audit.folder import audit

        findings = audit(arguments.directory)
        print(f"{findings.text()}{arguments.directory}: {findings.faults} faults, {findings.warnings} warnings")
        return 1 if findings.faults else 0
    elif arguments.action == "card":
        from r2rank_jax.data.card.writing import write_card

        write_card(arguments.directory, arguments.tokenizer)
        print(arguments.directory / "card.md")
    return 0


def _add_synthesize(synthesize: argparse.ArgumentParser) -> None:
    synthesize.add_argument("--data", type=Path, required=True, help="folder that `data prepare` wrote")
    synthesize.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    synthesize.add_argument("--split", default="leave_one_out", choices=PROTOCOLS)
    synthesize.add_argument("--lists", type=count, default=4000, help="number of lists to write rationales for")
    synthesize.add_argument("--positives", type=count, default=1, help="relevant items per list")
    synthesize.add_argument("--seed", type=seed, default=0, help="seed of the choice of lists")
    synthesize.add_argument("--history-items", type=count, default=10, help="as data.history_items")
    synthesize.add_argument("--template", default=DataConfig.template, help="must be the data.template of SFT")
    synthesize.add_argument(
        "--teacher",
        default=TEMPLATE,
        metavar="template | batch | URL",
        help="template: sentences from statistics; batch: files for a batch service; URL: an OpenAI-compatible API",
    )
    synthesize.add_argument(
        "-h", "--help", action=_TeacherHelp, nargs=0, help="show all flags, also a language model's"
    )


def _synthesize(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 if the teacher left lists unfinished."""
    from r2rank_jax.data.teacher.synthesize import synthesize

    names = ("split", "template", "lists", "seed", "positives", "history_items")
    settings = {name: getattr(arguments, name) for name in names}
    missing = synthesize(arguments.data, arguments.out, _teacher(arguments, overrides), **settings)
    if missing is not None:
        print(f"r2rank: {missing}", file=sys.stderr)
    return 0 if missing is None else 1


def _teacher(arguments: argparse.Namespace, overrides: list[str]) -> Teacher:
    """The teacher that --teacher names, with its own flags."""
    if arguments.teacher == TEMPLATE:
        from r2rank_jax.data.teacher.template import TemplateTeacher

        _refuse_flags(overrides)
        return TemplateTeacher()
    from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
    from r2rank_jax.data.teacher.language_model.teacher import LanguageModel

    kinds = dotted_fields(TeacherSettings)
    values = parsed(kinds, overrides, "r2rank data synthesize")
    if "model" not in values:
        raise UsageError("--teacher batch and --teacher URL need --model NAME, the teacher's name there; add it")
    settings = TeacherSettings(
        **{name: checked(f"--{name.replace('_', '-')}", value, kinds[name]) for name, value in values.items()}
    )
    for flag, path in (("--journal", settings.journal), ("--batch-out", settings.batch_out)):
        if path is not None:
            require_file(path, flag)
    return LanguageModel(settings, address=arguments.teacher, out=arguments.out, key=_teacher_key(arguments.teacher))


def _refuse_flags(overrides: list[str]) -> None:
    """Refuse the remaining arguments, for a teacher without flags of its own."""
    if overrides:
        raise UsageError(f"unknown argument {overrides[0]!r}; see `r2rank data synthesize --help`")


class _TeacherHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import tyro

        from r2rank_jax.data.teacher.language_model.settings import TeacherSettings

        parser.print_help()
        tyro.cli(TeacherSettings, args=["--help"], prog="\nr2rank data synthesize --teacher URL")


def _teacher_key(url: str) -> str:
    """The endpoint's key. OpenAI's key is sent to OpenAI only; other endpoints need R2RANK_TEACHER_API_KEY."""
    key = os.environ.get("R2RANK_TEACHER_API_KEY", "")
    address = urllib.parse.urlsplit(url)
    is_openai = (address.scheme, address.netloc) == ("https", "api.openai.com")
    return key or (os.environ.get("OPENAI_API_KEY", "") if is_openai else "")
