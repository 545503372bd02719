"""Variance of the gradient estimators against the number of sampled rankings, for several shapes of lists.

    python benchmarks/estimator_variance.py --out docs/estimator_variance.svg            about 4 minutes on 2 cores

For each shape one list is drawn, and for each estimator and M, 2,000 gradient estimates are computed. The total
variance, the sum of the variances of all components, is divided by |∇V|² (exact, by quadrature). At 1 the noise of one
estimate is as large as the gradient. Prints a table and then one JSON line, and draws the figure of docs/ranking.md.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from r2rank_jax.ranking import expected_ndcg, surrogate

NUM_ESTIMATES, NUM_RANKINGS = 2000, (2, 4, 8, 16, 32, 64)
# Name in the figure → options of `surrogate`, color, line style.
ESTIMATORS: dict[str, tuple[dict, str, str]] = {
    "reinforce": ({"estimator": "reinforce"}, "#888888", "-"),
    "reward_to_go": ({"estimator": "reward_to_go"}, "#1f6fb4", "-"),
    "pl_rank, centered gains": ({"estimator": "pl_rank"}, "#c4541a", "-"),
    "pl_rank, plain": ({"estimator": "pl_rank", "centered_gains": False}, "#c4541a", ":"),
}


def shapes() -> dict[str, tuple[np.ndarray, np.ndarray, int | None]]:
    """Name → scores [N], labels [N], k. Relevant items have slightly higher scores on average."""
    rng = np.random.default_rng(0)
    out = {}
    for name, num_items, grades, k in (
        ("20 items, 1 positive, k = 10", 20, [1], 10),
        ("20 items, 5 positives, k = 10", 20, [1] * 5, 10),
        ("20 items, grades 1-4, k = 20", 20, [1, 2, 3, 4], None),
        ("200 items, grades 1-4, k = 10", 200, [1] * 10 + [2] * 5 + [3, 3, 4], 10),
    ):
        labels = np.zeros(num_items, np.float32)
        labels[: len(grades)] = grades
        out[name] = (rng.normal(size=num_items) + 0.7 * (labels > 0)).astype(np.float32), labels, k
    return out


@functools.partial(jax.jit, static_argnames=("num_samples", "k", "options"))
def estimates(key, scores, labels, *, num_samples, k, options):
    """NUM_ESTIMATES independent gradient estimates [NUM_ESTIMATES, N]."""

    def gradient(key):
        return jax.grad(
            lambda s: surrogate(key, s, labels, num_samples=num_samples, k=k, **dict(options)),
        )(scores)

    return jax.lax.map(gradient, jax.random.split(key, NUM_ESTIMATES), batch_size=100)


def relative_variance(scores: np.ndarray, labels: np.ndarray, k: int | None, options: dict) -> list[float]:
    """Total variance over |∇V|² for each number of rankings."""
    exact = np.asarray(jax.grad(lambda s: expected_ndcg(s, labels, k=k))(jnp.asarray(scores)), np.float64)
    out = []
    for num_samples in NUM_RANKINGS:
        settings = {"num_samples": num_samples, "k": k, "options": tuple(options.items())}
        gradients = estimates(jax.random.key(1), jnp.asarray(scores), jnp.asarray(labels), **settings)
        total = np.asarray(gradients, np.float64).var(axis=0, ddof=1).sum()
        out.append(float(total / (exact**2).sum()))
    return out


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel per shape, both axes logarithmic."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "r2rank"}  # real text, and the same bytes every time
    figure, axes = plt.subplots(1, len(results), figsize=(3.0 * len(results), 3.2), sharey=True, layout="constrained")
    for axis, (shape, lines) in zip(axes, results.items()):
        for name, values in lines.items():
            _, color, style = ESTIMATORS[name]
            axis.plot(NUM_RANKINGS, values, style, color=color, label=name, marker="o", markersize=3)
        axis.axhline(1.0, color="#cccccc", linewidth=0.8, zorder=0)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(NUM_RANKINGS, [str(m) for m in NUM_RANKINGS])
        axis.set_title(shape, fontsize=9)
        axis.set_xlabel("M, rankings per list", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("total variance / |∇V|²", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/estimator_variance.svg"), help="file for the figure")
    out = parser.parse_args().out
    print(f"{'list':32s} {'estimator':24s}" + "".join(f"{f'M={m}':>9s}" for m in NUM_RANKINGS))
    results: dict[str, dict[str, list[float]]] = {}
    for shape, (scores, labels, k) in shapes().items():
        for name, (options, _, _) in ESTIMATORS.items():
            values = relative_variance(scores, labels, k, options)
            results.setdefault(shape, {})[name] = values
            print(f"{shape:32s} {name:24s}" + "".join(f"{v:9.3f}" for v in values), flush=True)
    draw(results, out)
    print(json.dumps({"M": NUM_RANKINGS, "variance_over_squared_gradient": results, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
