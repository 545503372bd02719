"""Checks that need all buckets together: the manifest's numbers and hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.tables import AGAIN
from r2rank_jax.data.prepared.missing import differences

HASHES = Check("hashes", "a file's content has the hash in the manifest", "restore the file, or prepare the data again")
COUNTS = Check("manifest_counts", "the manifest's numbers agree with the files", AGAIN)
STEPS = Check("manifest_steps", "each step keeps the previous step's interactions minus those it dropped", AGAIN)
CUTS = Check("time_cuts", "80% and 90% of all interactions precede the two cuts, as exactly as ties allow", AGAIN)

SEPARABLE = Check(
    "candidates_separable",
    "positives and negatives have titles equally often",
    "make the ids of the item table those of the interactions, complete the table, and prepare again",
)
SEPARABLE_BY_DETAIL = Check(
    "candidates_separable_by_detail",
    "positives and negatives have years and genres equally often",
    "complete the item table, or use a prompt template that does not show them",
    fault=False,
)


def check_missing(protocol: str, lacking: Mapping[str, int], findings: Findings) -> None:
    """Check that no system can separate positives from negatives by what they lack.

    Args:
        protocol: the protocol.
        lacking: summed results of `count_missing` over its lists.
        findings: updated with what is wrong.
    """
    for text, description in differences(lacking).items():
        findings.add(SEPARABLE if text == "title" else SEPARABLE_BY_DETAIL, f"candidates/{protocol}", description)


def check_count(findings: Findings, name: str, expected: Any, counted: int) -> None:
    """Compare a number in the manifest with the counted one."""
    if expected != counted:
        findings.add(COUNTS, "manifest.json", f"{name} is {expected}, but the files hold {counted}")


def check_hash(findings: Findings, name: str, expected: Any, counted: str) -> None:
    """Compare a hash in the manifest with the hash of the files."""
    if expected != counted:
        findings.add(HASHES, name, f"the manifest has SHA-256 {expected}, but the content has {counted}")


def check_steps(steps: Sequence[Mapping[str, Any]], last: Mapping[str, int], findings: Findings) -> None:
    """Check that the steps account for every interaction, from the source to the folder.

    Args:
        steps: the manifest's steps, in order.
        last: users, items and interactions, as counted.
        findings: updated with what is wrong.
    """
    for before, step in pairwise(steps):
        left = before["interactions"] - sum(step.get("dropped", {}).values())
        if step["interactions"] != left:
            findings.add(
                STEPS,
                "manifest.json",
                f"step {step['step']!r} leaves {step['interactions']} interactions, but it received "
                f"{before['interactions']} and dropped {dict(step.get('dropped', {}))}, which leaves {left}",
            )
    for name, counted in last.items():
        if steps and steps[-1][name] != counted:
            findings.add(
                STEPS,
                "manifest.json",
                f"the last step, {steps[-1]['step']!r}, leaves {steps[-1][name]} {name}, but the files hold {counted}",
            )


def check_cut(cut: int, share: int, below: int, upto: int, interactions: int, findings: Findings) -> None:
    """Check a cut in time: `share` tenths of all interactions must precede this timestamp.

    Args:
        cut: timestamp in the manifest.
        share: tenths, 8 or 9.
        below: number of interactions before the cut.
        upto: number of interactions before or at the cut.
        interactions: number of all interactions.
        findings: updated with what is wrong.
    """
    place = interactions * share // 10
    if not below <= place < upto:
        findings.add(
            CUTS,
            "manifest.json",
            f"the cut {cut} should be the timestamp of interaction {place} of {interactions} in order of time, but "
            f"{below} interactions are before it and {upto - below} at it",
        )
