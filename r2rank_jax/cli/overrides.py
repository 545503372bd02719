"""Single fields of the configuration on the command line: `--rl.steps 300 --evaluation.ks 1 5 --rl.no-joint`.

tyro prints the help. It is not used to read the values, because it shows errors in boxes of several lines and names
neither the section of a field nor its range.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from r2rank_jax.cli.arguments import brief
from r2rank_jax.config import RunConfig, with_values
from r2rank_jax.config.checks import field_kinds, shown
from r2rank_jax.errors import UsageError

FORMER = {"rl.metric_k": "rl.reward, as in --rl.reward ndcg@10"}
"""Fields of older versions, and what replaced them."""


def overridden(config: RunConfig, arguments: list[str], command: str) -> RunConfig:
    """The configuration with the fields that the arguments set.

    Args:
        config: gives all other fields.
        arguments: of the command line, without those that the command itself takes.
        command: as the user wrote it, for messages.

    Raises:
        UsageError: an argument that is no field, or a field without a value.
        ConfigError: a value that the field cannot hold.
    """
    return with_values(config, parsed(dotted_fields(RunConfig), arguments, command))


def parsed(kinds: Mapping[str, Any], arguments: list[str], command: str) -> dict[str, Any]:
    """The values of the fields that the arguments set.

    Args:
        kinds: type of every field by its dotted name.
        arguments: of the command line.
        command: as the user wrote it, for messages.

    Returns:
        Values by dotted name. A text that does not stand for a value of the field's type is returned as it is.

    Raises:
        UsageError: an argument that is no field, or a field without a value.
    """
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, kind in kinds.items():
        if kind is bool:
            parser.add_argument(*_spellings(name), dest=name, action="store_true")
            *section, field = name.rpartition(".")
            parser.add_argument(*_spellings("".join(section) + f"no_{field}"), dest=name, action="store_false")
        elif get_origin(kind) is tuple:
            parser.add_argument(*_spellings(name), dest=name, nargs="+")
        else:
            parser.add_argument(*_spellings(name), dest=name)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(_unknown(unknown[0], list(kinds), command))
    return {name: _value(text, kinds[name]) for name, text in vars(given).items()}


def dotted_fields(section: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every field by its dotted name, without ranges."""
    fields: dict[str, Any] = {}
    for name, kind in field_kinds(section).items():
        if dataclasses.is_dataclass(kind):
            fields |= dotted_fields(kind, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = _plain(kind)
    return fields


def _plain(kind: Any) -> Any:
    return _plain(kind.__origin__) if get_origin(kind) is Annotated else kind


def _spellings(name: str) -> list[str]:
    """`--rl.log-every`, and the name as in a configuration file."""
    return list(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")))


def _value(text: Any, kind: Any) -> Any:
    """The value that a text stands for, or the text itself, which the check of the field then refuses."""
    if isinstance(text, list):
        return [_value(one, _plain(get_args(kind)[0])) for one in text]
    if get_origin(kind) in (Union, types.UnionType):
        inner = next(part for part in get_args(kind) if part is not type(None))
        return None if text == "None" else _value(text, _plain(inner))
    if kind not in (int, float, Path):
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def _unknown(argument: str, names: list[str], command: str) -> str:
    flag = argument.partition("=")[0]
    name = flag.removeprefix("--").replace("-", "_")
    if name in FORMER:
        return f"{flag} is no longer a field; use {FORMER[name]}"
    nearest = [f"--{n.replace('_', '-')}" for n in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    hint = f"did you mean {nearest[0]}?" if nearest else f"see `{command} --help`"
    return f"unknown argument {shown(argument)}; {hint}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{brief(message)}; see `{self.prog} --help`")
