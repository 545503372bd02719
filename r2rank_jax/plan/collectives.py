"""Collectives of a compiled program, counted in its HLO text."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_SHAPE = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")


class Collectives(NamedTuple):
    """Calls of one kind in one run of a program, and the bytes of their results on one device."""

    calls: int
    bytes: int


def count_collectives(hlo: str) -> dict[str, Collectives]:
    """Count every collective as often as the loops around it turn.

    Args:
        hlo: text of an optimised module, `Compiled.as_text()`.

    Returns:
        Kind -> count and bytes. A loop whose turns are not known when compiling counts once.
    """
    found: dict[str, list[tuple[str, int]]] = {}  # computation -> (kind, bytes)
    calls: dict[str, list[tuple[str, int]]] = {}  # computation -> (computation, turns)
    here, entry = "", ""
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            here = head[2]
            entry = here if head[1] else entry
            found[here], calls[here] = [], []
            continue
        operation = _OPERATION.search(line)
        if operation:
            found[here].append((operation[2], _bytes(operation[1], started=operation[3] is not None)))
        if "calls=" in line or "=%" in line or "to_apply=" in line:
            turns = _TURNS.search(line)
            names = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                names += [name.strip().lstrip("%") for name in branches.split(",")]
            calls[here] += [(name, int(turns[1]) if turns else 1) for name in names]
    return _sum(entry, found, calls)


def _sum(
    entry: str, found: dict[str, list[tuple[str, int]]], calls: dict[str, list[tuple[str, int]]]
) -> dict[str, Collectives]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for kind, size in found.get(name, []):
            counts[kind] += times
            sizes[kind] += times * size
        for called, turns in calls.get(name, []):
            visit(called, times * turns)

    visit(entry, 1)
    return {kind: Collectives(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


def _bytes(shapes: str, *, started: bool) -> int:
    """Bytes of a result. Of an operation that is only started the result is a tuple with the operands in it: its
    largest part is counted."""
    sizes = [_width(kind) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in _SHAPE.findall(shapes)]
    return max(sizes, default=0) if started else sum(sizes)


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
