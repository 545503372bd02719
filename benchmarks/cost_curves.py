"""How the cost of a step grows with items, rationales, prefix and length; writes docs/cost_curves.svg.

    python benchmarks/cost_curves.py --out docs/cost_curves.svg            about 6 minutes on 2 cores

One of N, G, P and T at a time is made half and twice the reference shape's. Prints the seconds it draws.
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
COLOURS = ("#7a8b99", "#2b6cb0", "#c05621")


def measure(shape: Shape, rounds: int) -> tuple[float, float, float]:
    """Median seconds of each phase."""
    params, batch, rationales = make(shape)
    weights = jax.random.normal(jax.random.key(1), rationales.length.shape)
    line, _ = bench_update.measure("", shape, Rows(batch, rationales, weights), params, flops(shape)["update"], rounds)
    jax.clear_caches()  # programs and their memory would pile up from point to point
    return *prefill_and_decode_seconds(shape, rounds), line.seconds


def draw(found: dict[str, list[tuple[int, tuple[float, float, float]]]], out: Path) -> None:
    matplotlib.use("svg")
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "r2rank", "font.size": 9}
    figure, panels = plt.subplots(1, len(found), figsize=(11, 2.9), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, found.items()):
        sizes = [size for size, _ in points]
        for place, (phase, colour) in enumerate(zip(PHASES, COLOURS)):
            panel.plot(sizes, [took[place] for _, took in points], "o-", color=colour, label=phase, markersize=4)
        panel.set(xlabel=AXES[axis], xlim=(0, None), ylim=(0, None), xticks=sizes)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/cost_curves.svg"), help="where the figure goes")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls; medians are drawn")
    given = parser.parse_args()
    if not given.out.parent.is_dir():
        parser.error(f"--out must be in a folder that exists, got {given.out}")
    found: dict[str, list[tuple[int, tuple[float, float, float]]]] = {}
    for axis in AXES:
        for factor in FACTORS:
            size = round(factor * getattr(REFERENCE, axis))
            took = measure(dataclasses.replace(REFERENCE, **{axis: size}), given.rounds)
            found.setdefault(axis, []).append((size, took))
            seconds = ", ".join(f"{phase} {s:.3f} s" for phase, s in zip(PHASES, took))
            print(f"{AXES[axis]} = {size}: {seconds}", flush=True)
    draw(found, given.out)
    print(f"{given.out}; {device()}")


if __name__ == "__main__":
    main()
