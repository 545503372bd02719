"""Drawing the first K places of Plackett-Luce rankings.

Two ways, chosen by shape, both right to the resolution of float32 random numbers (items of probability below about 1e-7
may never come first):

- Noise: the K largest of score + Gumbel noise are the first K places (W. Kool, H. van Hoof, M. Welling, "Stochastic
  Beams and Where to Find Them", 2019). O(N) random numbers per ranking.
- Repeats discarded: draw items with replacement from the softmax; the order in which new ones turn up is a
  Plackett-Luce ranking, because skipping the items already placed renormalises over the others (Luce 1959). After one
  cumulative sum a draw costs O(log N), so for K << N this is several times faster while no few items dominate. A fixed
  number of draws is made at once. Where they hold fewer than K different items, noise orders the rest of that ranking:
  given the items placed, what follows is a Plackett-Luce ranking of those left. Throwing the short ones away to draw
  them again would be biased.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.ranking.arguments import LOWEST
from r2rank_jax.ranking.order import top

# Items per place from which drawing with replacement is the faster way, and draws per place of a ranking.
ITEMS_PER_PLACE = 8
DRAWS_PER_PLACE = 2.5


def draw(key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int, num_places: int) -> jax.Array:
    """Independent rankings.

    Args:
      key: a JAX PRNG key.
      scores: [..., N] float32, finite.
      real: [..., N] True for a real item; masked items come last, in index order.
      num_samples: M.
      num_places: K <= N.

    Returns:
      int32 [..., M, K] item indices, best first.
    """
    # Centre on the best item, so that a common offset of the scores costs none of the noise's float32
    # resolution.
    scores = scores - jnp.max(jnp.where(real, scores, LOWEST), axis=-1, keepdims=True, initial=LOWEST)
    if scores.shape[-1] < ITEMS_PER_PLACE * num_places:
        return top(_noisy(key, scores, real, num_samples), num_places)
    first_key, rest_key = jax.random.split(key)
    placed, count = _new_ones(*_with_replacement(first_key, scores, real, num_samples, num_places), num_places)

    def order_the_rest() -> jax.Array:
        noisy = _noisy(rest_key, scores, real, num_samples)
        slots = jnp.arange(num_places)
        known = slots < count[..., None]
        # Placed items leave the race, behind the masked ones; a slot that is not filled yet points past the end and
        # marks nothing.
        gone = jnp.where(known, placed, noisy.shape[-1])
        lowest = jnp.full_like(gone, -jnp.inf, noisy.dtype)
        noisy = jax.vmap(lambda row, at, to: row.at[at].set(to, mode="drop"))(
            noisy.reshape(-1, noisy.shape[-1]), gone.reshape(-1, num_places), lowest.reshape(-1, num_places)
        ).reshape(noisy.shape)
        rest = top(noisy, num_places)
        shifted = jnp.take_along_axis(rest, jnp.maximum(slots - count[..., None], 0), axis=-1)
        return jnp.where(known, placed, shifted)

    return jax.lax.cond(jnp.all(count == num_places), lambda: placed, order_the_rest)


def _noisy(key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int) -> jax.Array:
    """Scores with Gumbel noise [..., M, N]; `LOWEST` at masked items."""
    # The noise is float32 whatever came in: bfloat16 noise has so few distinct values that ties decide
    # rankings. It is drawn with the item axis first, because JAX numbers random bits in row-major order: so the bits
    # of an item do not depend on how many items follow it.
    noise = jax.random.gumbel(key, (scores.shape[-1], *scores.shape[:-1], num_samples), jnp.float32)
    return jnp.where(real[..., None, :], scores[..., None, :] + jnp.moveaxis(noise, 0, -1), LOWEST)


def _with_replacement(
    key: jax.Array, scores: jax.Array, real: jax.Array, num_samples: int, num_places: int
) -> tuple[jax.Array, jax.Array]:
    """Independent draws from the softmax [..., M, J] by inversion, and whether each one counts."""
    weights = jnp.where(real, jnp.exp(scores), 0.0)
    bounds = jnp.cumsum(weights, axis=-1)
    num_draws = int(DRAWS_PER_PLACE * num_places)
    shape = (*scores.shape[:-1], num_samples, num_draws)
    targets = jax.random.uniform(key, shape, jnp.float32) * bounds[..., -1:, None]
    flat = targets.reshape(-1, num_samples * num_draws)
    find = jax.vmap(lambda bounds, targets: jnp.searchsorted(bounds, targets, side="right", method="scan"))
    drawn = find(bounds.reshape(-1, scores.shape[-1]), flat).reshape(shape).astype(jnp.int32)
    # Rounding can put a target on the last bound, past every item of positive weight.
    drawn = jnp.minimum(drawn, scores.shape[-1] - 1)
    wide = jnp.broadcast_to(weights[..., None, :], (*shape[:-1], scores.shape[-1]))
    return drawn, jnp.take_along_axis(wide, drawn, axis=-1) > 0


def _new_ones(drawn: jax.Array, counts: jax.Array, num_places: int) -> tuple[jax.Array, jax.Array]:
    """The first K different items among the draws [..., J], in order: int32 [..., K]; and how many there are [...]."""
    earlier = jnp.tri(drawn.shape[-1], k=-1, dtype=bool)  # [j, i]: draw i came before draw j
    repeated = jnp.any((drawn[..., :, None] == drawn[..., None, :]) & earlier, axis=-1)
    new = counts & ~repeated
    place = jnp.cumsum(new, axis=-1, dtype=jnp.int32) - 1
    here = new[..., None, :] & (place[..., None, :] == jnp.arange(num_places, dtype=jnp.int32)[:, None])  # [..., K, J]
    placed = jnp.sum(jnp.where(here, drawn[..., None, :], 0), axis=-1, dtype=jnp.int32)
    return placed, jnp.minimum(place[..., -1] + 1, num_places)
