"""Several rationales per item: their mean ranks, the first of many are those of few, equal words have equal scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import DataConfig, EvaluationConfig, RLConfig, RunConfig
from r2rank_jax.model.forward import judge
from r2rank_jax.ranking import log_prob
from r2rank_jax.rollout.scoring import Readings, make_scorer, score_lists
from r2rank_jax.sharding import make_mesh
from r2rank_jax.types import Rationales
from tests.support.tiny_models import QWEN3, make_batch, make_params

STOP = 3
# Few tokens: many rationales are equal, and many are not.
WORDS = dataclasses.replace(QWEN3, layers=1, vocabulary=4, score_reads="words")
CONFIG = RunConfig(
    name="test",
    model=WORDS,
    data=DataConfig(rationale_tokens=3),
    rl=RLConfig(temperature=1.0),
    evaluation=EvaluationConfig(rationales=4),
)


def small_batch():
    batch = make_batch(QWEN3, users=3, items=5)[0]
    return dataclasses.replace(batch, prefix=batch.prefix % 4, suffix=batch.suffix % 4)


def read(config=CONFIG, batches=None, **settings):
    mesh = make_mesh(config.mesh)
    batches = [small_batch()] if batches is None else batches
    words = config.model.score_reads == "words"
    return score_lists(
        make_scorer(mesh, config, STOP, **settings), mesh, make_params(WORDS), iter(batches), words=words
    )


def test_means_and_the_most_typical_rationale_by_hand():
    scores = np.array([[[0.0, 1.0, 5.0, 2.0], [1.0, 1.0, 1.0, 1.0]]], np.float32)
    readings = Readings(scores, np.zeros((1, 2, 4, 3), np.int32))
    np.testing.assert_array_equal(readings.mean_scores(), [[2.0, 1.0]])
    np.testing.assert_array_equal(readings.mean_scores(2, first=2), [[3.5, 1.0]])
    np.testing.assert_array_equal(readings.typical(), [[3, 0]])


def test_the_mean_log_probability_of_the_first_place_orders_items_as_the_mean_score_does():
    scores = np.random.default_rng(0).normal(size=(20, 6, 4)).astype(np.float32)
    lists = jnp.asarray(scores).swapaxes(1, 2)[:, :, None]  # [L, G, 1, N]
    first = log_prob(lists, jnp.arange(6)[:, None]).mean(axis=1)  # [L, N]
    means = Readings(scores, np.zeros((20, 6, 4, 1), np.int32)).mean_scores()
    np.testing.assert_array_equal(np.argsort(first, axis=1), np.argsort(means, axis=1))


@pytest.mark.slow
def test_the_first_of_many_rationales_are_those_of_few():
    four, two = read(), read(rationales=2)
    real = np.asarray(small_batch().mask)
    np.testing.assert_array_equal(four.rationales[:, :, :2][real], two.rationales[real])
    np.testing.assert_allclose(four.scores[:, :, :2][real], two.scores[real], atol=1e-6)
    greedy = read(rationales=1)
    assert greedy.scores.shape[2] == 1 and (greedy.rationales != two.rationales[:, :, :1])[real].any()


@pytest.mark.slow
def test_rationales_are_sampled_at_the_temperature_of_the_evaluation_or_else_at_that_of_rl():
    rl, evaluation = dataclasses.replace(CONFIG.rl, temperature=3.0), CONFIG.evaluation
    own = dataclasses.replace(evaluation, temperature=3.0)
    of_rl, of_evaluation = (
        read(dataclasses.replace(CONFIG, **changed)).rationales for changed in ({"rl": rl}, {"evaluation": own})
    )
    np.testing.assert_array_equal(of_rl, of_evaluation)
    assert (of_rl != read().rationales).any()
    ignored = dataclasses.replace(CONFIG, rl=rl, evaluation=dataclasses.replace(own, temperature=CONFIG.rl.temperature))
    np.testing.assert_array_equal(read(ignored).rationales, read().rationales)


@pytest.mark.slow
def test_equal_rationales_have_the_same_score_to_the_bit_and_it_is_that_of_the_words():
    batches = [small_batch(), dataclasses.replace(small_batch(), user=jnp.array([7, 8, -1], jnp.int32))]
    readings = read(batches=batches)
    assert readings.scores.shape == (5, 5, 4), "a list of padding is left out"
    rows, scores = readings.rationales.reshape(-1, 3), readings.scores.reshape(-1)
    texts, place = np.unique(rows, axis=0, return_inverse=True)
    assert 10 < len(texts) < len(rows) / 2, "texts must repeat and differ"
    for text in range(len(texts)):
        assert len(set(scores[place.reshape(-1) == text].tolist())) == 1

    ends = rows == STOP
    length = jnp.asarray(np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, 3)).reshape(5, 5, 4)
    said = Rationales(tokens=jnp.asarray(readings.rationales), length=length, stopped=length > 0)
    other = jax.tree.map(lambda x: jnp.concatenate([x, x])[:5], small_batch())  # prompts that do not matter
    expected = judge(WORDS, make_params(WORDS), other, said).scores
    np.testing.assert_allclose(readings.scores, expected, atol=1e-6)


@pytest.mark.slow
def test_sampled_rationales_do_not_depend_on_the_order_of_candidates():
    batch = small_batch()
    order = np.array([3, 0, 4, 1, 2])
    fields = ("items", "suffix", "suffix_length", "labels", "mask")
    shuffled = dataclasses.replace(batch, **{f: getattr(batch, f)[:, order] for f in fields})
    readings, other = read(), read(batches=[shuffled])
    np.testing.assert_array_equal(other.rationales, readings.rationales[:, order])
    np.testing.assert_array_equal(other.scores, readings.scores[:, order])
