"""Count the collectives of a compiled program in its HLO text."""

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
_TRIP_COUNT = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_SHAPE = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")


class Collectives(NamedTuple):
    """Calls of one kind in one run of a program, and the bytes of their results on one device."""

    calls: int
    bytes: int


def count_collectives(hlo: str) -> dict[str, Collectives]:
    """Count every collective once per iteration of the loops around it.

    Args:
        hlo: text of an optimized module, `Compiled.as_text()`.

    Returns:
        Kind -> calls and bytes. A loop whose trip count is not known at compile time counts as one iteration.
    """
    operations: dict[str, list[tuple[str, int]]] = {}  # computation -> (kind, bytes)
    calls: dict[str, list[tuple[str, int]]] = {}  # computation -> (computation, iterations)
    computation, entry = "", ""
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            computation = head[2]
            entry = computation if head[1] else entry
            operations[computation], calls[computation] = [], []
            continue
        operation = _OPERATION.search(line)
        if operation:
            operations[computation].append((operation[2], _bytes(operation[1], started=operation[3] is not None)))
        if "calls=" in line or "=%" in line or "to_apply=" in line:
            trip_count = _TRIP_COUNT.search(line)
            names = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                names += [name.strip().lstrip("%") for name in branches.split(",")]
            calls[computation] += [(name, int(trip_count[1]) if trip_count else 1) for name in names]
    return _sum(entry, operations, calls)


def _sum(
    entry: str, operations: dict[str, list[tuple[str, int]]], calls: dict[str, list[tuple[str, int]]]
) -> dict[str, Collectives]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for kind, size in operations.get(name, []):
            counts[kind] += times
            sizes[kind] += times * size
        for called, iterations in calls.get(name, []):
            visit(called, times * iterations)

    visit(entry, 1)
    return {kind: Collectives(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


def _bytes(shapes: str, *, started: bool) -> int:
    """Bytes of a result. The result of an asynchronous start is a tuple that includes the operands, so only its largest
    element is counted."""
    sizes = [_width(kind) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in _SHAPE.findall(shapes)]
    return max(sizes, default=0) if started else sum(sizes)


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
