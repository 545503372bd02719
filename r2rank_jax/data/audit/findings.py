"""The findings of an audit: which check failed, where, what is wrong there, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from r2rank_jax.data.prepared.settings import Array

SHOWN = 20  # number of findings of one check that are described; the rest are only counted


@dataclass(frozen=True)
class Check:
    """One property that a prepared folder must have."""

    name: str
    requires: str
    remedy: str
    fault: bool = True  # False: a warning, which valid data can cause


@dataclass
class Findings:
    """All findings so far. A check with a million offending rows takes the memory of `SHOWN` descriptions."""

    descriptions: dict[Check, list[str]] = field(default_factory=dict)
    counts: dict[Check, int] = field(default_factory=dict)

    def add(self, check: Check, where: str, wrong: str) -> None:
        """Record one violation.

        Args:
            check: the check that failed.
            where: file, and its row (parquet, from 0) or line (text, from 1) if there is one.
            wrong: what is wrong there.
        """
        self.counts[check] = self.counts.get(check, 0) + 1
        descriptions = self.descriptions.setdefault(check, [])
        if len(descriptions) < SHOWN:
            descriptions.append(f"{where}: {wrong}")

    def add_rows(self, check: Check, file: str, rows: Array, wrong: Callable[[int], str], place: str = "row") -> None:
        """Record a violation for each of `rows`.

        Args:
            check: the check that failed.
            file: file that holds the rows, relative to the folder.
            rows: [n] numbers of the offending rows or lines.
            wrong: describes what is wrong in a row; called only for rows that will be shown.
            place: "row" or "line".
        """
        room = SHOWN - len(self.descriptions.get(check, ()))
        for row in rows[:room].tolist():
            self.add(check, f"{file}, {place} {row}", wrong(row))
        if len(rows) > room:
            self.counts[check] = self.counts.get(check, 0) + len(rows) - room

    @property
    def faults(self) -> int:
        """Number of violations that are faults, not warnings."""
        return sum(count for check, count in self.counts.items() if check.fault)

    @property
    def warnings(self) -> int:
        """Number of violations that are warnings."""
        return sum(self.counts.values()) - self.faults

    def text(self) -> str:
        """All findings, faults first, one per line; empty if there are none."""
        lines = []
        for check in sorted(self.counts, key=lambda check: not check.fault):
            count, descriptions = self.counts[check], self.descriptions[check]
            lines.append(f"{'FAULT' if check.fault else 'warning'} {check.name} ({count}): {check.requires}")
            lines += [f"    {description}" for description in descriptions]
            if count > len(descriptions):
                lines.append(f"    ... and {count - len(descriptions)} more")
            lines.append(f"    remedy: {check.remedy}")
        return "".join(line + "\n" for line in lines)
