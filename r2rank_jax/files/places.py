"""Places to write, tried before the work: a place that cannot be written must not cost an hour first."""

from __future__ import annotations

import os
import re
from pathlib import Path

from r2rank_jax.errors import UsageError


def require_folder(path: Path, flag: str) -> None:
    """Refuse a folder that cannot be made, or in which no file can be made. Nothing is created.

    Args:
        path: the folder; it may be missing, and so may folders above it.
        flag: the argument that names it, for the message.

    Raises:
        UsageError: a file is in the way, or permissions, the name or the file system forbid it.
    """
    _require(path, flag, "folder", _obstacle(path))


def require_file(path: Path, flag: str) -> None:
    """Refuse a file that cannot be written or replaced. Arguments and errors are those of `require_folder`."""
    try:
        taken = path.exists() and not path.is_file()  # a device, which a finished file would replace, is taken too
    except (OSError, ValueError) as error:
        _require(path, flag, "file", _reason(error))
        return
    kind = "folder" if path.is_dir() else "device"
    _require(path, flag, "file", f"{path} is a {kind}" if taken else _obstacle(path.parent))


def _obstacle(folder: Path) -> str | None:
    """What keeps files from being made in a folder that may be missing; None if nothing does."""
    if not folder.is_absolute() and re.fullmatch(r"[a-z][a-z0-9+.-]+:", folder.parts[0] if folder.parts else ""):
        return f"{folder.parts[0]}// is no place of a file system; mount the storage"  # Path makes gs:/ of gs://
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    except (OSError, ValueError) as error:  # such as a name that is too long
        return _reason(error)
    if not nearest.is_dir():
        return f"{nearest} is {'a file' if nearest.exists() else 'a broken link'}"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} must not be written"
    return None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _require(path: Path, flag: str, kind: str, obstacle: str | None) -> None:
    if obstacle is not None:
        raise UsageError(f"{flag} must be a {kind} to write, got {path}, but {obstacle}; choose another {flag}")
