"""Configurations as JSON, as in the `config.json` of a run directory, and the differences between two of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.config.checks import field_kinds, shown
from r2rank_jax.config.fields import RunConfig
from r2rank_jax.config.objective_names import in_current_fields
from r2rank_jax.config.training import OptimizerConfig, RLConfig
from r2rank_jax.errors import ConfigError


def to_json(config: RunConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as written to `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values: dict[str, Any]) -> RunConfig:
    """Inverse of `to_json`.

    Raises:
        ConfigError: a field that this version does not have, one that is missing, or a value that it cannot hold.
    """
    return _build(RunConfig, values, "")


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy of a configuration with other values.

    Args:
        config: gives all other fields.
        values: by dotted name, `{"rl.steps": 300}`.

    Raises:
        ConfigError: as `from_json`.
    """
    changed = to_json(config)
    for name, value in values.items():
        *sections, field = name.split(".")
        place = changed
        for section in sections:
            place = place[section]
        place[field] = value
    return from_json(changed)


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        what = prefix.removesuffix(".") or "a configuration"
        raise ConfigError(f"{what} must be a JSON object, got {shown(values)}; see `r2rank sft --help` for its fields")
    if kind is RLConfig:
        values = in_current_fields(values)
    fields = field_kinds(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"unknown field {prefix}{shown(unknown[0])[1:-1]}; this version has {', '.join(sorted(fields))}; remove "
            "it, or use the version that wrote it"
        )
    missing = [f.name for f in dataclasses.fields(kind) if _is_required(f) and f.name not in values]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} must be given, got {shown(sorted(values))}; add it")
    parts = {
        name: _build(fields[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(fields[name]) else value
        for name, value in values.items()
    }
    try:
        return kind(**parts)
    except ConfigError as error:
        own = f"{kind.SECTION}."  # type: ignore[attr-defined]
        # SFT and RL both have an optimizer, which does not know whose it is.
        outer = prefix.removesuffix(own) if kind is OptimizerConfig else ""
        raise ConfigError(f"{outer}{error}") from None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two JSON configurations differ, as `name: old -> new`."""
    changed: list[str] = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            changed.append(f"{prefix}{name}: {a} -> {b}")
    return changed


def read(path: Path) -> RunConfig:
    """Read a run directory's `config.json`.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or does not hold a configuration; the message names it.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} must be the config.json of a run, but is not: {reason}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"every field must be given once, got {shown(name)} several times; remove all but one")
    return dict(pairs)
