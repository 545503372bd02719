"""Values of arguments that the command groups share. They are checked before any work begins."""

from __future__ import annotations

import argparse
import math

LONGEST_MESSAGE = 500


def whole_number(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a non-negative integer, got {text[:60]!r}")
    return int(text)


def seed(text: str) -> int:
    """Parse a seed, an integer of 32 bits."""
    value = whole_number(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"must be below 2^32, got {value}")
    return value


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return value


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text[:60]!r}")
    return value


def brief(message: str) -> str:
    """A message of argparse, which may quote an argument of any length, on one line."""
    return " ".join(message.split())[:LONGEST_MESSAGE]
