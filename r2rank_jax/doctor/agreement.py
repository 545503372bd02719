"""What must be the same on every process: code, configuration, data, versions and flags; and which processes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.config import RunConfig, differences, to_json
from r2rank_jax.data.prepared.folder import hash_of_files
from r2rank_jax.doctor.findings import Finding, fault, named, ok
from r2rank_jax.runs.eval import commit

PACKAGE = Path(__file__).resolve().parents[1]
OF_ONE_MACHINE = ("JAX_COMPILATION_CACHE_DIR", "JAX_LOCAL_DEVICE_IDS", "JAX_PROCESS_ID", "JAX_COORDINATOR_BIND_ADDRESS",
                  "JAX_PARTITION_INDEX", "JAX_SLICE_INDEX")  # fmt: skip
"""Variables that may differ between the processes of a job."""
REMEDIES = {
    "code": "check out the same commit everywhere, or install it on a disk that all hosts share",
    "configuration": "start every process with the same --config and options",
    "versions": "install the same versions everywhere, best from one lock file",
    "data": "copy the same files to every host, or read them from a disk that all hosts share",
    "flags": "set the same XLA_FLAGS and JAX_* variables for every process",
    "device kind": "use hosts with the same devices",
}
SHOWN = 3
"""Differing fields that a finding names."""


def code_facts() -> dict[str, Any]:
    """The code's commit, and a hash of its source files, which also shows changes that are not committed."""
    digest = hash_of_files(sorted(PACKAGE.rglob("*.py")))
    return {"code": {"commit": commit(), "source": digest[:12]}}


def configuration_facts(config: RunConfig) -> dict[str, Any]:
    """The configuration without paths, which may differ between hosts: the contents are compared as `data`."""
    values = to_json(config)
    del values["data"]["directory"], values["data"]["traces"]
    return {"configuration": values | {"pretrained": config.pretrained is not None}}


def flag_facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """The variables that change what XLA compiles or JAX does."""
    chosen = {
        name: value
        for name, value in environment.items()
        if (name.startswith("JAX_") and name not in OF_ONE_MACHINE) or name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    }
    return {"flags": chosen}


def compare(facts: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Compare the facts of all processes with those of process 0.

    Args:
        facts: process -> facts. A process may lack a fact whose check failed.
    """
    findings = []
    for name in REMEDIES:
        values = {process: own[name] for process, own in facts.items() if name in own}
        if not values:
            continue
        first = min(values)
        apart: dict[str, list[int]] = {}
        for process, value in values.items():
            if value != values[first]:
                apart.setdefault(_difference(values[first], value), []).append(process)
        for difference, processes in apart.items():
            what = f"every process must have the {name} of process {first}, got {named(processes)} with {difference}"
            findings.append(fault(f"same {name}", what, REMEDIES[name]))
        if not apart and len(values) > 1:
            findings.append(ok(f"same {name}", f"{_identity(name, values[first])} in {len(values)} processes"))
    return findings


def _difference(expected: Any, got: Any) -> str:
    if not (isinstance(expected, dict) and isinstance(got, dict)):
        return f"{expected} -> {got}"
    changed = differences(expected, got)
    more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return "; ".join(changed[:SHOWN]) + more


def _identity(name: str, value: Any) -> str:
    """A fact in a word: itself, its commit, or the start of its hash."""
    if name == "code":
        head, _, changes = value["commit"].partition("+")
        return f"commit {head[:12]}{' with changes' if changes else ''}, source {value['source']}"
    if isinstance(value, str):
        return value
    if name == "flags" and not value:
        return "none set"
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
