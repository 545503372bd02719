"""SASRec: windows, causality, padding, and a sequence that it must learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.evaluation.baselines import sasrec
from r2rank_jax.evaluation.baselines.inputs import TrainingData, UnlabeledLists
from r2rank_jax.evaluation.baselines.sasrec_model import SASRec

TINY = {"width": 16, "length": 6, "dropout": 0.0, "learning_rate": 3e-3}
SMALL = {"width": 4, "length": 4, "dropout": 0.1, "learning_rate": 0.01}  # as in test_systems.py, to share programs


def test_windows_by_hand():
    """Items 0..4 after the start token 9, in windows of three: the last one is full, the first one is padded."""
    data = TrainingData(np.array([0] * 5 + [2]), np.array([0, 1, 2, 3, 4, 7]), 3, 9)
    windows = sasrec._windows(data, 3)
    assert windows.inputs.tolist() == [[1, 2, 3], [0, 9, 0], [0, 0, 9]]
    assert windows.targets.tolist() == [[2, 3, 4], [0, 0, 1], [0, 0, 7]]
    assert windows.real.tolist() == [[True] * 3, [False, True, True], [False, False, True]]


@pytest.fixture(scope="module")
def model():
    network = SASRec(items=9, width=8, layers=2, heads=2, length=6, dropout=0.5)
    params, rng = sasrec._start(network, 0.1, seed=0).params, np.random.default_rng(0)
    # Larger than at the start of training, so that every path shows in the states.
    return network, jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), params)


@pytest.mark.slow
def test_states_see_neither_later_items_nor_padding(model):
    network, params = model
    sequence = jnp.asarray([[7, 7, 1, 2, 3, 4]])
    real = jnp.asarray([[False, False, True, True, True, True]])
    states = network.apply(params, sequence, real, train=False)
    later = network.apply(params, sequence.at[0, 5].set(8), real, train=False)
    np.testing.assert_array_equal(states[0, 2:5], later[0, 2:5])
    assert np.abs(states[0, 5] - later[0, 5]).max() > 0.01
    padding = network.apply(params, sequence.at[0, :2].set(5), real, train=False)
    np.testing.assert_array_equal(states[0, 2:], padding[0, 2:])
    earlier = network.apply(params, sequence.at[0, 2].set(8), real, train=False)
    assert np.abs(states[0, 5] - earlier[0, 5]).max() > 0.01


@pytest.mark.slow
def test_the_loss_is_the_mean_cross_entropy_of_real_places(model):
    network, params = model
    network = network.clone(dropout=0.0)
    real = np.array([[False, True, True, True, True, True], [False] * 6])
    batch = sasrec._Windows(np.full((2, 6), 3, np.int32), np.array([[0, 1, 2, 3, 4, 5]] * 2, np.int32), real)
    logits = np.asarray(network.apply(params, batch.inputs, real, train=False, method=SASRec.item_scores), np.float64)
    chances = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    expected = -np.mean([np.log(chances[place, place]) for place in range(1, 6)])
    assert logits.shape == (2, 6, 9)
    np.testing.assert_allclose(sasrec._loss(params, network, batch, jax.random.key(0)), expected, rtol=1e-5)


def test_every_window_is_in_an_epoch_once():
    real = np.ones((70, 2), bool)
    windows = sasrec._Windows(np.arange(140).reshape(70, 2), np.arange(140).reshape(70, 2), real)
    batches = sasrec._batches(np.random.default_rng(0), windows)
    assert batches.inputs.shape == (2, 64, 2)
    assert sorted(np.asarray(batches.inputs)[np.asarray(batches.real)].tolist()) == list(range(140))


@pytest.mark.slow
def test_a_cyclic_sequence_is_learned():
    """Item i is always followed by i + 1 of 8; users start anywhere."""
    users, steps = np.divmod(np.arange(64 * 10), 10)
    data = TrainingData(users, (users + steps) % 8, 64, 8)
    histories = [(np.arange(n) + start) % 8 for start in range(8) for n in (2, 5, 9)]
    lists = UnlabeledLists(np.zeros(24, int), histories, np.tile(np.arange(8), (24, 1)))
    ((_, untrained), (_, score)) = sasrec.fit_sasrec(data, **TINY, epochs=[1, 120], seed=0)
    following = [(history[-1] + 1) % 8 for history in histories]
    assert np.argmax(score(lists), axis=1).tolist() == following
    assert np.argmax(untrained(lists), axis=1).tolist() != following


@pytest.mark.slow
def test_scorers_on_the_way_are_those_of_shorter_runs(train, lists):
    on_the_way = dict(sasrec.fit_sasrec(train, **SMALL, epochs=[1, 2], seed=5))
    alone = dict(sasrec.fit_sasrec(train, **SMALL, epochs=[1], seed=5))
    np.testing.assert_array_equal(on_the_way[1](lists), alone[1](lists))
    assert (on_the_way[2](lists) != alone[1](lists)).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"width": 15}, "multiple of 2"), ({"epochs": [2, 1]}, "ascending"), ({"epochs": []}, "ascending")],
)
def test_bad_settings_are_refused(train, changed, message):
    with pytest.raises(ValueError, match=message):
        next(sasrec.fit_sasrec(train, **{**TINY, "epochs": [1], "seed": 0, **changed}))
