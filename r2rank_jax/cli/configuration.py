"""The configuration of a run: read from the file that `--config` names, with fields from the command line."""

from __future__ import annotations

import argparse
import importlib.util
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from r2rank_jax.cli.overrides import FORMER, overridden
from r2rank_jax.cli.run_places import run_place
from r2rank_jax.config import RunConfig, read
from r2rank_jax.errors import R2RankError, UsageError

T = TypeVar("T")


def add_configured(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, *, run_dir: bool = True
) -> argparse.ArgumentParser:
    """Add a command that takes `--config` and an option for every field of the configuration."""
    command = commands.add_parser(
        name,
        help=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        description=f"{about[0].upper()}{about[1:]}. Every field of the configuration is an option, too.",
    )
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Python file that defines config() -> RunConfig, or a run's config.json; without it, that of --run-dir",
    )
    if run_dir:
        command.add_argument(
            "--run-dir",
            type=run_place,
            metavar="DIR",
            help="folder for checkpoints, logs and results, or its address, s3://BUCKET/NAME or gs://BUCKET/NAME "
            "(default: runs/NAME, with the name of the configuration)",
        )
    command.add_argument("-h", "--help", action="store_true", help="show this message and all fields, then exit")
    command.set_defaults(parser=command)
    return command


def configuration(arguments: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """The configuration in the file, or that of an existing run, with the fields that the command line overrides."""
    path: Path | None = arguments.config
    run_dir: Path | None = getattr(arguments, "run_dir", None)
    address: str | None = getattr(arguments, "address", None)  # of a stored run, whose config.json `--config` names
    if path is None and run_dir is not None and address is None and (run_dir / "config.json").exists():
        path = run_dir / "config.json"
    if arguments.help:
        _print_help(arguments, path)
    if path is None:
        place = address or run_dir
        raise UsageError(
            f"`r2rank {arguments.command}` needs --config FILE, for example configs/quickstart.py, or the --run-dir of "
            f"a run that has a config.json, got {f'--run-dir {place}' if place else 'neither'}"
        )
    return overridden(load_config(path), overrides, f"r2rank {arguments.command}")


def _print_help(arguments: argparse.Namespace, path: Path | None) -> NoReturn:
    """Print the options and all fields with the file's values, or with the defaults if there is no readable file."""
    import tyro

    try:
        default = load_config(path) if path else RunConfig(name="any")
    except R2RankError:
        default = RunConfig(name="any")
    arguments.parser.print_help()
    print()
    tyro.cli(
        RunConfig,
        default=default,
        args=["--help"],
        prog=f"r2rank {arguments.command} --config {path or 'FILE'}",
        description="Fields of the configuration.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    raise SystemExit(0)


def load_config(path: Path) -> RunConfig:
    """The configuration that `config()` of a Python file returns, or that a run's `config.json` holds.

    Raises:
        UsageError: there is no such file, or it does not hold a configuration.
        ConfigError: a field of the JSON file that this version does not know, or a value that it cannot hold.
    """
    if path.is_dir():
        raise UsageError(f"--config must name a Python or JSON file, got {path}, which is a folder; name a file in it")
    if not path.is_file():
        nearby = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "none"
        raise UsageError(
            f"--config must name a Python or JSON file, got {path}, which does not exist; "
            f"Python files in that folder: {nearby}"
        )
    if path.suffix == ".json":
        # A run records the attention and the memory budget of its machine; this one chooses for itself.
        config = read(path)
        return replace(
            config,
            model=replace(config.model, attention="auto"),
            compute=replace(config.compute, update_gib=None),
        )
    if path.suffix != ".py":
        raise UsageError(f"--config must name a .py or .json file, got {path}; rename it")
    return returned_by(path, "config", RunConfig)


def returned_by(path: Path, function: str, wanted: type[T]) -> T:
    """What a function of a Python file returns.

    Args:
        path: of an existing file.
        function: its name; it takes no arguments.
        wanted: the type that it must return.

    Raises:
        UsageError: the file raises an exception, does not define the function, or that returns something else.
    """
    try:
        returned = _called(path, function, wanted)
    except R2RankError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # of the user's code: any exception is possible
        raise UsageError(_raised(path, function, wanted, error)) from error
    if not isinstance(returned, wanted):
        raise UsageError(f"{function}() in {path} must return {_a(wanted)}, got {type(returned).__name__}")
    return returned


def _called(path: Path, function: str, wanted: type) -> object:
    spec = importlib.util.spec_from_file_location(f"r2rank_{function}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise UsageError(f"it must define `{function}() -> {wanted.__name__}`, but does not")
    return getattr(module, function)()


def _a(wanted: type) -> str:
    return f"{'an' if wanted.__name__[0] in 'AEIOU' else 'a'} {wanted.__name__}"


def _raised(path: Path, function: str, wanted: type, error: Exception) -> str:
    """The exception of a file with its last line there, and what replaced a former field."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    place = f"{path}, line {line}" if line else str(path)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    former = next((f"; use {new}" for name, new in FORMER.items() if f"'{name.rpartition('.')[2]}'" in reason), "")
    return f"{place} must return {_a(wanted)} from {function}(), but raised {reason}{former}"
