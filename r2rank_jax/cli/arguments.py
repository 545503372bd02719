"""What the groups of commands share: values of arguments that are checked before any work begins."""

from __future__ import annotations

import argparse
from pathlib import Path

from r2rank_jax.errors import R2RankError


class UsageError(R2RankError, ValueError):
    """A command line that cannot be carried out."""


def whole_number(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def require_place(out: Path, *, is_folder: bool) -> None:
    """Refuse an --out that nothing could be written to, before there is anything to write."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if nearest.is_dir() != (is_folder or nearest != out):
        wanted = "folder" if is_folder else "file"
        raise UsageError(
            f"--out must be a {wanted} to write, got {out}, where {nearest} is a "
            f"{'folder' if nearest.is_dir() else 'file'}; give another --out"
        )
