"""SASRec with a softmax over all items: training and scoring."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r2rank_jax.evaluation.baselines.inputs import FloatArray, IntArray, Scorer, TrainingData, UnlabeledLists
from r2rank_jax.evaluation.baselines.sasrec_model import SASRec

LAYERS = 2
HEADS = 2
BATCH_SEQUENCES = 64
SCORED_TOGETHER = 128
"""Number of lists that are scored at a time, which bounds the memory."""


class _Windows(NamedTuple):
    """Pieces of users' sequences, padded on the left."""

    inputs: np.ndarray | jax.Array  # int32 [W, L]
    targets: np.ndarray | jax.Array  # int32 [W, L]  the item that follows each input
    real: np.ndarray | jax.Array  # bool [W, L]


class _Training(NamedTuple):
    params: Any
    optimizer: Any
    key: jax.Array


def fit_sasrec(
    train: TrainingData,
    *,
    width: int,
    length: int,
    dropout: float,
    learning_rate: float,
    epochs: Sequence[int],
    seed: int,
) -> Iterator[tuple[int, Scorer]]:
    """SASRec (Kang and McAuley 2018), trained by the softmax over all items (Klenitskiy and Vasilev 2023).

    At every place of a user's training sequence, the loss is the cross-entropy of the next item among all items, where
    the original samples one other item and applies a sigmoid. Sequences longer than `length` are cut into windows, so
    that every training interaction is a target once per epoch. A list is scored from the last `length` items of its
    history, which for a test list include the validation positive.

    Args:
        train: training interactions.
        width: size of the hidden states, a multiple of `HEADS`.
        length: L, number of items that the network sees.
        dropout: of embeddings, attention and blocks, in [0, 1).
        learning_rate: of Adam.
        epochs: numbers of passes over the training data, ascending, after which a scorer is given.
        seed: of the parameters, the order of the windows and the dropout.

    Yields:
        (epochs, scorer) for each of `epochs`, from a single training run.

    Raises:
        ValueError: `epochs` is not ascending, or `width` is not a multiple of `HEADS`.
    """
    if width % HEADS:
        raise ValueError(f"width must be a multiple of {HEADS} heads, got {width}")
    if list(epochs) != sorted(set(epochs)) or not epochs or epochs[0] < 1:
        raise ValueError(f"epochs must be ascending and at least 1, got {list(epochs)}")
    model = SASRec(train.item_count, width, LAYERS, HEADS, length, dropout)
    windows = _windows(train, length)
    rng = np.random.default_rng(seed)
    training, step = _start(model, learning_rate, seed), _step_of(model, learning_rate)
    for epoch in range(1, epochs[-1] + 1):
        training, _ = jax.lax.scan(step, training, _batches(rng, windows))
        if epoch in epochs:
            yield epoch, _scorer(model, training.params)


# `evaluation/` is pure and leaves jit to the runs. A scan compiles its body as a whole, and the programs of a body that
# is the same function object are shared, hence the caches below.


def _start(model: SASRec, learning_rate: float, seed: int) -> _Training:
    init_key, key = jax.random.split(jax.random.key(seed))
    _, drawn = jax.lax.scan(_init_of(model), None, init_key[None])
    params = jax.tree.map(lambda x: x[0], drawn)
    return _Training(params, _adam(learning_rate).init(params), key)


@functools.cache
def _init_of(model: SASRec) -> Callable[[None, jax.Array], tuple[None, Any]]:
    def init(_: None, key: jax.Array) -> tuple[None, Any]:
        example = jnp.zeros((1, model.length), jnp.int32)
        return None, model.init(key, example, example > 0, train=False)

    return init


@functools.cache
def _step_of(model: SASRec, learning_rate: float) -> Callable[[_Training, _Windows], tuple[_Training, None]]:
    def step(training: _Training, batch: _Windows) -> tuple[_Training, None]:
        key, dropout_key = jax.random.split(training.key)
        gradient = jax.grad(_loss)(training.params, model, batch, dropout_key)
        updates, state = _adam(learning_rate).update(gradient, training.optimizer, training.params)
        return _Training(optax.apply_updates(training.params, updates), state, key), None

    return step


def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b2=0.98)  # as in the authors' code


def _loss(params: Any, model: SASRec, batch: _Windows, key: jax.Array) -> jax.Array:
    """Mean cross-entropy of the real places."""
    logits = model.apply(params, batch.inputs, batch.real, train=True, rngs={"dropout": key}, method=SASRec.item_scores)
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(batch.targets))
    return jnp.sum(jnp.where(batch.real, losses, 0.0)) / jnp.maximum(jnp.sum(batch.real), 1)


def _windows(train: TrainingData, length: int) -> _Windows:
    """Cut each user's sequence, from its end, into windows of `length` pairs of an item and the next one."""
    pieces: list[IntArray] = []
    for items in train.sequences():
        sequence = np.append(train.item_count, items)  # the start token, then the items
        pieces += [sequence[max(0, end - length - 1) : end] for end in range(len(sequence), 1, -length)]
    filled = np.full((len(pieces), length + 1), -1, np.int32)
    for row, piece in enumerate(pieces):
        filled[row, length + 1 - len(piece) :] = piece
    real = filled[:, :-1] >= 0
    return _Windows(np.where(real, filled[:, :-1], 0), np.where(real, filled[:, 1:], 0), real)


def _batches(rng: np.random.Generator, windows: _Windows) -> _Windows:
    """All windows in random order, [batches, BATCH_SEQUENCES, L]; the last batch is filled with padding."""
    count = len(windows.real)
    order = np.append(rng.permutation(count), np.full(-count % BATCH_SEQUENCES, -1)).reshape(-1, BATCH_SEQUENCES)
    inputs, targets, real = (jnp.asarray(values[order]) for values in windows)
    return _Windows(inputs, targets, real & (jnp.asarray(order) >= 0)[..., None])


def _scorer(model: SASRec, params: Any) -> Scorer:
    embedding = np.asarray(params["params"]["embedding"], np.float64)

    def score(lists: UnlabeledLists) -> FloatArray:
        sequences, real = _shown(lists.histories, model)
        _, states = jax.lax.scan(_last_states_of(model), params, (sequences, real))
        hidden = np.asarray(states, np.float64).reshape(-1, model.width)[: len(lists.users)]
        return np.einsum("uf,unf->un", hidden, embedding[lists.candidates])

    return score


@functools.cache
def _last_states_of(model: SASRec) -> Callable[[Any, tuple[jax.Array, jax.Array]], tuple[Any, jax.Array]]:
    def last_states(params: Any, shown: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        """States [SCORED_TOGETHER, width] after the last item of each history."""
        return params, jnp.asarray(model.apply(params, *shown, train=False))[:, -1]

    return last_states


def _shown(histories: Sequence[IntArray], model: SASRec) -> tuple[jax.Array, jax.Array]:
    """The ends of the histories after the start token, int32 and bool [blocks, SCORED_TOGETHER, L]."""
    rows = len(histories) + -len(histories) % SCORED_TOGETHER
    sequences = np.zeros((rows, model.length), np.int32)
    real = np.zeros(sequences.shape, bool)
    for row, history in enumerate(histories):
        shown = np.append(model.items, history)[-model.length :]
        sequences[row, model.length - len(shown) :] = shown
        real[row, model.length - len(shown) :] = True
    blocks = (-1, SCORED_TOGETHER, model.length)
    return jnp.asarray(sequences.reshape(blocks)), jnp.asarray(real.reshape(blocks))
