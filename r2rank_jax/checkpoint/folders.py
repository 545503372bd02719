"""What the folders of commits say without Orbax and without devices: steps, the best one, identities."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from r2rank_jax.files.checksums import SEAL


def sealed_steps(directory: Path) -> list[int]:
    """The sealed steps of a phase's folder, newest first."""
    if not directory.is_dir():
        return []
    steps = [int(f.name) for f in directory.iterdir() if is_step(f.name) and (f / SEAL).exists()]
    return sorted(steps, reverse=True)


def policy_identity(directory: Path) -> str | None:
    """Identity of the commit that `load_policy` would load if none is damaged; None if there is none."""
    steps = sealed_steps(directory)
    if not steps:
        return None
    best = best_step(directory / str(steps[0]))
    return identity(directory / str(best if best in steps else steps[0]))


def best_step(folder: Path) -> int | None:
    """The step of the best validation that a commit names; None if it names none or cannot be read.

    Orbax writes the record as a file of JSON. Reading that file needs no devices, which the report must not start.
    """
    try:
        best = json.loads((folder / "extras/metadata").read_bytes())["best"]
        return int(best["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def identity(folder: Path) -> str:
    """The SHA-256 of a commit's seal, which identifies the content of the commit."""
    return hashlib.sha256((folder / SEAL).read_bytes()).hexdigest()


def is_step(name: str) -> bool:
    """Whether a folder of this name can be a commit."""
    return name.isascii() and name.isdecimal()
