"""A file with the checksums of all other files of a folder. Storage can return flipped bits without an error."""

from __future__ import annotations

import json
import os
from pathlib import Path

from r2rank_jax.files.wheels import sha256

SEAL = "seal.json"


def write_seal(folder: Path) -> None:
    """Write the checksums of all files under `folder`, so that `damage` can check them."""
    partial = folder / f"{SEAL}.partial"
    partial.write_text(json.dumps(_checksums(folder), indent=0, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / SEAL)


def damage(folder: Path) -> str | None:
    """A description of the first file that does not match the seal, or None if all match."""
    try:
        sealed = dict(json.loads((folder / SEAL).read_bytes()))
    except (ValueError, TypeError):
        return f"{SEAL} is not readable"
    actual = _checksums(folder)
    for name in sorted(set(sealed) | set(actual)):
        if name not in actual:
            return f"{name} is missing"
        if sealed.get(name) != actual[name]:
            return f"{name} does not match its checksum"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(SEAL))
    return {str(f.relative_to(folder)): sha256(f) for f in files}
