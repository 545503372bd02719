"""The Plackett-Luce distribution over rankings: density, sampling, mode, rank marginals, entropy, divergence.

A ranking is built from the top: each place is filled by an item drawn from a softmax over the scores of the
items not placed yet,

    log PL(y | s) = Σ_r ( s_{y_r} − logsumexp of s over the items not placed before r ).

Sources: R. L. Plackett, "The Analysis of Permutations" (1975); R. D. Luce, "Individual Choice Behavior"
(1959); sampling with Gumbel noise: W. Kool, H. van Hoof, M. Welling, "Stochastic Beams and Where to Find
Them" (2019).

All functions compute in float32. `mask` is True for a real item; a masked item's score may be anything,
NaN included, and changes neither a value nor a gradient. Masked items fill the last places, in index order.
A NaN score of a real item is refused where values can be seen. Under `jit` that item comes last of the real ones,
behind −inf, in `mode` and `sample`, and every probability that depends on it is NaN.

>>> import jax, jax.numpy as jnp
>>> scores = jnp.array([0.0, 1.0, 2.0])
>>> ranking = mode(scores)
>>> print(ranking, f"{jnp.exp(log_prob(scores, ranking)):.4f}")
[2 1 0] 0.4863
>>> print(rank_marginals(scores, k=1)[:, 0].round(4))  # the first place: the softmax of the scores
[0.09   0.2447 0.6652]
>>> sample(jax.random.key(0), scores, num_samples=4, k=2).shape
(4, 2)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking.arguments import item_indices, leading, nan_last, places, real_scores, same_items
from r2rank_jax.ranking.draws import sampling
from r2rank_jax.ranking.draws.choices import choices, divergence
from r2rank_jax.ranking.exact import quadrature, subsets
from r2rank_jax.ranking.order import top


def log_prob_per_place(scores: ArrayLike, ranking: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Log-probability of each place's choice given the places above it.

    Args:
      scores: [..., N] scores.
      ranking: [..., K] distinct item indices, best first, K <= N. Leading axes broadcast with those of
        `scores`.
      mask: [..., N] True for a real item.

    Returns:
      [..., K] log-probabilities; 0 at a place held by a masked item. Their sum over places is `log_prob`.

    Raises:
      ValueError: as `log_prob`.
    """
    return choices(*_broadcast(scores, ranking, mask)).log_prob()


def log_prob(scores: ArrayLike, ranking: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Log-probability of a ranking, or of its first K places when K < N (the top-K marginal).

    Exact at any score gap: every term is a score minus a log-sum-exp that contains it, and no normalizer is subtracted
    from another. O(N + K log K).

    Args:
      scores: [..., N] scores.
      ranking: [..., K] distinct item indices, best first, K <= N. Leading axes broadcast with those of
        `scores`.
      mask: [..., N] True for a real item. Places held by masked items are skipped.

    Returns:
      [...] log-probabilities.

    Raises:
      ValueError: if the ranking's dtype is not an integer, it has more places than there are items, it holds an index
        out of range or an item twice (checked if it is not traced, see `arguments`), or leading axes do not broadcast.

    >>> print(f"{log_prob([0.0, 1.0, 2.0], jnp.array([2, 1, 0])):.6f}")
    -0.720868
    """
    return log_prob_per_place(scores, ranking, mask).sum(axis=-1)


def sample(
    key: jax.Array,
    scores: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    num_samples: int,
    k: int | None = None,
) -> jax.Array:
    """Draws rankings with Gumbel noise or, for K << N, by drawing with replacement (see `draws.sampling`).

    Args:
      key: a JAX PRNG key. Appending masked items to a list does not change the rankings of the real ones, as long as
        it does not raise N to 8 K or more, where the sampling algorithm changes.
      scores: [..., N] scores.
      mask: [..., N] True for a real item; masked items come last, in index order.
      num_samples: M, the number of independent rankings per list.
      k: number of places K = min(k, N) to draw; None draws full rankings.

    Returns:
      int32 [..., M, K] item indices, best first. Not differentiable: use `estimators.surrogate`. Items whose scores are
      about 1e6 or more below the best lose their noise to float32 rounding and keep their input order.

    Raises:
      ValueError: if `num_samples` or `k` is below 1, the mask does not fit, or a real item's score is NaN (if it is not
        traced).
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}; ask for one ranking or more")
    scores, real = real_scores(jax.lax.stop_gradient(scores), mask)
    return sampling.draw(key, scores, real, num_samples, places(k, scores.shape[-1]))


def mode(
    scores: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None, key: jax.Array | None = None
) -> jax.Array:
    """The most probable ranking: items by descending score.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item; masked items come last.
      k: number of places K = min(k, N); None ranks all items.
      key: a JAX PRNG key that orders equal scores at random. Pass one in evaluations: without it equal scores keep the
        input order, and a constant scorer gets the metric of the input order.

    Returns:
      int32 [..., K] item indices, best first. (`expectation.expected_ndcg` needs no tie-breaking.)

    Raises:
      ValueError: if `k` is below 1, the mask does not fit, or a real item's score is NaN (if it is not traced).
    """
    scores, real = real_scores(jax.lax.stop_gradient(scores), mask)
    num_places = places(k, scores.shape[-1])
    best = jnp.where(real, nan_last(scores), -jnp.inf)
    if key is None:
        return top(best, num_places)
    # One sort by two keys. The random bits are drawn with the item axis first, as in `draws.sampling`.
    chance = jnp.moveaxis(jax.random.bits(key, (scores.shape[-1], *scores.shape[:-1])), 0, -1)
    items = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jax.lax.sort((-best, chance, items), dimension=-1, num_keys=2)[2][..., :num_places]


def rank_marginals(scores: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """The probability of every item at every place, exactly: P(y_r = i) for r <= k.

    Computed by quadrature over an item's arrival time in an exponential race (see `exact.quadrature`), with an error of
    about 1e-6 in float32 and O(nodes · N² · K) operations. Differentiable; the gradient stores K · N² · nodes numbers.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item; a masked item has probability 0 everywhere.
      k: number of places K = min(k, N); None takes all.

    Returns:
      [..., N, K]. A column sums to 1 over the items if there are enough real items for its place. A real item's row
      sums to 1 over all N places.

    Raises:
      ValueError: if `k` is below 1 or the mask does not fit.
    """
    scores, real = real_scores(scores, mask)
    return quadrature.place_marginals(scores, real, places(k, scores.shape[-1]))


def kl(
    scores: ArrayLike,
    other: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    key: jax.Array | None = None,
    num_samples: int | None = None,
) -> jax.Array:
    """KL divergence KL(PL(scores) || PL(other)) over rankings, or over their first K places.

    Without a key the value is exact, by dynamic programming, for N <= 14. With a key it is an unbiased estimate from
    `num_samples` rankings drawn from PL(scores). Each ranking contributes the sum over its places of the KL divergence
    between the two models' choices at that place, given the places above. This has the same mean as
    log PL(y | scores) − log PL(y | other), but the randomness of each choice is averaged out (Rao-Blackwell), so the
    variance is lower and no estimate is negative.

    Args:
      scores: [..., N] scores of the model that rankings are drawn from.
      other: [..., N] scores of the model that it is compared with; leading axes broadcast.
      mask: [..., N] True for an item that is real in both.
      k: number of places compared; None compares full rankings.
      key: a JAX PRNG key; None computes the exact value.
      num_samples: M, at least 2; only with `key`.

    Returns:
      [...] divergences in nats. Differentiable in both models. The estimate's gradient is unbiased, too: a
      score-function term with a leave-one-out baseline accounts for the rankings' dependence on `scores`.

    Raises:
      ValueError: if shapes disagree, N > 14 without a key, or a key is given without num_samples >= 2.

    >>> print(f"{kl([1.0, 0.0], [0.0, 0.0]):.6f}")  # log 2 − the entropy of a coin with p = sigmoid(1)
    0.110944
    """
    scores, real = real_scores(scores, mask)
    same_items("other", np.shape(other), "scores", scores.shape)
    shape = (*leading(scores=scores.shape, other=np.shape(other)), scores.shape[-1])
    real = jnp.broadcast_to(real, shape)
    other, _ = real_scores(jnp.broadcast_to(jnp.asarray(other), shape), real)
    scores = jnp.broadcast_to(scores, shape)
    num_items, num_places = shape[-1], places(k, shape[-1])
    if key is None:
        if num_items > subsets.MAX_ITEMS:
            raise ValueError(
                f"the exact value is limited to lists of at most {subsets.MAX_ITEMS} items; got N={num_items}; "
                "pass key= and num_samples= for an unbiased estimate"
            )

        def gap(size: int, free: jax.Array) -> jax.Array:
            del size
            return subsets.log_softmax(scores[..., None, :], free) - subsets.log_softmax(other[..., None, :], free)

        return subsets.expected_total(scores, real, num_places, gap)
    if num_samples is None or num_samples < 2:
        raise ValueError(
            "an estimate compares each ranking with the others, so num_samples must be at least 2; got "
            f"{num_samples}; raise it, or leave out key= for the exact value"
        )
    rankings = sampling.draw(key, jax.lax.stop_gradient(scores), real, num_samples, num_places)
    return _kl_along(rankings, scores, other, real)


def entropy(
    scores: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    key: jax.Array | None = None,
    num_samples: int | None = None,
) -> jax.Array:
    """Entropy of PL(scores) over rankings, or over their first K places, in nats.

    Computed as the entropy of the uniform distribution over rankings, log n!/(n − K)! for n real items, minus the KL
    divergence from that distribution. It is therefore exact or sampled as `kl` is, with the same arguments and errors.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item.
      k: number of places; None takes full rankings.
      key: a JAX PRNG key; None computes the exact value, for N <= 14.
      num_samples: M, at least 2; only with `key`.

    Returns:
      [...] entropies, from 0 (certain) to log n!/(n − K)! (uniform). Differentiable, as `kl`.

    Raises:
      ValueError: as `kl`.

    >>> print(f"{entropy(jnp.zeros(4)):.4f} = log 24")
    3.1781 = log 24
    """
    safe, real = real_scores(scores, mask)
    num_places = places(k, safe.shape[-1])
    left = jnp.sum(real, axis=-1, keepdims=True) - jnp.arange(num_places)  # items to choose from at each place
    uniform = jnp.sum(jnp.log(jnp.maximum(left, 1).astype(jnp.float32)), axis=-1)
    return uniform - kl(safe, jnp.zeros(safe.shape[-1]), real, k=k, key=key, num_samples=num_samples)


def _broadcast(scores: ArrayLike, ranking: ArrayLike, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finite scores [..., N], ranking [..., K] and mask [..., N] with equal leading axes."""
    scores, real = real_scores(scores, mask)
    num_items = scores.shape[-1]
    ranking = item_indices(ranking, num_items)
    lead = leading(scores=scores.shape, ranking=ranking.shape)
    return (
        jnp.broadcast_to(scores, (*lead, num_items)),
        jnp.broadcast_to(ranking, (*lead, ranking.shape[-1])),
        jnp.broadcast_to(real, (*lead, num_items)),
    )


def _kl_along(rankings: jax.Array, scores: jax.Array, other: jax.Array, real: jax.Array) -> jax.Array:
    """The estimate [...] of `kl` from rankings [..., M, K] drawn from PL(scores); the other arguments are [..., N]."""
    num_samples = rankings.shape[-2]
    shape = (*rankings.shape[:-1], scores.shape[-1])
    p, q, real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, other, real))
    values = jnp.sum(divergence(p, q, rankings, real), axis=-1)  # [..., M]
    log_probs = jnp.sum(choices(p, rankings, real).log_prob(), axis=-1)
    baseline = (jnp.sum(values, axis=-1, keepdims=True) - values) / (num_samples - 1)
    score_function = jax.lax.stop_gradient(values - baseline) * log_probs
    return jnp.mean(values + (score_function - jax.lax.stop_gradient(score_function)), axis=-1)
