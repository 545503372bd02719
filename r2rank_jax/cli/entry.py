"""The `r2rank` command; the only reader of flags and of the environment.

r2rank data fetch NAME --out DIR
r2rank data prepare --source DIR --out DIR [--seed 0] [--candidates 20] [--protocols ...] [--k-core 5] ...
r2rank data audit DIR
r2rank data card DIR [--tokenizer FILE]
r2rank data synthesize --data DIR --out FILE [--split leave_one_out] [--lists 4000] [--positives 1] [--seed 0]
r2rank data synthesize ... --teacher URL --model NAME [--show-label retry] [--budget-usd 20] [--any-setting value]
r2rank data synthesize ... --teacher batch --model NAME --batch-out FILE | --batch-in FILE
r2rank model fetch NAME --out DIR
r2rank model import HF_DIR --out DIR
r2rank export RUN_OR_MODEL_DIR --out HF_DIR [--phase rl] [--form causal-lm] [--dtype bfloat16] [--shard-gib 4]
r2rank sft | rl | eval | rank --config configs/X.py [--run-dir DIR] [--any.field value]
r2rank plan --config configs/X.py --topology v5p:4x4x8 | v6e:2x4 | h200:8 | cpu:8 [--backend abstract | compile]
r2rank report --run-dir DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import tyro

from r2rank_jax.config import RunConfig
from r2rank_jax.data.prepared.settings import DEFAULT_PROTOCOLS, LABELS, NEGATIVES, ON_ERROR, PROTOCOLS, Settings
from r2rank_jax.errors import R2RankError

TEMPLATE = "template"


class _UsageError(R2RankError, ValueError):
    """A command line that cannot be carried out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Expected failures end in one line on stderr and exit code 2, not in a traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    known, overrides = parser.parse_known_args(args)
    if overrides and not hasattr(known, "config") and getattr(known, "teacher", TEMPLATE) == TEMPLATE:
        parser.error(f"unknown argument {overrides[0]!r}; see `r2rank {' '.join(args[:2])} --help`")
    try:
        if known.command == "data":
            return _data(known, overrides)
        if known.command == "model":
            _model(known)
        elif known.command == "export":
            from r2rank_jax.pretrained.exporting import export

            options = {name: getattr(known, name) for name in ("phase", "form", "dtype", "shard_gib")}
            export(known.source, known.out, **options)
        elif known.command == "report":
            from r2rank_jax.report.build import build

            print(build(_existing_run(known.run_dir)))
        elif known.command == "plan":
            return _plan(known, overrides)
        else:
            _run(known, overrides)
    except (R2RankError, FloatingPointError) as error:
        print(f"r2rank: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="r2rank", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="fetch, prepare, audit, card, synthesize").add_subparsers(
        dest="action", required=True
    )
    fetch = data.add_parser("fetch", help="get a data set's source files", allow_abbrev=False)
    fetch.add_argument(
        "name",
        help="ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, ml-latest-small, amazon-YEAR/CATEGORY, or "
        "amazon-2023/CATEGORY/5core/last_out; docs/data_sources.md has all",
    )
    fetch.add_argument("--out", type=Path, required=True, help="folder for the source files")
    prepare = data.add_parser("prepare", help="source files -> splits and frozen candidates", allow_abbrev=False)
    prepare.add_argument("--source", type=Path, required=True, help="folder with the source files")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    _add_prepare(prepare)
    audit = data.add_parser("audit", help="check a prepared folder; exit code 1 if it is faulty", allow_abbrev=False)
    audit.add_argument("directory", type=Path, metavar="DIR", help="folder that `data prepare` wrote")
    card = data.add_parser("card", help="write a prepared folder's card and figures again", allow_abbrev=False)
    card.add_argument("directory", type=Path, metavar="DIR", help="folder that `data prepare` wrote")
    card.add_argument("--tokenizer", type=Path, help="a tokenizer.json, to count tokens; default: characters and words")
    _add_synthesize(data.add_parser("synthesize", help="worked rationales", allow_abbrev=False, add_help=False))

    model = commands.add_parser("model", help="fetch, import").add_subparsers(dest="action", required=True)
    fetch = model.add_parser("fetch", help="get a pretrained model as a Hugging Face folder", allow_abbrev=False)
    fetch.add_argument("name", help="smollm2-135m-instruct")
    fetch.add_argument("--out", type=Path, required=True, help="new folder to write")
    imported = model.add_parser("import", help="Hugging Face folder -> parameters", allow_abbrev=False)
    imported.add_argument("source", metavar="HF_DIR", help="folder with safetensors, or a hub id (org/name)")
    imported.add_argument("--out", type=Path, required=True, help="new folder to write")
    _add_export(commands.add_parser("export", help="run or model -> Hugging Face folder", allow_abbrev=False))

    about = {
        "sft": "learn from worked rationales",
        "rl": "learn from NDCG",
        "eval": "compare all systems on the held-out test lists",
        "rank": "rank your own candidates, with rationales",
        "plan": "what a run would need of a machine that need not be there",
    }
    for name, text in about.items():
        command = commands.add_parser(
            name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
            description=f"{text}; any field of the configuration can be overridden",
        )
        command.add_argument("--config", type=Path, help="file with `config() -> RunConfig`")
        if name != "plan":
            command.add_argument("--run-dir", type=Path, help="default: runs/NAME")
        command.add_argument("-h", "--help", action="store_true")
        if name == "sft":
            command.add_argument("--continued", action="store_true", help="RL's control: go on for RL's wall time")
        if name == "rank":
            command.add_argument("--input", type=Path, help="JSONL: history, candidates (see README)")
            command.add_argument("--output", type=Path, help="JSONL to write; default: print")
            command.add_argument("--phase", default="rl", choices=("sft", "sft_continued", "rl"))
        if name == "plan":
            command.add_argument("--topology", help="KIND:SIZE, as v5p:4x4x8, v6e:2x4, h200:8 or cpu:8")
            command.add_argument(
                "--backend",
                default="abstract",
                choices=("abstract", "compile"),
                help="estimate, in seconds; or compile the real programs too, in minutes",
            )
            command.add_argument(
                "--compiler",
                type=Path,
                help="folder with libtpu or the CUDA plugin; default: compilers/tpu, compilers/cuda",
            )
        command.set_defaults(parser=command)
    report = commands.add_parser("report", help="run directory -> one HTML file", allow_abbrev=False)
    report.add_argument("--run-dir", type=Path, required=True)
    return parser


def _add_synthesize(synthesize: argparse.ArgumentParser) -> None:
    synthesize.add_argument("--data", type=Path, required=True, help="folder that `data prepare` wrote")
    synthesize.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    synthesize.add_argument("--split", default="leave_one_out", choices=PROTOCOLS)
    synthesize.add_argument("--lists", type=int, default=4000, help="trace budget: lists with worked rationales")
    synthesize.add_argument("--positives", type=int, default=1, help="relevant items; data.train_positives is RL's")
    synthesize.add_argument("--seed", type=_whole, default=0, help="of the choice of lists")
    synthesize.add_argument("--history-items", type=int, default=10, help="interactions shown, as data.history_items")
    synthesize.add_argument(
        "--teacher",
        default=TEMPLATE,
        metavar="template | batch | URL",
        help="sentences from statistics; files for a batch; an OpenAI-compatible API, as http://localhost:8000/v1",
    )
    synthesize.add_argument("-h", "--help", action=_TeacherHelp, nargs=0, help="show this and a language model's flags")


def _add_export(export: argparse.ArgumentParser) -> None:
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


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument("--kind", help="form of the source, as amazon-2023 or plain; default: told by its files")
    prepare.add_argument("--column", action="append", default=[], metavar="KEY=NAME", help="of plain files: user=uid")
    prepare.add_argument("--seed", type=_whole, default=0, help="of the negatives")
    prepare.add_argument("--candidates", type=int, default=20, help="items of a list, the positives included")
    prepare.add_argument("--protocols", nargs="+", default=DEFAULT_PROTOCOLS, choices=PROTOCOLS, help="which splits")
    prepare.add_argument("--k-core", type=int, default=0, help="users and items need so many of each other; 0: off")
    prepare.add_argument("--positive-rating", type=float, help="least rating of a positive; default: all are")
    prepare.add_argument("--labels", default="binary", choices=LABELS, help="graded: 1 + floor(rating - threshold)")
    prepare.add_argument("--negatives", default="uniform", choices=NEGATIVES, help="how they are drawn")
    prepare.add_argument("--run", help="a retriever's run for --negatives run: TREC or JSONL")
    prepare.add_argument("--last-n", type=int, default=3, help="positives of a list in protocol last_n")
    prepare.add_argument("--cold-fraction", type=float, default=0.1, help="users held out for test in cold_users")
    prepare.add_argument("--bucket-rows", type=int, default=1_000_000, help="interactions of a bucket; bounds memory")
    prepare.add_argument("--on-error", default="fatal", choices=ON_ERROR, help="what to do with malformed rows")
    prepare.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    prepare.add_argument("--ray", action="store_true", help="have the buckets done by Ray Data (extra data-ray)")


def _whole(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def _require_place(out: Path, *, is_folder: bool) -> None:
    """Refuse an --out that nothing could be written to, before there is anything to write."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if nearest.is_dir() != (is_folder or nearest != out):
        wanted = "folder" if is_folder else "file"
        raise _UsageError(
            f"--out must be a {wanted} to write, got {out}, where {nearest} is a "
            f"{'folder' if nearest.is_dir() else 'file'}; give another --out"
        )


def _column(text: str) -> tuple[str, str]:
    """One --column."""
    key, equals, name = text.partition("=")
    if not (key and equals and name):
        raise _UsageError(f"--column must be KEY=NAME, as user=reviewer_id, got {text!r}")
    return key, name


class _TeacherHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from r2rank_jax.data.teacher.settings import TeacherSettings

        parser.print_help()
        tyro.cli(TeacherSettings, args=["--help"], prog="\nr2rank data synthesize --teacher URL")


def _data(known: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 where an audit finds faults, or a language model left lists unfinished."""
    if hasattr(known, "out"):
        _require_place(known.out, is_folder=known.action != "synthesize")
    if known.action == "synthesize":
        return _synthesize(known, overrides)
    if known.action == "fetch":
        from r2rank_jax.data.fetch.fetch import fetch

        fetch(known.name, known.out)
    elif known.action == "prepare":
        from r2rank_jax.data.card.writing import write_card
        from r2rank_jax.data.prepare.prepare import prepare

        columns = [_column(text) for text in known.column]
        known.columns = dict(columns)
        if len(columns) > len(known.columns):
            raise _UsageError(f"--column must name each of ours once, got {', '.join(known.column)}; leave one out")
        settings = {f.name: getattr(known, f.name) for f in dataclasses.fields(Settings) if hasattr(known, f.name)}
        prepare(known.source, known.out, workers=known.workers, ray=known.ray, describe=write_card, **settings)
    elif known.action == "audit":
        from r2rank_jax.data.audit.folder import audit

        found = audit(known.directory)
        print(f"{found.text()}{known.directory}: {found.faults} faults, {found.warnings} warnings")
        return 1 if found.faults else 0
    elif known.action == "card":
        from r2rank_jax.data.card.writing import write_card

        write_card(known.directory, known.tokenizer)
        print(known.directory / "card.md")
    return 0


def _synthesize(known: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 where a language model left lists unfinished."""
    asked = {name: getattr(known, name) for name in ("split", "lists", "seed", "positives", "history_items")}
    if known.teacher == TEMPLATE:
        from r2rank_jax.data.teacher import template

        template.synthesize(known.data, known.out, **asked)
        return 0
    from r2rank_jax.data.teacher import language_model
    from r2rank_jax.data.teacher.settings import TeacherSettings

    settings = tyro.cli(TeacherSettings, args=overrides, prog="r2rank data synthesize --teacher URL")
    missing = language_model.synthesize(
        known.data, known.out, settings, teacher=known.teacher, key=_teacher_key(known.teacher), **asked
    )
    if missing is not None:
        print(f"r2rank: {missing}", file=sys.stderr)
    return 0 if missing is None else 1


def _teacher_key(url: str) -> str:
    """OpenAI's key goes to OpenAI only: another endpoint must be given its own, on purpose."""
    key = os.environ.get("R2RANK_TEACHER_API_KEY", "")
    address = urllib.parse.urlsplit(url)
    is_openai = (address.scheme, address.netloc) == ("https", "api.openai.com")
    return key or (os.environ.get("OPENAI_API_KEY", "") if is_openai else "")


def _model(known: argparse.Namespace) -> None:
    if known.action == "fetch":
        from r2rank_jax.pretrained.fetching import fetch

        fetch(known.name, known.out)
    else:
        from r2rank_jax.pretrained.importing import import_model

        import_model(known.source, known.out)


def _configuration(known: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """What the file says, with the fields that the command line overrides."""
    if known.help:
        known.parser.print_help()
        overrides = [*overrides, "--help"]
    elif known.config is None:
        raise _UsageError(f"`r2rank {known.command}` needs --config FILE, for instance configs/quickstart.py")
    defaults = _load(known.config) if known.config else RunConfig(name="any")
    return tyro.cli(
        RunConfig,
        default=defaults,
        args=overrides,
        prog=f"r2rank {known.command} --config {known.config or 'FILE'}",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _plan(known: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 where the run does not fit."""
    from r2rank_jax.plan import plan

    config = _configuration(known, overrides)
    if known.topology is None:
        raise _UsageError("`r2rank plan` needs --topology KIND:SIZE, for instance v5p:2x2x2, h200:8 or cpu:8")
    message = plan.run(config, known.topology, known.backend, known.compiler)
    if message is not None:
        print(f"r2rank: {message}", file=sys.stderr)
    return 0 if message is None else 1


def _run(known: argparse.Namespace, overrides: list[str]) -> None:
    config = _configuration(known, overrides)
    run_dir = known.run_dir or Path("runs") / config.name
    join_processes()
    _keep_compiled_programs()
    from r2rank_jax.runs.attention_choice import choose_attention
    from r2rank_jax.runs.memory_budget import choose_budget

    config = choose_budget(choose_attention(config, run_dir))
    if known.command == "sft":
        from r2rank_jax.runs import sft

        sft.run(config, run_dir, continued=known.continued)
    elif known.command == "rl":
        from r2rank_jax.runs import rl

        rl.run(config, run_dir)
    elif known.command == "eval":
        from r2rank_jax.runs import eval as evaluation

        evaluation.run(config, run_dir)
    else:
        from r2rank_jax.runs import rank

        if known.input is None:
            raise _UsageError("`r2rank rank` needs --input FILE, a JSONL file of lists; the README shows one")
        rank.run(config, run_dir, known.input, known.output, phase=known.phase)


def _load(path: Path) -> RunConfig:
    """The configuration that a file in `configs/` returns."""
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "none"
        raise _UsageError(f"--config must name a Python file, got {path}, which is not there; nearby: {near}")
    spec = importlib.util.spec_from_file_location("r2rank_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise _UsageError(f"{path} must define `config() -> RunConfig`, and does not")
    config = module.config()
    if not isinstance(config, RunConfig):
        raise _UsageError(f"config() in {path} must return a RunConfig, got {type(config).__name__}")
    return config


def _existing_run(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise _UsageError(f"--run-dir must be a run directory, got {run_dir}, which is not there")
    return run_dir


def join_processes() -> None:
    """Become one of several processes where a launcher says so (see launch/)."""
    address = os.environ.get("R2RANK_COORDINATOR")
    if address is None:
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=address,
        num_processes=int(os.environ["R2RANK_PROCESSES"]),
        process_id=int(os.environ["R2RANK_PROCESS"]),
    )


def _keep_compiled_programs() -> None:
    """A second run of the same programs on the same machine does not compile them again, but for the shortest."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX reads it by itself; empty turns the cache off
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "r2rank_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # a rollout has many that take less than 1 s
