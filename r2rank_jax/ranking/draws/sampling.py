"""Drawing the first K places of Plackett-Luce rankings.

There are two algorithms, chosen by shape. Both are correct to the resolution of float32 random numbers (items of
probability below about 1e-7 may never come first):

- Noise: the K largest of score + Gumbel noise are the first K places (W. Kool, H. van Hoof, M. Welling, "Stochastic
  Beams and Where to Find Them", 2019). It takes O(N) random numbers per ranking.
- Discarding repeats: items are drawn with replacement from the softmax. The order in which new items appear is a
  Plackett-Luce ranking, because skipping the items already placed renormalizes over the others (Luce 1959). After one
  cumulative sum a draw costs O(log N), so for K << N this is several times faster, unless a few items dominate. A fixed
  number of draws is made at once. Where they hold fewer than K different items, noise orders the rest of that ranking:
  given the items placed, the rest is a Plackett-Luce ranking of the items left. Rejecting short rankings and drawing
  them again would be biased.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.ranking.arguments import LOWEST, nan_last
from r2rank_jax.ranking.order import top

# From this number of items per place on, drawing with replacement is faster.
ITEMS_PER_PLACE = 8
# The number of draws with replacement, divided by the number of places.
DRAWS_PER_PLACE = 2.5


def draw(key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int, num_places: int) -> jax.Array:
    """Independent rankings.

    Args:
      key: a JAX PRNG key.
      scores: [..., N] float32, finite; a NaN ranks behind all others.
      real: [..., N] True for a real item; masked items come last, in index order.
      num_samples: M.
      num_places: K <= N.

    Returns:
      int32 [..., M, K] item indices, best first.
    """
    scores = nan_last(scores)
    # Subtract the best score, so that a common offset of the scores does not reduce the float32 resolution of the
    # noise.
    scores = scores - jnp.max(jnp.where(real, scores, LOWEST), axis=-1, keepdims=True, initial=LOWEST)
    if scores.shape[-1] < ITEMS_PER_PLACE * num_places:
        return top(_noisy(key, scores, real, num_samples), num_places)
    first_key, rest_key = jax.random.split(key)
    placed, count = _new_ones(*_with_replacement(first_key, scores, real, num_samples, num_places), num_places)

    def order_the_rest() -> jax.Array:
        noisy = _noisy(rest_key, scores, real, num_samples)
        slots = jnp.arange(num_places)
        filled = slots < count[..., None]
        # Placed items get −inf, below the masked ones. A slot that is not filled yet has an index past the end, which
        # `mode="drop"` ignores.
        removed = jnp.where(filled, placed, noisy.shape[-1])
        lowest = jnp.full_like(removed, -jnp.inf, noisy.dtype)
        noisy = jax.vmap(lambda row, at, to: row.at[at].set(to, mode="drop"))(
            noisy.reshape(-1, noisy.shape[-1]), removed.reshape(-1, num_places), lowest.reshape(-1, num_places)
        ).reshape(noisy.shape)
        rest = top(noisy, num_places)
        shifted = jnp.take_along_axis(rest, jnp.maximum(slots - count[..., None], 0), axis=-1)
        return jnp.where(filled, placed, shifted)

    return jax.lax.cond(jnp.all(count == num_places), lambda: placed, order_the_rest)


def _noisy(key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int) -> jax.Array:
    """Scores with Gumbel noise [..., M, N]; `LOWEST` at masked items."""
    # The noise is always float32: bfloat16 noise has so few distinct values that ties decide rankings. It is drawn with
    # the item axis first. Since JAX numbers random bits in row-major order, the bits of an item then do not depend on
    # the number of items after it.
    noise = jax.random.gumbel(key, (scores.shape[-1], *scores.shape[:-1], num_samples), jnp.float32)
    return jnp.where(real[..., None, :], scores[..., None, :] + jnp.moveaxis(noise, 0, -1), LOWEST)


def _with_replacement(
    key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int, num_places: int
) -> tuple[jax.Array, jax.Array]:
    """Independent draws [..., M, J] from the softmax by inversion, and whether each one is of positive weight."""
    weights = jnp.where(real, jnp.exp(scores), 0.0)
    bounds = jnp.cumsum(weights, axis=-1)
    num_draws = int(DRAWS_PER_PLACE * num_places)
    shape = (*scores.shape[:-1], num_samples, num_draws)
    targets = jax.random.uniform(key, shape, jnp.float32) * bounds[..., -1:, None]
    flat = targets.reshape(-1, num_samples * num_draws)
    search = jax.vmap(lambda bounds, targets: jnp.searchsorted(bounds, targets, side="right", method="scan"))
    drawn = search(bounds.reshape(-1, scores.shape[-1]), flat).reshape(shape).astype(jnp.int32)
    # Rounding can put a target on the last bound, beyond every item of positive weight.
    drawn = jnp.minimum(drawn, scores.shape[-1] - 1)
    wide = jnp.broadcast_to(weights[..., None, :], (*shape[:-1], scores.shape[-1]))
    return drawn, jnp.take_along_axis(wide, drawn, axis=-1) > 0


def _new_ones(drawn: jax.Array, counts: jax.Array, num_places: int) -> tuple[jax.Array, jax.Array]:
    """The first K different items among the draws [..., J], in order, int32 [..., K]; and their number [...]."""
    earlier = jnp.tri(drawn.shape[-1], k=-1, dtype=bool)  # [j, i]: draw i came before draw j
    repeated = jnp.any((drawn[..., :, None] == drawn[..., None, :]) & earlier, axis=-1)
    new = counts & ~repeated
    place = jnp.cumsum(new, axis=-1, dtype=jnp.int32) - 1
    slots = jnp.arange(num_places, dtype=jnp.int32)
    at_place = new[..., None, :] & (place[..., None, :] == slots[:, None])  # [..., K, J]
    placed = jnp.sum(jnp.where(at_place, drawn[..., None, :], 0), axis=-1, dtype=jnp.int32)
    return placed, jnp.minimum(place[..., -1] + 1, num_places)
