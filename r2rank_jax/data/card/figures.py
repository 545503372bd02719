"""Figures of a data card as SVG files.

The same numbers give the same bytes. They are readable on light and dark pages.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from r2rank_jax.data.prepared.tables import Array

BLUE, ORANGE, INK, MUTED, GRID = "#2b6cb0", "#c05621", "#1a202c", "#5a6673", "#e2e8f0"
_STYLE: Any = {
    "svg.fonttype": "none",  # real text: sharp and searchable
    "svg.hashsalt": "r2rank",  # makes ids inside the file deterministic
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",  # a figure cannot detect whether the page around it is dark
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def history_lengths(lengths: Array) -> bytes:
    """Histogram of users by number of interactions [users], on a logarithmic axis."""
    with _style():
        figure, axes = _figure()
        low, high = max(int(lengths.min()), 1), int(lengths.max()) + 1
        # The edges are integers, so that every bin contains an integer and none is empty by construction.
        edges = np.unique(np.geomspace(low, high, 37).round().astype(np.int64))
        counts, edges = np.histogram(lengths, edges if len(edges) > 1 else np.array([low, low + 1]))
        axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
        median = int(np.quantile(lengths, 0.5, method="inverted_cdf"))
        _mark(axes, median, f"median {median:,}")
        axes.set_xscale("log")
        _plain_ticks(axes, low, high)
        axes.set(xlabel="interactions of a user", ylabel="users", ylim=(0, None))
        return _svg(figure)


def popularity(per_item: Array) -> bytes:
    """Share of all interactions that belongs to the most popular items; per_item [items]."""
    with _style():
        figure, axes = _figure()
        share = np.concatenate([[0], np.cumsum(np.sort(per_item)[::-1])]) / max(per_item.sum(), 1)
        part = np.arange(len(share)) / max(len(per_item), 1)
        keep = np.unique(np.linspace(0, len(share) - 1, 401).round().astype(np.int64))
        axes.plot(100 * part[keep], 100 * share[keep], color=BLUE, linewidth=2)
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="equally popular items")
        for percent, marker in ((1, "o"), (10, "s")):
            at = int(np.ceil(percent / 100 * len(per_item)))
            axes.plot(
                [100 * part[at]],
                [100 * share[at]],
                marker,
                color=ORANGE,
                markersize=6,
                label=f"the top {percent}% of items have {100 * share[at]:.0f}% of interactions",
            )
        axes.legend(loc="lower right", handletextpad=0.3)
        axes.set(xlabel="items, most popular first, %", ylabel="interactions, %", xlim=(0, 100), ylim=(0, 101))
        return _svg(figure)


def over_time(days: Counter[int], cuts: Mapping[str, int]) -> bytes | None:
    """Interactions over calendar time.

    Args:
        days: number of interactions by day since 1970.
        cuts: name -> day, drawn as lines.

    Returns:
        The SVG, or None if all interactions are on one day.
    """
    first, last = min(days), max(days)
    if first == last:
        return None
    unit, word = ("D", "day") if last - first < 92 else ("M", "month") if last - first < 365 * 12 else ("Y", "year")
    dates = np.array(list(days), "datetime64[D]").astype(f"datetime64[{unit}]")
    start = dates.min()
    counts = np.bincount((dates - start).astype(np.int64), list(days.values()))
    edges = (start + np.arange(len(counts) + 1).astype(f"timedelta64[{unit}]")).astype("datetime64[D]")
    with _style():
        figure, axes = _figure()
        axes.stairs(counts, edges.astype(float), fill=True, color=BLUE, alpha=0.85)
        axes.xaxis_date()
        axes.xaxis.set_major_locator(locator := matplotlib.dates.AutoDateLocator(minticks=3, maxticks=8))
        axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator, show_offset=True))
        for name, day in cuts.items():
            _mark(axes, day, name, left=day == min(cuts.values()))
        axes.set(ylabel=f"interactions per {word}", ylim=(0, float(np.max(counts)) * 1.18))
        return _svg(figure)


def ratings(counts: Mapping[str, int]) -> bytes | None:
    """Interactions by rating, or None if there are fewer than 2 or more than 12 different ratings."""
    if not 1 < len(counts) <= 12:
        return None
    with _style():
        figure, axes = _figure()
        total = sum(counts.values())
        bars = axes.bar(list(counts), list(counts.values()), color=BLUE, alpha=0.85, width=0.7)
        axes.bar_label(bars, [f"{100 * count / total:.0f}%" for count in counts.values()], padding=2, fontsize=9)
        axes.tick_params(axis="x", length=0)
        axes.set(xlabel="rating", ylabel="interactions", ylim=(0, 1.12 * max(counts.values())))
        return _svg(figure)


def candidates(relevant: Array, negative: Array) -> bytes | None:
    """Popularity of relevant items and of negatives, a difference that a ranking by popularity can exploit.

    Args:
        relevant: [bins] number of relevant candidates by popularity percentile.
        negative: [bins] number of negatives by popularity percentile.

    Returns:
        The SVG, or None if there are no lists.
    """
    if not relevant.sum() or not negative.sum():
        return None
    with _style():
        figure, axes = _figure()
        percentile = 100 * np.arange(len(relevant) + 1) / len(relevant)
        for histogram, color, name in ((relevant, ORANGE, "relevant items"), (negative, BLUE, "negatives")):
            below = 100 * np.concatenate([[0], np.cumsum(histogram)]) / histogram.sum()
            axes.plot(percentile, below, color=color, linewidth=2, label=name)
            axes.fill_between(percentile, below, color=color, alpha=0.08)
        axes.legend(loc="upper left")
        axes.set(
            xlabel="popularity percentile in the catalog",
            ylabel="candidates up to this percentile, %",
            xlim=(0, 100),
            ylim=(0, 101),
        )
        return _svg(figure)


def _mark(axes: Axes, at: float, text: str, *, left: bool = False) -> None:
    """Draw a dashed vertical line with its name next to its upper end."""
    axes.axvline(at, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        text,
        (at, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, -2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=9,
        color=ORANGE,
    )


def _plain_ticks(axes: Axes, low: int, high: int) -> None:
    """Use the ticks 1, 2, 5, 10, 20, 50 ... written out, instead of powers of ten."""
    ticks = [m * 10**e for e in range(10) for m in (1, 2, 5) if low <= m * 10**e <= high]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if str(tick)[0] == "1"]
    axes.set_xticks(ticks or [low], [f"{tick:,}" for tick in ticks or [low]])
    axes.minorticks_off()


def _style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(_STYLE)


def _figure() -> tuple[Figure, Axes]:
    # pyplot is avoided because it keeps global state and may look for a window system.
    figure = Figure(figsize=(6.4, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
