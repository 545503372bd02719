"""Reduces a profile of `jax.profiler` to a table of the time per kernel.

with jax.profiler.trace(folder, profiler_options=options()): ...
print_kernels(kernel_times(folder))
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

SHOWN = 40  # kernels in the printed table; the last line sums up the others


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel of one operation."""

    program: str  # the jitted function
    operation: str  # XLA's name
    kernel: str  # name given by the vendor's library or the compiler
    launches: int
    seconds: float


def options() -> Any:
    """Profiler options without the Python tracer, which records far more events than the device."""
    settings = jax.profiler.ProfileOptions()
    settings.python_tracer_level = 0
    return settings


def kernel_times(folder: Path) -> list[Kernel]:
    """Kernels of all accelerators in the newest profile under `folder`, most expensive first.

    Raises:
        FileNotFoundError: there is no profile.
    """
    profiles = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not profiles:
        raise FileNotFoundError(f"no profile (*.xplane.pb) under {folder}")
    launches: dict[tuple[str, str, str], int] = defaultdict(int)
    nanoseconds: dict[tuple[str, str, str], float] = defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(profiles[-1])).planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # other lines repeat the launches, grouped by module or name
                continue
            for event in line.events:
                stats = {name: value for name, value in event.stats if name in ("hlo_op", "hlo_module")}
                kernel = re.sub(r"[0-9]{3,}", "#", event.name)[:60]
                name = str(stats.get("hlo_module", "")), str(stats.get("hlo_op", "")), kernel
                launches[name] += 1
                nanoseconds[name] += event.duration_ns
    kernels = [Kernel(*name, launches[name], nanoseconds[name] / 1e9) for name in launches]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def print_kernels(kernels: list[Kernel], shown: int = SHOWN) -> None:
    """Print the total of each program and a table of the most expensive kernels."""
    total = sum(kernel.seconds for kernel in kernels)
    by_program: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        by_program[kernel.program] += kernel.seconds
    print(f"device time {total:.3f} s")
    for program, seconds in sorted(by_program.items(), key=lambda pair: -pair[1]):
        print(f"  {seconds:8.3f} s  {program}")
    for kernel in kernels[:shown]:
        share = kernel.seconds / max(total, 1e-12)
        print(
            f"{kernel.seconds:8.4f} s {share:5.1%} {kernel.launches:6d}x  {kernel.program}: {kernel.operation}"
            f"  [{kernel.kernel}]"
        )
    rest = sum(kernel.seconds for kernel in kernels[shown:])
    print(f"{rest:8.4f} s  in {max(len(kernels) - shown, 0)} more kernels")
