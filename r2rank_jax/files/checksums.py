"""A file with the checksums of all other files of a folder. Storage can return flipped bits without an error."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r2rank_jax.files.wheels import sha256

SEAL = "seal.json"
_AT_ONCE = 8
"""Files that are read at the same time; SHA-256 lets other threads run."""


def write_seal(folder: Path, digests: dict[str, str] | None = None) -> None:
    """Write the checksums of all files under `folder`, so that `damage` can check them.

    Args:
        folder: holds the files.
        digests: the checksums; None: compute them.
    """
    partial = folder / f"{SEAL}.partial"
    digests = checksums(folder, file_names(folder)) if digests is None else digests
    partial.write_text(json.dumps(digests, indent=0, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / SEAL)


def damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """A description of the first file that does not match the seal, or None if all match.

    Args:
        folder: that is sealed.
        share: which part of the files to read; of all files it is checked that there are no others.
        shares: number of parts.
    """
    try:
        sealed = dict(json.loads((folder / SEAL).read_bytes()))
    except (ValueError, TypeError):
        return f"{SEAL} is not readable"
    names = set(file_names(folder))
    for name in sorted(set(sealed) ^ names):
        return f"{name} does not match its checksum" if name in names else f"{name} is missing"
    own = sorted(sealed)[share::shares]
    actual = checksums(folder, own)
    return next((f"{name} does not match its checksum" for name in own if actual[name] != sealed[name]), None)


def file_names(folder: Path) -> list[str]:
    """The files under a folder, other than its seal, relative to it and sorted."""
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(SEAL))
    return sorted(str(f.relative_to(folder)) for f in files)


def checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files of a folder: name -> hexadecimal digits."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(zip(names, threads.map(lambda name: sha256(folder / name), names)))
