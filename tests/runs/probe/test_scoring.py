"""Given rationales get the scores that the policy would give them, and exchanged ones exactly the exchanged scores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, RunConfig
from r2rank_jax.evaluation.probes.rationales import derangements, exchanged, lengths
from r2rank_jax.model.forward import judge
from r2rank_jax.runs.probe.changes import with_candidates_in_order, with_histories_of
from r2rank_jax.runs.probe.scoring import Reader, in_batches, take_lists
from r2rank_jax.sharding import make_mesh
from r2rank_jax.types import Rationales
from tests.support.tiny_models import QWEN3, make_batch, make_params

STOP = 3
CONTEXT = dataclasses.replace(QWEN3, layers=1, vocabulary=6)
WORDS = dataclasses.replace(CONTEXT, score_reads="words")
LISTS = 5  # the last of three batches of two has padding


def small_lists():
    batch = make_batch(QWEN3, users=LISTS, items=4)[0]
    changed = {"prefix": batch.prefix % 6, "suffix": batch.suffix % 6, "mask": jnp.ones((LISTS, 4), bool)}
    return jax.tree.map(np.asarray, dataclasses.replace(batch, **changed))


@functools.cache
def params():
    """The same for both models, which differ in what the head reads only."""
    return jax.jit(lambda: make_params(CONTEXT))()


def reader(model, rationales=1, devices=1):
    config = RunConfig(
        name="test",
        model=model,
        mesh=MeshConfig(data=devices),
        data=DataConfig(rationale_tokens=3),
        evaluation=EvaluationConfig(batch_users=2, rationales=rationales),
    )
    return Reader(make_mesh(config.mesh), config, params(), STOP)


def some_rationales(count=3):
    return np.random.default_rng(1).integers(0, 6, (LISTS, 4, count, 3)).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("model", [WORDS, CONTEXT], ids=["words", "context"])
def test_given_rationales_get_the_scores_of_a_plain_forward_pass(model):
    lists, tokens = small_lists(), some_rationales()
    length = lengths(tokens, STOP)
    assert set(length.ravel().tolist()) == {1, 2, 3} and (tokens == STOP).any(axis=-1).any()
    given = Rationales(tokens=jnp.asarray(tokens), length=jnp.asarray(length), stopped=jnp.asarray(length > 0))
    expected = jax.jit(lambda *args: judge(model, *args).scores)(params(), lists, given)
    scores = reader(model).rescore(lists, tokens)
    assert len(np.unique(scores)) > 10, "it must tell rationales apart"
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_exchanged_rationales_have_exactly_the_exchanged_scores_where_the_head_reads_words():
    lists, tokens = small_lists(), some_rationales()
    partners = derangements(LISTS, 4, np.random.default_rng(0))
    both = reader(WORDS).rescore(lists, np.concatenate([tokens, exchanged(tokens, partners)], axis=2))
    np.testing.assert_array_equal(both[:, :, 3:], exchanged(both[:, :, :3], partners))


def test_what_follows_the_stop_token_does_not_count():
    tokens = some_rationales()
    after = np.arange(3) >= lengths(tokens, STOP)[..., None]
    assert after.any()
    first, second = (reader(WORDS).rescore(small_lists(), np.where(after, filler, tokens)) for filler in (0, 5))
    np.testing.assert_array_equal(first, second)


def test_a_truncated_rationale_that_ends_in_zeros_is_not_a_stopped_one():
    tokens = np.zeros((LISTS, 4, 2, 3), np.int32)
    tokens[:, :, 0] = (STOP, 0, 0)
    scores = reader(WORDS).rescore(small_lists(), tokens)
    assert (scores[..., 0] != scores[..., 1]).all() and len(np.unique(scores)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", [WORDS, CONTEXT], ids=["words", "context"])
def test_the_policys_own_rationales_keep_their_scores(model):
    lists, policy = small_lists(), reader(model, rationales=2)
    own = policy.read(lists)
    assert own.scores.shape == (LISTS, 4, 2)
    np.testing.assert_allclose(policy.rescore(lists, own.rationales), own.scores, atol=1e-5)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(4), (LISTS, 1)), axis=1)
    permuted = policy.read(with_candidates_in_order(lists, order))
    np.testing.assert_array_equal(permuted.scores, np.take_along_axis(own.scores, order[..., None], axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("model", [WORDS, CONTEXT], ids=["words", "context"])
def test_two_devices_give_the_scores_of_one(model):
    one, two = (reader(model, devices=devices) for devices in (1, 2))
    np.testing.assert_allclose(
        two.rescore(small_lists(), some_rationales()), one.rescore(small_lists(), some_rationales()), atol=1e-6
    )
    np.testing.assert_array_equal(two.read(small_lists()).rationales, one.read(small_lists()).rationales)


def test_the_last_batch_is_filled_with_lists_that_are_marked_as_padding():
    lists = small_lists()
    batches = list(in_batches(lists, 2))
    assert [batch.user.tolist() for batch in batches] == [[0, 1], [2, 3], [4, -1]]
    assert not batches[-1].mask[1].any() and batches[-1].mask[0].all()
    np.testing.assert_array_equal(batches[-1].prefix[1], lists.prefix[4])


def test_histories_of_others_change_the_prefix_only():
    lists, others = small_lists(), np.array([1, 2, 3, 4, 0])
    changed = with_histories_of(lists, others)
    np.testing.assert_array_equal(changed.prefix, lists.prefix[others])
    np.testing.assert_array_equal(changed.prefix_length, lists.prefix_length[others])
    for name in ("user", "position", "items", "suffix", "labels"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(lists, name))
    np.testing.assert_array_equal(take_lists(lists, np.array([3, 3])).suffix, lists.suffix[[3, 3]])
