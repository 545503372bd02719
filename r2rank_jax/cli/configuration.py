"""The configuration of a run: read from the file that `--config` names, with fields from the command line."""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import tyro

from r2rank_jax.cli.arguments import UsageError
from r2rank_jax.config import RunConfig, read


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
            type=Path,
            metavar="DIR",
            help="folder for checkpoints, logs and results (default: runs/NAME, with the name of the configuration)",
        )
    command.add_argument("-h", "--help", action="store_true", help="show this message and all fields, then exit")
    command.set_defaults(parser=command)
    return command


def configuration(arguments: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """The configuration in the file, or that of an existing run, with the fields that the command line overrides."""
    path: Path | None = arguments.config
    run_dir: Path | None = getattr(arguments, "run_dir", None)
    if path is None and run_dir is not None and (run_dir / "config.json").is_file():
        path = run_dir / "config.json"
    if arguments.help:
        arguments.parser.print_help()
        print()
        overrides = [*overrides, "--help"]
    elif path is None:
        raise UsageError(
            f"`r2rank {arguments.command}` needs --config FILE, for example configs/quickstart.py, or the --run-dir of "
            f"a run that has a config.json, got {f'--run-dir {run_dir}' if run_dir else 'neither'}"
        )
    return tyro.cli(
        RunConfig,
        default=load_config(path) if path else RunConfig(name="any"),
        args=overrides,
        prog=f"r2rank {arguments.command} --config {path or 'FILE'}",
        description="Fields of the configuration.",
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_config(path: Path) -> RunConfig:
    """The configuration that `config()` of a Python file returns, or that a run's `config.json` holds.

    Raises:
        UsageError: there is no such file, or it does not hold a configuration.
        ConfigError: a field of the JSON file that this version does not know.
    """
    if not path.is_file():
        nearby = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "none"
        raise UsageError(
            f"--config must name a Python or JSON file, got {path}, which does not exist; "
            f"Python files in that folder: {nearby}"
        )
    if path.suffix == ".json":
        try:
            # A run records the attention and the memory budget of its machine; this one chooses for itself.
            config = read(path)
            return replace(
                config,
                model=replace(config.model, attention="auto"),
                compute=replace(config.compute, update_gib=None),
            )
        except (json.JSONDecodeError, TypeError) as error:
            raise UsageError(f"{path} must be the config.json of a run, but is not: {error}") from error
    if path.suffix != ".py":
        raise UsageError(f"--config must name a .py or .json file, got {path}; rename it")
    spec = importlib.util.spec_from_file_location("r2rank_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UsageError(f"{path} must define `config() -> RunConfig`, but does not")
    config = module.config()
    if not isinstance(config, RunConfig):
        raise UsageError(f"config() in {path} must return a RunConfig, got {type(config).__name__}")
    return config
