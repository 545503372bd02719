"""Configurations as JSON, as in the `config.json` of a run directory, and the differences between two of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from r2rank_jax.config.fields import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from r2rank_jax.errors import ConfigError


def to_json(config: RunConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as written to `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values: dict[str, Any]) -> RunConfig:
    """Inverse of `to_json`.

    Raises:
        ConfigError: this version does not have one of the fields, or the values are not an object.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"a configuration must be a JSON object, got {type(values).__name__}")
    return _build(RunConfig, values, "")


def _build(kind: type, values: dict[str, Any], prefix: str) -> Any:
    parts = {
        "data": DataConfig,
        "model": ModelConfig,
        "mesh": MeshConfig,
        "compute": ComputeConfig,
        "sft": SFTConfig,
        "rl": RLConfig,
        "evaluation": EvaluationConfig,
        "optimizer": OptimizerConfig,
    }
    values = in_current_fields(values)
    fields = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ConfigError(f"unknown field {prefix}{unknown[0]}; {kind.__name__} has {sorted(fields)}")
    return kind(
        **{
            name: _build(parts[name], value, f"{prefix}{name}.")
            if name in parts and isinstance(value, dict)
            else (tuple(value) if isinstance(value, list) else value)
            for name, value in values.items()
        }
    )


def in_current_fields(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a stored configuration, with fields that were renamed since under their current names."""
    if "metric_k" not in section:  # a former field of `rl`: the cut-off of NDCG, when it was the only reward
        return section
    rest = {name: value for name, value in section.items() if name != "metric_k"}
    return {"reward": f"ndcg@{section['metric_k']}"} | rest


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
    """Read a run directory's `config.json`."""
    return from_json(json.loads(path.read_text(encoding="utf-8")))
