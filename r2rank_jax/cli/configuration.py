"""A run's configuration: the file that `--config` names, and the fields that the command line overrides."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import tyro

from r2rank_jax.cli.arguments import UsageError
from r2rank_jax.config import RunConfig


def add_configured(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, *, run_dir: bool = True
) -> argparse.ArgumentParser:
    """Add a command that takes `--config` and any field of the configuration."""
    command = commands.add_parser(
        name,
        help=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        description=f"{about}; any field of the configuration can be overridden",
    )
    command.add_argument("--config", type=Path, help="file with `config() -> RunConfig`")
    if run_dir:
        command.add_argument("--run-dir", type=Path, help="default: runs/NAME")
    command.add_argument("-h", "--help", action="store_true")
    command.set_defaults(parser=command)
    return command


def configuration(known: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """What the file says, with the fields that the command line overrides."""
    if known.help:
        known.parser.print_help()
        overrides = [*overrides, "--help"]
    elif known.config is None:
        raise UsageError(f"`r2rank {known.command}` needs --config FILE, for instance configs/quickstart.py")
    defaults = load_config(known.config) if known.config else RunConfig(name="any")
    return tyro.cli(
        RunConfig,
        default=defaults,
        args=overrides,
        prog=f"r2rank {known.command} --config {known.config or 'FILE'}",
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_config(path: Path) -> RunConfig:
    """The configuration that a file in `configs/` returns."""
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "none"
        raise UsageError(f"--config must name a Python file, got {path}, which is not there; nearby: {near}")
    spec = importlib.util.spec_from_file_location("r2rank_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UsageError(f"{path} must define `config() -> RunConfig`, and does not")
    config = module.config()
    if not isinstance(config, RunConfig):
        raise UsageError(f"config() in {path} must return a RunConfig, got {type(config).__name__}")
    return config
