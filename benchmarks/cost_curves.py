"""Measures how the cost of a step grows with items, rationales, prefix and length; writes docs/cost_curves.svg.

    python benchmarks/cost_curves.py --out docs/cost_curves.svg            about 6 minutes on 2 cores

Varies one of N, G, P and T at a time, from half to twice its value in the reference shape. Prints the times, too.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import bench_update
import jax
import matplotlib
import matplotlib.pyplot as plt
from workload import REFERENCE, Shape, device, flops, make, prefill_and_decode_seconds

from r2rank_jax.train.chunks import Rows

FACTORS = (0.5, 1, 2)
AXES = {
    "items": "N, items",
    "rationales": "G, rationales per item",
    "prefix": "P, prefix tokens",
    "length": "T, tokens",
}
PHASES = ("prefill", "decode", "update")
COLORS = ("#7a8b99", "#2b6cb0", "#c05621")


def measure(shape: Shape, rounds: int) -> tuple[float, float, float]:
    """Median seconds of each phase."""
    params, batch, rationales = make(shape)
    weights = jax.random.normal(jax.random.key(1), rationales.length.shape)
    line, _ = bench_update.measure("", shape, Rows(batch, rationales, weights), params, flops(shape)["update"], rounds)
    jax.clear_caches()  # otherwise compiled programs would fill the memory
    return *prefill_and_decode_seconds(shape, rounds), line.seconds


def draw(curves: dict[str, list[tuple[int, tuple[float, float, float]]]], out: Path) -> None:
    matplotlib.use("svg")
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "r2rank", "font.size": 9}
    figure, panels = plt.subplots(1, len(curves), figsize=(11, 2.9), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, curves.items()):
        sizes = [size for size, _ in points]
        for place, (phase, color) in enumerate(zip(PHASES, COLORS)):
            panel.plot(sizes, [times_s[place] for _, times_s in points], "o-", color=color, label=phase, markersize=4)
        panel.set(xlabel=AXES[axis], xlim=(0, None), ylim=(0, None), xticks=sizes)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/cost_curves.svg"), help="file to write")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed calls; medians are drawn")
    arguments = parser.parse_args()
    if not arguments.out.parent.is_dir():
        parser.error(f"--out must be in a folder that exists, got {arguments.out}")
    curves: dict[str, list[tuple[int, tuple[float, float, float]]]] = {}
    for axis in AXES:
        for factor in FACTORS:
            size = round(factor * getattr(REFERENCE, axis))
            times_s = measure(dataclasses.replace(REFERENCE, **{axis: size}), arguments.rounds)
            curves.setdefault(axis, []).append((size, times_s))
            seconds = ", ".join(f"{phase} {s:.3f} s" for phase, s in zip(PHASES, times_s))
            print(f"{AXES[axis]} = {size}: {seconds}", flush=True)
    draw(curves, arguments.out)
    print(f"{arguments.out}; {device()}")


if __name__ == "__main__":
    main()
