"""Losses of a list, to be minimised and to be swapped for each other: one form for all of them.

    loss(scores[..., N], labels[..., N], mask=None, *, key=None) -> [...]

`key` is for losses that involve chance; the others ignore it. `negative_expected_ndcg` brings the estimators of this
package into the same form. A list without a relevant item has loss 0 and gradient 0 everywhere: it says nothing about
what to prefer.

| loss                     | what it is                                         | source                               |
|--------------------------|----------------------------------------------------|--------------------------------------|
| `softmax_cross_entropy`  | −Σ_i y_i log softmax_i: convex                     | Cao et al. 2007; Bruch et al. 2019   |
| `list_net`               | the same over Σ_i y_i: every list weighs alike     | Cao et al. 2007                      |
| `list_mle`               | −log PL(items by label): convex                    | Xia et al. 2008                      |
| `lambda_rank`            | pairs, weighted by what swapping them does to NDCG | Burges et al. 2006; Wang et al. 2018 |
| `approx_ndcg`            | −NDCG with ranks smoothed by sigmoids              | Qin et al. 2010                      |
| `negative_expected_ndcg` | −E[NDCG] under Plackett-Luce, exact or estimated   | `estimators`                         |

>>> import jax.numpy as jnp
>>> scores, labels = jnp.array([0.0, 3.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1])
>>> for loss in (softmax_cross_entropy, list_mle):
...     print(f"{loss(scores, labels):.5f}")
3.88038
6.83779
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking.arguments import leading, places, real_labels, real_scores, same_items
from r2rank_jax.ranking.draws.choices import log_sum
from r2rank_jax.ranking.estimators import Estimator, check_sampled, surrogate
from r2rank_jax.ranking.expectation import expected_ndcg, prepare
from r2rank_jax.ranking.plackett_luce import log_prob, mode
from r2rank_jax.ranking.reward import discounts


class Loss(Protocol):
    """The form of every loss here: what a training step may call by any of their names."""

    def __call__(
        self, scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, key: jax.Array | None = None
    ) -> jax.Array: ...


def softmax_cross_entropy(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, key: jax.Array | None = None
) -> jax.Array:
    """−Σ_i y_i log softmax_i(s): every relevant item against the whole list.

    Z. Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach" (2007), with the labels as they are
    for the target, not divided by their sum; as a bound of NDCG: S. Bruch et al., "An Analysis of the Softmax Cross
    Entropy Loss for Learning-to-Rank with Binary Relevance" (2019).

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: not used.

    Returns:
      [...] losses.

    Raises:
      ValueError: if shapes disagree or labels of real items are negative.
    """
    del key
    scores, labels, real = _prepare(scores, labels, mask)
    peak, excess = log_sum(scores, real)
    # log_sum takes its peak for a constant, and log softmax does not depend on it.
    return -jnp.sum(jnp.where(labels > 0, labels * ((scores - peak) - excess), 0.0), axis=-1)


def list_net(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, key: jax.Array | None = None
) -> jax.Array:
    """−Σ_i p_i log softmax_i(s), p_i = y_i / Σ_j y_j: `softmax_cross_entropy` with the labels' shares as the target.

    Z. Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach" (2007), top-one probabilities; theirs
    make the target from a softmax of the labels.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: not used.

    Returns:
      [...] losses, in nats.

    Raises:
      ValueError: if shapes disagree or labels of real items are negative.
    """
    scores, labels, real = _prepare(scores, labels, mask)
    total = jnp.sum(labels, axis=-1, keepdims=True)
    return softmax_cross_entropy(scores, labels / jnp.where(total > 0, total, 1.0), real, key=key)


def list_mle(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, key: jax.Array | None = None
) -> jax.Array:
    """−log PL(y | s) of the ranking y by descending label.

    F. Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm" (2008).

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: orders equal labels at random; without one they keep the input order, which the model then learns.

    Returns:
      [...] losses.

    Raises:
      ValueError: if shapes disagree or labels of real items are negative.
    """
    scores, labels, real = _prepare(scores, labels, mask)
    loss = -log_prob(scores, mode(labels, real, key=key), real)
    return jnp.where(jnp.any(labels > 0, axis=-1), loss, 0.0)


def lambda_rank(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
    k: int | None = None,
) -> jax.Array:
    """Σ over pairs with y_i > y_j of |ΔNDCG@k of swapping i and j| · log(1 + e^{s_j − s_i}).

    |ΔNDCG| = |gain_i − gain_j| · |w_{r_i} − w_{r_j}| at the present ranking, a constant to the gradient. C. Burges et
    al., "Learning to Rank with Nonsmooth Cost Functions" (2006); as a loss: X. Wang et al., "The LambdaLoss Framework
    for Ranking Metric Optimization" (2018). O(N²).

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: orders equal scores at random when ranks are taken.
      k: cut-off of the NDCG; None takes all N places.

    Returns:
      [...] losses.

    Raises:
      ValueError: if shapes disagree or labels of real items are negative.
    """
    scores, gains, real = prepare(scores, labels, mask, k)
    num_places = places(k, scores.shape[-1])
    ranking = mode(scores, real, k=k, key=key)
    weight = jnp.broadcast_to(discounts(num_places), ranking.shape)
    weight = jnp.put_along_axis(jnp.zeros_like(scores), ranking, weight, axis=-1, inplace=False)
    delta = _pairs(gains) * jnp.abs(_pairs(weight))
    preferred = (_pairs(gains) > 0) & real[..., :, None] & real[..., None, :]
    return jnp.sum(jnp.where(preferred, delta * jax.nn.softplus(-_pairs(scores)), 0.0), axis=(-2, -1))


def approx_ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """−NDCG with each rank 1 + Σ_j [s_j > s_i] smoothed to 1 + Σ_j sigmoid((s_j − s_i) / temperature).

    T. Qin, T. Liu, H. Li, "A general approximation framework for direct optimization of information retrieval measures"
    (2010). O(N²).

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: not used.
      temperature: of the sigmoids, above 0; towards 0 the loss becomes −NDCG and its gradient vanishes.

    Returns:
      [...] losses in [−1, 0].

    Raises:
      ValueError: if shapes disagree, labels of real items are negative or the temperature is not above 0.
    """
    del key
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}; 1.0 suits scores a few units apart")
    scores, gains, real = prepare(scores, labels, mask, None)
    rivals = real[..., None, :] & ~jnp.eye(scores.shape[-1], dtype=bool)
    above = jnp.where(rivals, jax.nn.sigmoid(-_pairs(scores) / temperature), 0.0)  # [..., i, j]: j before i
    return -jnp.sum(gains / jnp.log2(2.0 + jnp.sum(above, axis=-1)), axis=-1)


def negative_expected_ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
    estimator: Estimator = "exact",
    num_samples: int = 16,
    k: int | None = None,
) -> jax.Array:
    """−E[NDCG@k] under Plackett-Luce, with the gradient of one of the `estimators`.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      key: a JAX PRNG key; not used by "exact".
      estimator: "exact", or a sampled one: see `estimators`.
      num_samples: M, rankings drawn per list by a sampled estimator.
      k: cut-off of the NDCG; None takes all N places.

    Returns:
      [...] losses in [−1, 0].

    Raises:
      ValueError: as `estimators.surrogate`, and if a sampled estimator gets no key.
    """
    if estimator == "exact":
        return -expected_ndcg(scores, labels, mask, k=k)
    check_sampled(estimator, num_samples)
    if key is None:
        raise ValueError(
            f'estimator "{estimator}" draws rankings: it needs a key; got key=None; pass jax.random.key(0)'
        )
    return -surrogate(key, scores, labels, mask, estimator=estimator, num_samples=num_samples, k=k)


BY_NAME: Mapping[str, Loss] = {
    loss.__name__: loss
    for loss in (softmax_cross_entropy, list_net, list_mle, lambda_rank, approx_ndcg, negative_expected_ndcg)
}
"""Losses by the name that a config gives."""


def _prepare(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finite scores, labels with 0 at masked items, and mask, all of one shape [..., N]."""
    scores, real = real_scores(scores, mask)
    same_items("labels", np.shape(labels), "scores", scores.shape)
    leading(scores=scores.shape, labels=np.shape(labels))
    labels = real_labels(labels, real)
    shape = jnp.broadcast_shapes(scores.shape, labels.shape)
    return tuple(jnp.broadcast_to(x, shape) for x in (scores, labels, real))  # type: ignore[return-value]


def _pairs(values: jax.Array) -> jax.Array:
    """values_i − values_j: [..., N, N]."""
    return values[..., :, None] - values[..., None, :]
