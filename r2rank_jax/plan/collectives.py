"""Count the collectives of a compiled program in its HLO text, and the bytes that leave a slice."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
SEND = "send"
"""How XLA for TPUs crosses slices: each slice reduces or gathers, then sends to the Megascale runtime on its hosts."""

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join((*KINDS, SEND))})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_SHAPE = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)+)\}"
)


class Collectives(NamedTuple):
    """Calls of one kind in one run of a program."""

    calls: int
    bytes: int  # of their results on one device
    crossing_bytes: int = 0  # that one slice sends to the others


class Slices(NamedTuple):
    """Consecutive devices of a program that belong to one slice."""

    number: int
    devices: int  # of each


ONE_SLICE = Slices(1, 1)


def count_collectives(hlo: str, slices: Slices = ONE_SLICE) -> dict[str, Collectives]:
    """Count every collective once per iteration of the loops around it.

    Args:
        hlo: text of an optimized module, `Compiled.as_text()`.
        slices: of the program's devices.

    Returns:
        Kind -> calls and bytes. A loop whose trip count is not known at compile time counts as one iteration.
    """
    operations: dict[str, list[tuple[str, int, int]]] = {}  # computation -> (kind, bytes, crossing bytes)
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
        if operation and (operation[2] != SEND or "xla_megascale_runtime" in line):
            kind, size = operation[2], _bytes(operation[1], operation[2], started=operation[3] is not None)
            operations[computation].append((kind, size, crossing_bytes(line, kind, size, slices)))
        if "calls=" in line or "=%" in line or "to_apply=" in line:
            trip_count = _TRIP_COUNT.search(line)
            names = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                names += [name.strip().lstrip("%") for name in branches.split(",")]
            calls[computation] += [(name, int(trip_count[1]) if trip_count else 1) for name in names]
    return _sum(entry, operations, calls)


def crossing_bytes(line: str, kind: str, size: int, slices: Slices) -> int:
    """Bytes that one slice sends to the others for a collective, on average over the slices.

    The least is counted: the devices of a slice first reduce or gather among themselves, and every slice then sends
    each byte of what the others need once. A plain ring over the devices of all slices sends up to S / (S − 1) times as
    much for S slices, twice as much for two.

    Args:
        line: the operation's line in the HLO text.
        kind: one of `KINDS`, or `SEND`.
        size: bytes of its result on one device.
        slices: of the program's devices.
    """
    number, devices = slices
    if number == 1:
        return 0
    if kind == SEND:  # of each device of the slice; the runtime scatters and gathers what it reduces
        return size * devices * 2 * (number - 1) // number if '"ALL_REDUCE"' in line else size * devices
    total = 0
    for group in _groups(line, number * devices):
        spanned = len({device // devices for device in group})
        if kind == "all-reduce":
            total += 2 * (spanned - 1) * size
        elif kind == "all-gather":
            total += (spanned - 1) * size
        elif kind == "reduce-scatter":
            total += (spanned - 1) * size * len(group)
        elif kind == "all-to-all":
            total += (spanned - 1) * size * len(group) // spanned
        else:  # a permutation's groups are pairs of sender and receiver
            total += (spanned - 1) * size
    return total // number


def _groups(line: str, devices: int) -> list[list[int]]:
    """The devices of each group of a collective. A notation that is not known counts as one group of all devices."""
    listed, iota, mesh = _LISTED.search(line), _IOTA.search(line), _MESH.search(line)
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if iota:  # [groups, members]<=[sizes]T(permutation)
        return _permuted(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    if mesh:  # ['data'=2,'fsdp'=4], device_ids=([sizes]T(permutation)) {'data'}
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _permuted(mesh[2], mesh[3]) if mesh[2] else np.arange(devices)
        names = list(axes)
        grouped = [names.index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        others = [axis for axis in range(len(names)) if axis not in grouped]
        members = math.prod(axes[names[axis]] for axis in grouped)
        return ids.reshape(list(axes.values())).transpose(others + grouped).reshape(-1, members).tolist()
    return [list(range(devices))]


def _permuted(sizes: str, permutation: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (ids.transpose(_numbers(permutation)) if permutation else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _sum(
    entry: str, operations: dict[str, list[tuple[str, int, int]]], calls: dict[str, list[tuple[str, int]]]
) -> dict[str, Collectives]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    crossing: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for kind, size, across in operations.get(name, []):
            counts[kind] += times
            sizes[kind] += times * size
            crossing[kind] += times * across
        for called, iterations in calls.get(name, []):
            visit(called, times * iterations)

    visit(entry, 1)
    return {kind: Collectives(counts[kind], sizes[kind], crossing[kind]) for kind in (*KINDS, SEND) if counts[kind]}


def _bytes(shapes: str, kind: str, *, started: bool) -> int:
    """Bytes of a result.

    The tuple of an asynchronous start holds operands and then results, and of a permutation also two integers; only
    that of an all-reduce holds nothing but results. A send's tuple holds the data, an integer and a token.
    """
    sizes = [_width(each) * math.prod(int(n) for n in sizes.split(",") if n) for each, sizes in _SHAPE.findall(shapes)]
    if started and kind == "all-gather":
        return sum(sizes[len(sizes) // 2 :])
    if kind == SEND or (started and kind != "all-reduce"):
        return max(sizes, default=0)
    return sum(sizes)


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
