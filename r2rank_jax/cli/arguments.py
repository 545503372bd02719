"""Checks of argument values that the command groups share. They run before any work begins."""

from __future__ import annotations

import argparse
from pathlib import Path

from r2rank_jax.errors import R2RankError


class UsageError(R2RankError, ValueError):
    """A command line that the command cannot carry out."""


def whole_number(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a non-negative integer, got {text!r}")
    return int(text)


def require_place(out: Path, *, is_folder: bool) -> None:
    """Refuse an --out that cannot be written.

    Raises:
        UsageError: a file is where a folder is needed, or a folder where a file is needed.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if nearest.is_dir() != (is_folder or nearest != out):
        required = "folder" if is_folder else "file"
        raise UsageError(
            f"--out must be a {required} to write, got {out}, but {nearest} is a "
            f"{'folder' if nearest.is_dir() else 'file'}; choose another --out"
        )
