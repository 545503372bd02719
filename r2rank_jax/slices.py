"""The groups of devices that a slow network joins: TPU slices, or machines with GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from r2rank_jax.errors import ConfigError


def grouped_by_slice(slices: int, devices: Sequence[Any]) -> list[list[Any]]:
    """Divide devices into the groups that the slow network joins.

    JAX gives devices a `slice_index`: on TPUs that of the slice, whose number must be declared. Elsewhere, if there are
    several processes, it gives one to every machine, however many processes run on it. Machines need not be declared,
    because a fast network may join them, and several of them may form one slice. Where all have the same index (a
    machine does not report its boot id, or a test runs all processes on one machine), consecutive processes form groups
    of equal size. The CPU devices of a single process, which only imitate a mesh, are divided in order.

    Args:
        slices: `mesh.slices`.
        devices: all devices of the mesh.

    Returns:
        As many lists of equal length as there are slices.

    Raises:
        ConfigError: the devices belong to another number of slices, or cannot be divided equally.
    """
    platform, groups = devices[0].platform, _grouped(devices, "slice_index")
    if platform == "tpu":
        if len(groups) != slices:
            data = f" and mesh.data to {len(groups)} or a multiple" if len(groups) > 1 else ""
            raise ConfigError(
                f"mesh.slices must be the number of TPU slices of the devices, {len(groups)}, got {slices}; set "
                f"mesh.slices to {len(groups)}{data}"
            )
    elif slices == 1:
        groups = [list(devices)]
    else:
        groups = _merged(slices, devices, groups)
    if len({len(group) for group in groups}) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        raise ConfigError(f"all slices must have equally many devices, got {sizes}; use slices of one size")
    return groups


def _merged(slices: int, devices: Sequence[Any], machines: list[list[Any]]) -> list[list[Any]]:
    """Consecutive machines, processes or devices, whichever there are several of, in as many groups as slices."""
    units, name = machines, "machines"
    if len(units) == 1:
        units, name = _grouped(devices, "process_index"), "processes"
    if len(units) == 1 and devices[0].platform == "cpu":
        units, name = [[device] for device in devices], "devices"
    if len(units) % slices:
        raise ConfigError(
            f"mesh.slices must divide the number of {name}, {len(units)}, got {slices}; set mesh.slices to the number "
            "of machines, or to 1 where a fast network joins them"
        )
    share = len(units) // slices
    return [list(itertools.chain(*units[i : i + share])) for i in range(0, len(units), share)]


def _grouped(devices: Sequence[Any], attribute: str) -> list[list[Any]]:
    """Devices by an attribute, in its order; those without the attribute belong together."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(getattr(device, attribute, 0), []).append(device)
    return [groups[index] for index in sorted(groups)]
