"""The Plackett-Luce distribution over rankings: density, sampling, mode, rank marginals, entropy, divergence.

A ranking is built from the top: each place is filled by an item drawn from a softmax over the scores of the
items not placed yet,

    log PL(y | s) = Σ_r ( s_{y_r} − logsumexp of s over the items not placed before r ).

Sources: R. L. Plackett, "The Analysis of Permutations" (1975); R. D. Luce, "Individual Choice Behavior"
(1959); sampling with Gumbel noise: W. Kool, H. van Hoof, M. Welling, "Stochastic Beams and Where to Find
Them" (2019).

Everything here computes in float32. `mask` is True for a real item; a masked item's score may be anything,
NaN included, and changes neither a value nor a gradient. Masked items fill the last places, in index order.

>>> import jax, jax.numpy as jnp
>>> scores = jnp.array([0.0, 1.0, 2.0])
>>> ranking = mode(scores)
>>> print(ranking, f"{jnp.exp(log_prob(scores, ranking)):.4f}")
[2 1 0] 0.4863
>>> print(rank_marginals(scores, k=1)[:, 0].round(4))  # who comes first: the softmax
[0.09   0.2447 0.6652]
>>> sample(jax.random.key(0), scores, num_samples=4, k=2).shape
(4, 2)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking.arguments import item_indices, leading, places, real_scores, same_items
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

    Exact at any score gap: every term is a score minus a log-sum-exp that contains it; no partition function is
    subtracted from another. O(N + K log K).

    Args:
      scores: [..., N] scores.
      ranking: [..., K] distinct item indices, best first, K <= N. Leading axes broadcast with those of
        `scores`. Distinctness is not checked.
      mask: [..., N] True for a real item. Places held by masked items are skipped.

    Returns:
      [...] log-probabilities.

    Raises:
      ValueError: if the ranking is not of integers, has more places than there are items or holds an index that is
        none (if it is not traced, see `arguments`), or if leading axes do not broadcast.

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
    """Draws rankings, by Gumbel noise or, for K << N, by drawing with replacement (see `sampling`).

    Args:
      key: a JAX PRNG key. Masked items appended to a list change nothing in the rankings of the real ones, as long as
        they do not carry N across 8 K, where the way of drawing changes.
      scores: [..., N] scores.
      mask: [..., N] True for a real item; masked items come last, in index order.
      num_samples: M, the number of independent rankings per list.
      k: number of places K = min(k, N) to draw; None draws full rankings.

    Returns:
      int32 [..., M, K] item indices, best first. Not differentiable: use `estimators.surrogate`. Items some
      1e6 or more below the best score lose their noise to float32 rounding and keep the input order among
      themselves.

    Raises:
      ValueError: if `num_samples` or `k` is below 1 or the mask does not fit.
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
      key: a JAX PRNG key that orders equal scores at random. Give one in an evaluation: without it equal scores keep
        the input order, which hands a constant scorer whatever the order of the file is worth.

    Returns:
      int32 [..., K] item indices, best first. (`expectation.expected_ndcg` needs no tie-breaking at all.)

    Raises:
      ValueError: if `k` is below 1 or the mask does not fit.
    """
    scores, real = real_scores(jax.lax.stop_gradient(scores), mask)
    num_places = places(k, scores.shape[-1])
    best = jnp.where(real, scores, -jnp.inf)
    if key is None:
        return top(best, num_places)
    # Two keys of one sort; the item axis first as in `sampling`.
    chance = jnp.moveaxis(jax.random.bits(key, (scores.shape[-1], *scores.shape[:-1])), 0, -1)
    items = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jax.lax.sort((-best, chance, items), dimension=-1, num_keys=2)[2][..., :num_places]


def rank_marginals(scores: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """The probability of every item at every place, exactly: P(y_r = i) for r <= k.

    By quadrature over an item's arrival time in the exponential race behind the distribution (see `quadrature`); error
    about 1e-6 in float32. O(nodes · N² · K) operations; differentiable, the gradient keeps K · N² · nodes numbers.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item; a masked item has probability 0 everywhere.
      k: number of places K = min(k, N); None takes all.

    Returns:
      [..., N, K]. Columns sum to 1 over the items as long as there are real items for that place, and rows sum to 1
      over all N places.

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

    Without a key: exact, by dynamic programming, for N <= 14. With a key: unbiased from `num_samples` rankings drawn
    from PL(scores). Each contributes Σ_r KL of its place's choice given the places above, which has the mean of
    log PL(y | scores) − log PL(y | other) with the chance of every single choice averaged out (Rao-Blackwell): lower
    variance, and never negative.

    Args:
      scores: [..., N] scores of the model that ranks.
      other: [..., N] scores of the model it is compared with; leading axes broadcast.
      mask: [..., N] True for an item that is real in both.
      k: number of places compared; None compares full rankings.
      key: a JAX PRNG key; None asks for the exact value.
      num_samples: M, at least 2; with `key` only.

    Returns:
      [...] divergences in nats. Differentiable in both models; the estimate's gradient is unbiased, too (that the
      drawing depends on `scores` enters by a score-function term with a leave-one-out baseline).

    Raises:
      ValueError: if shapes disagree, N > 14 without a key, or a key comes without num_samples >= 2.

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
                f"the exact value treats at most {subsets.MAX_ITEMS} items; got N={num_items}; pass key= and "
                "num_samples= for an unbiased estimate"
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

    It is log n!/(n − K)! for n real items, the entropy of the uniform ranking, minus the divergence from it; so exact
    or sampled under the same conditions, with the same arguments and errors, as `kl`.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item.
      k: number of places; None takes full rankings.
      key: a JAX PRNG key; None asks for the exact value, for N <= 14.
      num_samples: M, at least 2; with `key` only.

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
    """The estimate [...] of `kl` from rankings [..., M, K] drawn from PL(scores); the others [..., N]."""
    num_samples = rankings.shape[-2]
    shape = (*rankings.shape[:-1], scores.shape[-1])
    p, q, real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, other, real))
    values = jnp.sum(divergence(p, q, rankings, real), axis=-1)  # [..., M]
    log_probs = jnp.sum(choices(p, rankings, real).log_prob(), axis=-1)
    baseline = (jnp.sum(values, axis=-1, keepdims=True) - values) / (num_samples - 1)
    score_function = jax.lax.stop_gradient(values - baseline) * log_probs
    return jnp.mean(values + (score_function - jax.lax.stop_gradient(score_function)), axis=-1)
