"""Speed of `r2rank_jax.ranking` against its peers. Each pair is timed alternately in one process.

    python benchmarks/bench_ranking.py            about 1 minute on 2 cores

Prints a table and then one JSON line: for each comparison, the peer's median time divided by ours (above 1: ours is
faster). The peers are rax 0.4.0 (jitted); Gumbel noise with a full argsort or top_k in JAX; PL-Rank-3 in NumPy, list by
list and vectorized over the rankings of a list, as in its author's code; and our own exact gradient, to show what 16
sampled rankings save. The times do not include compilation, and each call waits for its result.
"""

from __future__ import annotations

import functools
import json
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import rax

from r2rank_jax.ranking import list_mle, mode, ndcg, sample, surrogate

ROUNDS, CALLS = 5, 8


def pl_rank_3(rng: np.random.Generator, scores: np.ndarray, gains: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """PL-Rank-3 for one list in NumPy float64 (Oosterhuis 2022, algorithm 1): gradient [N] of E[Σ_r w_r gain]."""
    num_items = len(scores)
    k = min(k, num_items)
    weights = 1.0 / np.log2(np.arange(2, k + 2))
    noisy = scores + rng.gumbel(size=(num_samples, num_items))
    if k < num_items:
        top = np.argpartition(-noisy, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(noisy, top, axis=1), axis=1)
        ranking = np.take_along_axis(top, order, axis=1)
    else:
        ranking = np.argsort(-noisy, axis=1)
    mass = np.exp(scores - scores.max())
    placed = mass[ranking]
    left = mass.sum() - np.cumsum(placed, axis=1) + placed  # subtracts, as in the published form
    left = np.maximum(left, 1e-12)
    rewards = gains[ranking] * weights
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    per_gain, toll = np.cumsum(weights / left, axis=1), np.cumsum(to_go / left, axis=1)
    rows = np.arange(num_samples)[:, None]
    gradient = mass * (gains * per_gain[:, -1:] - toll[:, -1:])  # [M, N], right for unplaced items
    gradient[rows, ranking] = (to_go - rewards) + placed * (gains[ranking] * per_gain - toll)
    return gradient.mean(axis=0)


def pl_rank_numpy(scores: np.ndarray, gains: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """`pl_rank_3` over a batch of lists, one after the other."""
    rng = np.random.default_rng(0)
    return np.stack([pl_rank_3(rng, s, g, num_samples, k) for s, g in zip(scores, gains)])


def lists(num_lists: int, num_items: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Scores and graded labels [U, N]."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_lists, num_items)).astype(np.float32)
    labels = rng.choice(5, p=[0.7, 0.15, 0.08, 0.05, 0.02], size=(num_lists, num_items)).astype(np.float32)
    return jnp.asarray(scores), jnp.asarray(labels)


def surrogate_gradient(scores, labels, estimator, num_samples):
    """Value and gradient of a surrogate, k = 10."""

    def total(scores):
        return surrogate(jax.random.key(0), scores, labels, estimator=estimator, num_samples=num_samples, k=10).sum()

    return jax.value_and_grad(total)(scores)


def numpy_peer(scores: jax.Array, labels: jax.Array, num_samples: int) -> Callable[[], np.ndarray]:
    """PL-Rank-3 in NumPy on the same lists, gains normalized beforehand."""
    gains = np.exp2(np.asarray(labels, np.float64)) - 1
    ideal = -np.sort(-gains, axis=1)[:, :10] @ (1 / np.log2(np.arange(2, 12)))
    gains = gains / np.where(ideal > 0, ideal, 1.0)[:, None]
    return functools.partial(pl_rank_numpy, np.asarray(scores, np.float64), gains, num_samples, 10)


def comparisons() -> dict[str, tuple[Callable, Callable]]:
    """Name → (ours, peer), functions without arguments."""
    out: dict[str, tuple[Callable, Callable]] = {}
    scores, labels = lists(256, 100)
    ours = jax.jit(lambda s, y: ndcg(mode(s), y))
    peer = jax.jit(lambda s, y: rax.ndcg_metric(s, y, reduce_fn=None))
    out["ndcg_vs_rax"] = functools.partial(ours, scores, labels), functools.partial(peer, scores, labels)

    scores, labels = lists(64, 1000)
    ours = jax.jit(jax.value_and_grad(lambda s, y: list_mle(s, y).sum()))
    peer = jax.jit(jax.value_and_grad(lambda s, y: rax.listmle_loss(s, y, reduce_fn=jnp.sum)))
    out["log_prob_grad_vs_rax_listmle"] = (
        functools.partial(ours, scores, labels),
        functools.partial(peer, scores, labels),
    )

    gradient = jax.jit(surrogate_gradient, static_argnames=("estimator", "num_samples"))
    for name, estimator, num_lists, num_items, num_samples in (
        ("reward_to_go_vs_numpy_256x100", "reward_to_go", 256, 100, 16),
        ("reward_to_go_vs_numpy_64x1000", "reward_to_go", 64, 1000, 16),
        ("pl_rank_vs_numpy_1x10000", "pl_rank", 1, 10000, 100),
    ):
        scores, labels = lists(num_lists, num_items)
        out[name] = (
            functools.partial(gradient, scores, labels, estimator=estimator, num_samples=num_samples),
            numpy_peer(scores, labels, num_samples),
        )

    for num_lists, num_items, relevant in ((256, 20, 1), (64, 100, 10)):
        scores, labels = lists(num_lists, num_items)
        labels = jnp.zeros_like(labels).at[:, :relevant].set(1.0)
        out[f"reward_to_go_vs_exact_{num_lists}x{num_items}_{relevant}_relevant"] = (
            functools.partial(gradient, scores, labels, estimator="reward_to_go", num_samples=16),
            functools.partial(gradient, scores, labels, estimator="exact", num_samples=16),
        )

    def by_noise(scores: jax.Array, num_samples: int) -> jax.Array:
        shape = (scores.shape[0], num_samples, scores.shape[-1])
        return scores[:, None] + jax.random.gumbel(jax.random.key(0), shape)

    draw = jax.jit(sample, static_argnames=("num_samples", "k"))
    top = jax.jit(lambda s, num_samples: jax.lax.top_k(by_noise(s, num_samples), 10)[1], static_argnums=1)
    argsort = jax.jit(lambda s, num_samples: jnp.argsort(-by_noise(s, num_samples))[..., :10], static_argnums=1)
    # At a standard deviation of 5 a few items dominate, and our algorithm needs noise as well.
    for name, num_lists, num_samples, deviation, peer in (
        ("top10_sampling_vs_argsort_1000", 1, 100, 1, argsort),
        ("top10_sampling_vs_top_k_8x1000", 8, 16, 1, top),
        ("top10_sampling_vs_top_k_8x1000_peaked", 8, 16, 5, top),
    ):
        scores = deviation * lists(num_lists, 1000)[0]
        out[name] = (
            functools.partial(draw, jax.random.key(0), scores, num_samples=num_samples, k=10),
            functools.partial(peer, scores, num_samples),
        )
    return out


def time_pair(ours: Callable, peer: Callable) -> tuple[float, float]:
    """Median seconds of each. They alternate in blocks of calls; the first two calls of a block warm the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        jax.block_until_ready((ours(), peer()))
    for _ in range(ROUNDS):
        for function, seconds in zip((ours, peer), times):
            for call in range(CALLS + 2):
                start = time.perf_counter()
                jax.block_until_ready(function())
                if call >= 2:
                    seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Times every comparison and prints the table and the JSON line."""
    print(f"{'comparison':42s} {'ours ms':>9s} {'peer ms':>9s} {'ratio':>7s}")
    ratios = {}
    for name, (ours, peer) in comparisons().items():
        mine, theirs = time_pair(ours, peer)
        ratios[name] = round(theirs / mine, 2)
        print(f"{name:42s} {mine * 1e3:9.2f} {theirs * 1e3:9.2f} {ratios[name]:7.2f}", flush=True)
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    print(json.dumps({**ratios, "device": device, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
