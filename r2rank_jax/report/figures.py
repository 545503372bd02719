"""Figures as inline SVG. Colors are CSS variables of the page, so one drawing serves light and dark mode.

Each figure is small (about 5 inches), and the page places figures side by side or below each other. This keeps text
readable on a phone, where a wide figure would shrink.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from r2rank_jax.phases import PHASES
from r2rank_jax.report.reading import Curve, Run, label, metric_label

# Placeholder colors that matplotlib can parse -> CSS variables of the page. They must be distinct and unused otherwise.
COLORS = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--grid)",
    "#010206": "var(--baseline)",
    "#010207": "var(--sft)",
    "#010208": "var(--sft-continued)",
    "#010209": "var(--rl)",
}
INK, MUTED, GRID, BASELINE, SFT, SFT_CONTINUED, RL = COLORS
SYSTEM_COLOR = {"sft": SFT, "sft_continued": SFT_CONTINUED, "rl": RL}
MARKERS = {"sft": "o", "sft_continued": "s", "rl": "D"}  # also tells systems apart without colors

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text as text: sharp, searchable, in the font of the page
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # names may contain dollar signs
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def interval_plot(run: Run) -> Markup | None:
    """The headline metric of each system as a dot with its 95% interval, and a line at the analytic random value."""
    metric = run.metric
    cells = {name: row[metric] for name, row in run.systems.items() if metric in row}
    if not cells:
        return None
    with _style("intervals"):
        figure, axes = _figure(5.4, 1.05 + 0.34 * len(cells))
        expected = (run.results.get("analytic_random") or {}).get(metric)
        if expected is not None:
            axes.axvline(expected, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                f"chance {expected:.3f}",
                (expected, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=9,
            )
        for place, (name, cell) in enumerate(cells.items()):
            color, (low, high) = SYSTEM_COLOR.get(name, BASELINE), cell["ci95"]
            axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot([cell["mean"]], [place], marker=MARKERS.get(name, "o"), color=color, markersize=6)
            axes.annotate(
                f"{cell['mean']:.3f}",
                (high, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(cells)), [label(name) for name in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        right = max(cell["ci95"][1] for cell in cells.values())
        left = min([cell["ci95"][0] for cell in cells.values()] + ([expected] if expected is not None else []))
        room = max(right - left, 0.05)
        axes.set_xlim(left - 0.06 * room, right + 0.16 * room)  # space for the numbers on the right
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(metric_label(metric))
        return _svg(figure, f"{metric_label(metric)} of every system with its 95% interval")


def validation_plot(run: Run) -> Markup | None:
    """Validation metric over training time; RL and SFT continued both start where SFT ended."""
    name = f"validation/{run.metric}"
    curves = {phase: run.curve(phase, name) for phase in PHASES}
    if not any(curve.values for curve in curves.values()):
        return None
    fork_s = run.duration_s("sft")
    with _style("validation"):
        figure, axes = _figure(5.4, 3.1)
        forked = False
        for phase, curve in curves.items():
            if not curve.values:
                continue
            seconds, values = list(curve.wall_s), list(curve.values)
            if phase != "sft":
                forked = True
                seconds = [fork_s + t for t in seconds]
                if curves["sft"].values and curve.steps[0] > 0:
                    seconds, values = [fork_s, *seconds], [curves["sft"].values[-1], *values]
            _line(axes, [t / 60 for t in seconds], values, phase)
        if forked and fork_s > 0:
            axes.axvline(fork_s / 60, color=MUTED, linestyle=(0, (2, 3)), linewidth=1)
        axes.set_xlabel("training time, minutes")
        axes.set_title(f"Validation {metric_label(run.metric)}")
        _legend(axes)
        return _svg(figure, f"Validation {metric_label(run.metric)} over training time, per phase")


def rationales_plot(run: Run) -> Markup | None:
    """NDCG at the largest k by how many sampled rationales are averaged, and that of the greedy rationale."""
    curves = {phase: cells for phase, cells in (run.results.get("rationale_curve") or {}).items() if phase in MARKERS}
    if not curves:
        return None
    with _style("rationales"):
        figure, axes = _figure(5.4, 3.1)
        counts: list[int] = []
        for phase, cells in curves.items():
            counts = [int(count) for count in cells if count != "greedy"]
            _line(axes, range(len(counts)), [cells[str(count)]["mean"] for count in counts], phase)
            low, high = ([cells[str(count)]["ci95"][side] for count in counts] for side in (0, 1))
            axes.fill_between(range(len(counts)), low, high, color=SYSTEM_COLOR[phase], alpha=0.12, linewidth=0)
            if "greedy" in cells:
                axes.axhline(cells["greedy"]["mean"], color=SYSTEM_COLOR[phase], linestyle=(0, (2, 3)), linewidth=1)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlabel("rationales per item; dotted: one greedy rationale")
        axes.set_title("NDCG by the mean score of several rationales")
        _legend(axes)
        return _svg(figure, "NDCG at the largest k by number of rationales, per phase")


def sft_plot(run: Run) -> Markup | None:
    """Losses of the supervised phase over steps."""
    names = {"loss": INK, "rationale_loss": SFT, "head_loss": RL}
    curves = {name: run.curve("sft", name) for name in names}
    return _panel("SFT losses", curves, names, "sft-losses")


def rl_plots(run: Run) -> list[Markup]:
    """Value, KL and entropy of the RL phase over steps, one small figure each."""
    titles = {
        "value": "RL: value V of the sampled rationales",
        "kl": "RL: KL to the SFT policy, nats per token",
        "entropy": "RL: entropy of the policy",
    }
    drawn = [_panel(title, {n: run.curve("rl", n)}, {n: RL}, f"rl-{n}") for n, title in titles.items()]
    return [figure for figure in drawn if figure is not None]


def _style(salt: str) -> AbstractContextManager[None]:
    """Settings of one figure; `salt` makes the ids in its SVG different from those of other figures."""
    settings: Any = STYLE | {"svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


def _panel(title: str, curves: dict[str, Curve], colors: dict[str, str], salt: str) -> Markup | None:
    drawn = {name: curve for name, curve in curves.items() if curve.values}
    if not drawn:
        return None
    with _style(salt):
        figure, axes = _figure(5.4, 2.6)
        dashes: dict[str, str | tuple[int, tuple[int, ...]]] = {
            "rationale_loss": "-",
            "head_loss": (0, (5, 2)),
        }
        for name, curve in drawn.items():
            style = dashes.get(name, "-")
            axes.plot(
                curve.steps,
                curve.values,
                color=colors[name],
                linestyle=style,
                linewidth=1.5,
                marker="o" if len(curve.values) < 3 else None,
                markersize=4,
                label=name.replace("_", " "),
            )
        axes.set_xlabel("step")
        axes.set_title(title)
        if len(drawn) > 1:
            _legend(axes)
        return _svg(figure, title)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], phase: str) -> None:
    axes.plot(
        x,
        y,
        color=SYSTEM_COLOR[phase],
        marker=MARKERS[phase],
        markersize=4,
        linewidth=1.6,
        linestyle=(0, (5, 2)) if phase == "sft_continued" else "-",
        label=label(phase),
    )


def _legend(axes: Axes) -> None:
    """Place the legend between the title and the axes, where no curve can overlap it."""
    entries = len(axes.get_legend_handles_labels()[1])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.01), ncols=entries, borderaxespad=0, handlelength=2.2)
    axes.set_title(axes.get_title(loc="left"), pad=24)


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    # Not pyplot, which keeps global state and may look for a window system.
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> Markup:
    """The <svg> element only, with CSS colors and a title for screen readers; it scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    for placeholder, variable in COLORS.items():
        text = text.replace(placeholder, variable)
    labeled = Markup('<svg role="img" aria-label="{}"').format(title)
    return Markup(text.replace("<svg", labeled, 1))
