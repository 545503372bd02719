"""BPR-MF: matrix factorization trained on pairs of items.

The library `implicit` has a BPR as well, but its scores hardly rise with popularity, as if the other item of a pair
were drawn by popularity. The paper draws it uniformly. Which is better depends on the negatives of the lists to rank
(docs/baselines.md), so this module offers both and what lies between.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2rank_jax.evaluation.baselines.inputs import FloatArray, IntArray, Scorer, TrainingData, UnlabeledLists

BATCH_PAIRS = 256
"""Number of pairs whose gradients are summed in one step. The paper's steps take one pair each."""
REDRAWS = 20
"""Attempts to draw an item that the user does not have; a pair that fails them all is left out of the epoch."""


class _Factors(NamedTuple):
    users: jax.Array  # [users, factors]
    items: jax.Array  # [items, factors]
    biases: jax.Array  # [items]


class _State(NamedTuple):
    """What the scan carries. The rates are in it so that all settings share one compiled program."""

    factors: _Factors
    rate: jax.Array
    regularization: jax.Array


class _Pairs(NamedTuple):
    user: jax.Array  # int32 [.., BATCH_PAIRS]
    item: jax.Array  # int32 [.., BATCH_PAIRS]  an item of the user
    other: jax.Array  # int32 [.., BATCH_PAIRS]  an item that the user does not have
    weight: jax.Array  # float32 [.., BATCH_PAIRS]  0 where the pair is padding


def fit_bpr(
    train: TrainingData,
    *,
    factors: int,
    regularization: float,
    learning_rate: float,
    negative_exponent: float,
    epochs: int,
    seed: int,
) -> Scorer:
    """Matrix factorization for Bayesian personalized ranking (Rendle et al. 2009, section 4.3.1).

    Maximizes the sum of ln sigmoid(x_ui - x_uj) - regularization (|w_u|^2 + |h_i|^2 + |h_j|^2 + b_i^2 + b_j^2) / 2 over
    the training pairs (u, i), each with one other item j that u does not have, where x_ui = w_u'h_i + b_i. The paper
    draws j uniformly, which is a `negative_exponent` of 0.

    A user's vector is that of training: unlike the other systems, BPR-MF does not use the validation positive when it
    scores a test list. A user without training interactions is scored by the item biases alone.

    Args:
        train: training interactions.
        factors: size of the vectors.
        regularization: weight of the squared norms.
        learning_rate: of the gradient steps.
        negative_exponent: j is drawn in proportion to its number of training interactions to this power.
        epochs: number of passes over the training pairs.
        seed: of the initial vectors, the order and the other items.

    Returns:
        A scorer that depends on the data, the settings and the seed only.
    """
    rng = np.random.default_rng(seed)
    pairs = np.unique(train.users * train.item_count + train.items)  # a pair as one number: sorted and searchable
    chances = np.bincount(train.items, minlength=train.item_count) ** float(negative_exponent)
    up_to = np.cumsum(chances / chances.sum())
    initial = _Factors(
        jnp.asarray(rng.normal(0, 0.1, (train.user_count, factors)), jnp.float32),
        jnp.asarray(rng.normal(0, 0.1, (train.item_count, factors)), jnp.float32),
        jnp.zeros(train.item_count, jnp.float32),
    )
    state = _State(initial, jnp.asarray(learning_rate, jnp.float32), jnp.asarray(regularization, jnp.float32))
    for _ in range(epochs):
        # A scan compiles its body once for all epochs. `evaluation/` is pure and leaves jit to the runs.
        state, _ = jax.lax.scan(_step, state, _draw(rng, pairs, up_to))
    users, items, biases = (np.array(values, np.float64) for values in state.factors)
    users[np.bincount(train.users, minlength=train.user_count) == 0] = 0.0

    def score(lists: UnlabeledLists) -> FloatArray:
        listed = lists.candidates
        return np.einsum("uf,unf->un", users[lists.users], items[listed]) + biases[listed]

    return score


def _draw(rng: np.random.Generator, pairs: IntArray, up_to: FloatArray) -> _Pairs:
    """The batches of an epoch: every training pair once, in random order, each with another item.

    Args:
        rng: draws.
        pairs: int [E], sorted, user * items + item.
        up_to: float [items], cumulative probability of the other item.
    """
    item_count = len(up_to)

    def draw(count: int) -> IntArray:
        return np.minimum(np.searchsorted(up_to, rng.random(count), side="right"), item_count - 1)

    shuffled = rng.permutation(pairs)
    users, items = np.divmod(shuffled, item_count)
    others = draw(len(pairs))
    wrong = np.flatnonzero(_contains(pairs, users * item_count + others))
    for _ in range(REDRAWS):
        others[wrong] = draw(len(wrong))
        wrong = wrong[_contains(pairs, users[wrong] * item_count + others[wrong])]
    weights = np.ones(len(pairs), np.float32)
    weights[wrong] = 0.0
    padding = (0, -len(pairs) % BATCH_PAIRS)
    padded = [np.pad(values, padding) for values in (users, items, others)]
    user, item, other = (jnp.asarray(values.reshape(-1, BATCH_PAIRS), jnp.int32) for values in padded)
    return _Pairs(user, item, other, jnp.asarray(np.pad(weights, padding).reshape(-1, BATCH_PAIRS)))


def _contains(sorted_pairs: IntArray, wanted: IntArray) -> np.ndarray:
    place = np.minimum(np.searchsorted(sorted_pairs, wanted), len(sorted_pairs) - 1)
    return sorted_pairs[place] == wanted


def _step(state: _State, pairs: _Pairs) -> tuple[_State, None]:
    """One gradient step. Only the rows of the batch change, so its cost does not grow with users or items."""
    factors, rate, regularization = state
    w, h_i, h_j = factors.users[pairs.user], factors.items[pairs.item], factors.items[pairs.other]
    b_i, b_j = factors.biases[pairs.item], factors.biases[pairs.other]
    difference = jnp.sum(w * (h_i - h_j), axis=-1) + b_i - b_j
    pull = pairs.weight * jax.nn.sigmoid(-difference)  # derivative of ln sigmoid
    decay = pairs.weight * regularization
    wide, shrink = pull[:, None], decay[:, None]
    changed = _Factors(
        factors.users.at[pairs.user].add(rate * (wide * (h_i - h_j) - shrink * w)),
        factors.items.at[pairs.item]
        .add(rate * (wide * w - shrink * h_i))
        .at[pairs.other]
        .add(rate * (-wide * w - shrink * h_j)),
        factors.biases.at[pairs.item]
        .add(rate * (pull - decay * b_i))
        .at[pairs.other]
        .add(rate * (-pull - decay * b_j)),
    )
    return _State(changed, rate, regularization), None
