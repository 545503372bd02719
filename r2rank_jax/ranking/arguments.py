"""Checks and conversions that every function of this package applies to its arguments.

Shapes and options are always checked. Values (an index out of range or twice, a negative label, a NaN score of a real
item) can only be checked on arrays that are not traced, so they are not checked under `jit`. There a NaN score of a
real item ranks last, and every other value that depends on it is NaN; a repeated item counts at its first place only.
To check a jitted program, run it once `with jax.disable_jit():`. (We tried checks inside the program, with
`checkify.debug_check`. Even when they are switched off they cost every call of a jitted function 100 µs, because JAX
dispatches programs with effects in Python.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking.order import ALL_PAIRS_ITEMS

# A finite substitute for −inf: with infinities, (−inf) − (−inf) appears in logaddexp and in its gradient.
# Scores are clipped to a much smaller range, so that a real item can never be taken for a masked one.
LOWEST = -3.0e38
SCORE_LIMIT = 1.0e30
# Stands for a NaN where scores are put in order: below every score, above masked items.
_OF_NAN = LOWEST / 2


def real_scores(scores: ArrayLike, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Makes scores safe to compute with.

    Args:
      scores: [..., N] real numbers of any float or integer type; ±inf is read as ±1e30.
      mask: [..., N] True for a real item; broadcasts against `scores`. None: every item is real.

    Returns:
      Scores [..., N] in float32 with 0 at masked items, and the mask [..., N], broadcast to the shape of the scores.

    Raises:
      ValueError: if `scores` has no item axis, `mask` does not fit it, or a real item's score is NaN. The values of
        traced scores are not checked; a NaN stays one.
    """
    score_values, mask_values = contents(scores), True if mask is None else contents(mask)
    scores = jnp.asarray(scores, jnp.float32)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(
            f"scores must have shape [..., N] with N >= 1 items; got {scores.shape}; put the items of a list on the "
            "last axis"
        )
    real = broadcast_mask(mask, scores.shape, "scores")
    if score_values is not None and mask_values is not None:
        given, counted = np.broadcast_arrays(np.asarray(score_values, np.float32), np.asarray(mask_values, bool))
        unknown = int(np.count_nonzero(np.isnan(given) & counted))
        if unknown:
            raise ValueError(
                f"scores of real items must not be NaN; got {unknown} that are, of {int(np.count_nonzero(counted))}; "
                "check whether the model has diverged, or mark the items as False in mask"
            )
    # Replace before clipping: then the gradient with respect to a masked NaN is exactly zero.
    return jnp.clip(jnp.where(real, scores, 0.0), -SCORE_LIMIT, SCORE_LIMIT), real


def nan_last(scores: jax.Array) -> jax.Array:
    """Scores [..., N] to put in order: a NaN is below every number and above masked items."""
    return jnp.where(jnp.isnan(scores), _OF_NAN, scores)


def real_labels(labels: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Labels [..., N] in float32 with 0 at masked items.

    Raises:
      ValueError: if there is no item axis, `mask` does not fit, or a real item's label is negative, infinite or NaN.
        The values of traced labels are not checked; negative ones count as 0.
    """
    label_values, mask_values = contents(labels), True if mask is None else contents(mask)
    labels = jax.lax.stop_gradient(jnp.asarray(labels, jnp.float32))
    if labels.ndim == 0 or labels.shape[-1] == 0:
        raise ValueError(
            f"labels must have shape [..., N] with N >= 1 items; got {labels.shape}; put the items of a list on the "
            "last axis"
        )
    real = broadcast_mask(mask, labels.shape, "labels")
    if label_values is not None and mask_values is not None:
        grades, counted = np.broadcast_arrays(np.asarray(label_values, np.float32), np.asarray(mask_values, bool))
        wrong = grades[counted & ~((grades >= 0) & (grades < np.inf))]
        if wrong.size:
            raise ValueError(
                f"labels of real items must be finite and at least 0 (0 is not relevant); got {wrong[0]}; raise it to "
                "0, or mark the item as False in mask"
            )
    # Traced labels are not checked; without this bound a negative one would make NDCG negative.
    return jnp.maximum(jnp.where(real, labels, 0.0), 0.0)


def item_indices(ranking: ArrayLike, num_items: int) -> jax.Array:
    """The ranking [..., K] as an array of item indices.

    Raises:
      ValueError: if its dtype is not an integer, it has more places than there are items, or (if it is not traced) it
        holds an index outside 0..N−1 or an item twice.
    """
    indices, ranking = contents(ranking), jnp.asarray(ranking)
    if not jnp.issubdtype(ranking.dtype, jnp.integer) or ranking.ndim == 0:
        raise ValueError(
            f"ranking must hold item indices in shape [..., K]; got {ranking.dtype} of shape {ranking.shape}; pass "
            "integers such as those of `sample` or `mode`"
        )
    if ranking.shape[-1] > num_items:
        raise ValueError(
            f"ranking must have at most N={num_items} places; got {ranking.shape[-1]}; cut it to the first N places"
        )
    if indices is not None and indices.size and (indices.min() < 0 or indices.max() >= num_items):
        raise ValueError(
            f"ranking must hold item indices from 0 to {num_items - 1}; got indices from {indices.min()} to "
            f"{indices.max()}; rank the items of this list, with `sample` or `mode`"
        )
    if indices is not None and indices.shape[-1] > 1:
        ascending = np.sort(indices, axis=-1)
        twice = ascending[..., 1:][ascending[..., 1:] == ascending[..., :-1]]
        if twice.size:
            raise ValueError(
                f"ranking must hold every item at most once; got item {twice[0]} at two places; keep its first place"
            )
    return ranking


def first_places(ranking: jax.Array) -> jax.Array:
    """Whether each place of a ranking [..., K] is the first one of its item: bool [..., K]."""
    places = ranking.shape[-1]
    if places <= ALL_PAIRS_ITEMS:
        earlier = jnp.tri(places, k=-1, dtype=bool)  # [r, s]: place s comes before place r
        return ~jnp.any((ranking[..., :, None] == ranking[..., None, :]) & earlier, axis=-1)
    order = jnp.argsort(ranking, axis=-1, stable=True)
    ascending = jnp.take_along_axis(ranking, order, axis=-1)
    first = jnp.concatenate(
        [jnp.ones_like(ascending[..., :1], bool), ascending[..., 1:] != ascending[..., :-1]], axis=-1
    )
    return jnp.put_along_axis(jnp.zeros_like(first), order, first, axis=-1, inplace=False)


def broadcast_mask(mask: ArrayLike | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """Broadcasts mask [..., N] (None: all real) against an array of shape [..., N] called `name`."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask, bool)
    same_items("mask", mask.shape, name, shape)
    return jnp.broadcast_to(mask, (*leading(mask=mask.shape, **{name: shape}), shape[-1]))


def same_items(name: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless both arrays have the same number of items on their last axis."""
    if not shape or shape[-1] != other_shape[-1]:
        raise ValueError(
            f"{name} must have as many items as {other}: {other_shape[-1]} on the last axis; got shape {shape}; pass "
            "one entry per item (any value where mask is False)"
        )


def leading(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes [...] to which arrays of the named shapes [..., N or K] broadcast.

    Raises:
      ValueError: if they do not broadcast; the message gives the names.
    """
    try:
        return jnp.broadcast_shapes(*(shape[:-1] for shape in shapes.values()))
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"the leading axes of {' and '.join(shapes)} must broadcast; got shapes {given}; give each the same "
            "leading axes, or 1 where one list serves many (labels[..., None, :] for M rankings of each list)"
        ) from None


def places(k: int | None, num_items: int) -> int:
    """The number of places K that the cut-off `k` leaves in a list of N items: min(k, N), or N for None."""
    if k is None:
        return num_items
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a positive integer; got k={k!r}; use k=None for the whole list")
    return min(int(k), num_items)


def contents(values: ArrayLike) -> np.ndarray | None:
    """The values as a NumPy array; None if they are traced or not all on this process's devices."""
    if isinstance(values, jax.core.Tracer) or (isinstance(values, jax.Array) and not values.is_fully_addressable):
        return None
    try:
        return np.asarray(values)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        return None
