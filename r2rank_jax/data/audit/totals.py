"""What only all buckets together can show: the manifest's numbers, and a hash per file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.tables import AGAIN

HASHES = Check(
    "hashes", "a file's content has the hash that the manifest names", "restore the file, or prepare the data again"
)
COUNTS = Check("manifest_counts", "the manifest's numbers are those of the files", AGAIN)
STEPS = Check("manifest_steps", "a step leaves what the one before left, less what it dropped", AGAIN)
CUTS = Check("time_cuts", "below the cuts in time lie 80% and 90% of all interactions, as exactly as may be", AGAIN)


def check_count(found: Findings, name: str, expected: Any, counted: int) -> None:
    """A number of the manifest against what was counted."""
    if expected != counted:
        found.add(COUNTS, "manifest.json", f"{name} is {expected}, the files hold {counted}")


def check_hash(found: Findings, name: str, expected: Any, counted: str) -> None:
    """A hash of the manifest against the files'."""
    if expected != counted:
        found.add(HASHES, name, f"the manifest has SHA-256 {expected}, the content has {counted}")


def check_steps(steps: Sequence[Mapping[str, Any]], last: Mapping[str, int], found: Findings) -> None:
    """Every interaction is accounted for, from the source to the folder.

    Args:
        steps: of the manifest, in order.
        last: users, items and interactions, as counted.
        found: added to.
    """
    for before, step in pairwise(steps):
        left = before["interactions"] - sum(step.get("dropped", {}).values())
        if step["interactions"] != left:
            found.add(
                STEPS,
                "manifest.json",
                f"step {step['step']!r} leaves {step['interactions']} interactions, but {before['interactions']} came "
                f"and {dict(step.get('dropped', {}))} were dropped, which leaves {left}",
            )
    for name, counted in last.items():
        if steps and steps[-1][name] != counted:
            found.add(
                STEPS,
                "manifest.json",
                f"step {steps[-1]['step']!r}, the last, leaves {steps[-1][name]} {name}, the files hold {counted}",
            )


def check_cut(cut: int, share: int, below: int, upto: int, interactions: int, found: Findings) -> None:
    """A cut in time is the timestamp that so many tenths of all interactions precede.

    Args:
        cut: of the manifest.
        share: tenths, 8 or 9.
        below: interactions before the cut.
        upto: interactions before the cut or at it.
        interactions: all.
        found: added to.
    """
    place = interactions * share // 10
    if not below <= place < upto:
        found.add(
            CUTS,
            "manifest.json",
            f"the cut {cut} should be the timestamp of interaction {place} of {interactions} in order of time, but "
            f"{below} lie before it and {upto - below} at it",
        )
