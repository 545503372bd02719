"""File names and hashes of a prepared folder, which `data prepare` writes and everything else reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from r2rank_jax.data.prepared.settings import TIME_UNITS
from r2rank_jax.data.prepared.tables import hash_of_interactions, hash_of_items
from r2rank_jax.errors import DataError

FORMAT = 2  # version of the folder's format; increased when a reader of the old version would misread the folder


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _are_protocols(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(p, dict) and _is_hash(p.get("sha256")) for p in value.values())


_FORMS: dict[str, Callable[[Any], bool]] = {
    "users": _is_count,
    "items": _is_count,
    "interactions": _is_count,
    "buckets": lambda value: _is_count(value) and value > 0,
    "time_unit": lambda value: value in TIME_UNITS,
    "domain": lambda value: isinstance(value, str),
    "settings": lambda value: isinstance(value, dict),
    "protocols": _are_protocols,
    "interactions_sha256": _is_hash,
    "items_sha256": _is_hash,
}
"""Names in a manifest that other code relies on -> whether a value has the form that `data prepare` writes."""


def interactions_file(bucket: int) -> str:
    """Path of a bucket's interactions inside the folder."""
    return f"interactions/{bucket:05d}.parquet"


def users_file(bucket: int) -> str:
    """Path of a bucket's users inside the folder."""
    return f"users/{bucket:05d}.parquet"


def candidate_file(protocol: str, bucket: int = 0) -> str:
    """Path of a bucket's frozen candidates inside the folder."""
    return f"candidates/{protocol}/{bucket:05d}.jsonl"


def hash_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other; a missing file counts as empty."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def manifest_of(directory: Path) -> dict[str, Any]:
    """Read the folder's `manifest.json`.

    Raises:
        DataError: the file is missing, or its format is not `FORMAT`.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{directory} must be a folder that `r2rank data prepare` wrote, but it has no manifest.json; run "
            f"`r2rank data prepare --source SOURCE --out {directory}` or set data.directory"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} must be JSON, but it cannot be parsed ({error}); run `r2rank data prepare` into a new folder"
        ) from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path} must hold a JSON object, got {manifest!r:.80}; prepare the data into a new folder")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: format must be {FORMAT}, got {manifest.get('format')}, which another version wrote; remove "
            f"the folder and run `r2rank data prepare` and `r2rank data synthesize` again"
        )
    for name, is_valid in _FORMS.items():
        if name in manifest and not is_valid(manifest[name]):
            raise DataError(
                f"{path}: {name} holds {manifest[name]!r:.80}, which `r2rank data prepare` does not write; restore the "
                "file, or prepare the data into a new folder"
            )
    return manifest


def verify(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of the parts whose hash differs from the manifest's; empty if all match."""
    buckets = range(manifest["buckets"])
    interactions = [directory / interactions_file(bucket) for bucket in buckets]
    matches = {}
    for name, compute_hash, expected in (
        ("interactions", partial(hash_of_interactions, interactions), manifest["interactions_sha256"]),
        ("items.parquet", partial(hash_of_items, directory / "items.parquet"), manifest["items_sha256"]),
    ):
        try:
            matches[name] = compute_hash() == expected
        except DataError:  # the file cannot be read
            matches[name] = False
    for protocol, part in manifest["protocols"].items():
        files = [directory / candidate_file(protocol, bucket) for bucket in buckets]
        matches[f"candidates/{protocol}"] = hash_of_files(files) == part["sha256"]
    return [name for name, same in matches.items() if not same]
