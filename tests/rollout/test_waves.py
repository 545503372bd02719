"""Waves, compaction and cache growth change nothing but the time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.model.forward import judge, read_items
from r2rank_jax.rollout.generate import Generator, generate, past_sizes, widths
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.sharding import make_mesh, users
from tests.support.tiny_models import QWEN2 as TWO_LAYERS
from tests.support.tiny_models import make_batch, make_params

QWEN2 = dataclasses.replace(TWO_LAYERS, layers=1)  # compiles in half the time

# The stop token is one that these parameters say often.
SETTINGS = {"rationales": 3, "max_tokens": 12, "stop_token": 34, "temperature": 1.0}
KEY = jax.random.key(5)


@functools.lru_cache  # what one test has compiled the next need not
def make_generator(mesh=None, **changes):
    settings = SETTINGS | {"wave_tokens": 3} | changes
    return Generator(make_mesh(mesh or MeshConfig()), QWEN2, **settings)


def ragged_batch(users=2, items=6):
    """Histories and items of all lengths, one user with two real items, one item of one token."""
    batch, _ = make_batch(QWEN2, users=users, items=items)
    mask = batch.mask.at[1, 2:].set(False)
    return dataclasses.replace(batch, mask=mask, suffix_length=batch.suffix_length.at[0, 0].set(1))


@pytest.fixture(scope="module")
def at_once():
    """The whole rollout as one program."""
    batch = ragged_batch()
    return batch, jax.jit(lambda p: generate(QWEN2, p, batch, KEY, **SETTINGS))(make_params(QWEN2))


def assert_same(found, expected, mask):
    real = np.broadcast_to(np.asarray(mask)[:, :, None], expected.rationales.length.shape)
    np.testing.assert_array_equal(found.rationales.tokens, expected.rationales.tokens)
    np.testing.assert_array_equal(found.rationales.length, expected.rationales.length)
    np.testing.assert_array_equal(found.rationales.stopped, expected.rationales.stopped)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found.scores)[real], np.asarray(expected.scores)[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wave_tokens", [5, 99])
def test_waves_of_any_length_say_the_same(at_once, wave_tokens):
    batch, expected = at_once
    stopped = np.asarray(expected.rationales.stopped)
    assert stopped.any() and not stopped[np.asarray(batch.mask)].all(), "the test needs rows of both kinds"
    found = make_generator(wave_tokens=wave_tokens)(make_params(QWEN2), batch, KEY)
    assert_same(found, expected, batch.mask)


@pytest.mark.slow
def test_rows_really_move_to_fewer_lanes(at_once, monkeypatch):
    batch, expected = at_once
    generator = make_generator()
    seen = []
    run = generator._run
    watched = lambda f, *args, **static: seen.append((f.__name__, *static.values())) or run(f, *args, **static)  # noqa: E731
    monkeypatch.setattr(generator, "_run", watched)
    assert_same(generator(make_params(QWEN2), batch, KEY), expected, batch.mask)
    assert ("compact", 9) in seen and ("merge", 3) in seen and ("merge", 9) in seen, seen


@pytest.mark.slow
def test_eight_devices_say_the_same():
    batch = ragged_batch(users=8, items=3)
    params = make_params(QWEN2)
    one = make_generator()(params, batch, KEY)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    split = jax.tree.map(lambda x: jax.device_put(x, users(mesh)), batch)
    generator = make_generator(MeshConfig(data=4, tensor=2))
    keys = generator._row_keys(KEY, split)
    _, lanes, _ = generator._run(generator._begin, params, split, keys)
    assert lanes.new_k[0].sharding.spec[:2] == (("data", "fsdp"), "tensor"), "heads of the cache are split"
    assert lanes.decoded.tokens.sharding.spec[0] == ("data", "fsdp")
    eight = generator(params, split, KEY)
    assert_same(eight, one, batch.mask)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "rationales"), [(1, 1), (3, 1)])
def test_one_item_and_one_rationale(items, rationales):
    batch, _ = make_batch(QWEN2, users=2, items=items)
    batch = dataclasses.replace(batch, mask=jnp.ones_like(batch.mask))
    params = make_params(QWEN2)
    found = make_generator(rationales=rationales)(params, batch, KEY)
    seen = jax.jit(lambda p: judge(QWEN2, p, batch, found.rationales, temperature=SETTINGS["temperature"]))(params)
    np.testing.assert_allclose(found.logp, seen.logp, atol=1e-5)
    np.testing.assert_allclose(found.scores, seen.scores, atol=1e-5)
    assert np.asarray(found.rationales.length).min() >= 1


@pytest.mark.slow
def test_a_rationale_that_never_stops_is_cut_off_and_marked():
    batch, _ = make_batch(QWEN2)
    found = make_generator(stop_token=QWEN2.vocabulary + 1)(make_params(QWEN2), batch, KEY)
    real = np.asarray(batch.mask)
    assert (np.asarray(found.rationales.length)[real] == SETTINGS["max_tokens"]).all()
    assert not np.asarray(found.rationales.stopped).any()


@pytest.mark.parametrize("empty", [1, 2])
def test_a_user_without_any_item_says_nothing(at_once, empty):
    """And the one beside it says what it says anyway."""
    batch, expected = at_once
    nobody = dataclasses.replace(batch, mask=batch.mask.at[:empty].set(False))
    found = make_generator()(make_params(QWEN2), nobody, KEY)
    assert not np.asarray(found.rationales.length)[:empty].any() and not np.asarray(found.logp)[:empty].any()
    assert np.isfinite(found.scores).all()
    np.testing.assert_array_equal(found.rationales.tokens[empty:], expected.rationales.tokens[empty:])


@pytest.mark.slow
def test_without_reasoning_the_head_reads_the_items():
    """T = 0: prefix and items are all that is read, once; every way of asking says so."""
    params, batch = make_params(QWEN2), ragged_batch()
    settings = SETTINGS | {"max_tokens": 0}
    found = make_generator(max_tokens=0)(params, batch, KEY)
    plain = jax.jit(lambda p: generate(QWEN2, p, batch, KEY, **settings))(params)
    assert found.rationales.tokens.shape == (2, 6, 3, 0) and found.logp.shape == (2, 6, 3, 0)
    assert not np.asarray(found.rationales.length).any() and np.asarray(found.rationales.stopped).all()
    items = jax.jit(lambda p: read_items(QWEN2, p, batch).last_hidden @ p["score_head"])(params)
    total = lambda p: jnp.sum(judge(QWEN2, p, batch, found.rationales).scores)  # noqa: E731
    judged, gradient = jax.jit(jax.value_and_grad(total))(params)
    for scores in (found.scores, plain.scores):
        np.testing.assert_allclose(scores, np.repeat(np.asarray(items)[..., None], 3, axis=2), atol=1e-5)
    np.testing.assert_allclose(judged, 3 * jnp.sum(items), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_bfloat16_says_what_its_trainer_reads():
    """Weights are cast once for decoding and at every use in training: the same numbers, up to the type's rounding."""
    half = dataclasses.replace(QWEN2, dtype="bfloat16")
    params, batch = make_params(QWEN2), ragged_batch()
    found = Generator(make_mesh(MeshConfig()), half, **(SETTINGS | {"wave_tokens": 3}))(params, batch, KEY)
    seen = jax.jit(lambda p: judge(half, p, batch, found.rationales, temperature=SETTINGS["temperature"]))(params)
    real = np.asarray(batch.mask)
    np.testing.assert_allclose(found.logp, seen.logp, atol=0.1)
    np.testing.assert_allclose(np.asarray(found.scores)[real], np.asarray(seen.scores)[real], atol=0.05)
    assert np.asarray(found.rationales.length)[real].min() >= 1


@pytest.mark.slow
def test_sharing_does_not_change_a_word():
    """Every row as a user of its own, with its own copy of the prompt and the same keys."""
    batch = ragged_batch(items=3)
    params = make_params(QWEN2)
    generator = make_generator()
    keys = row_keys(KEY, batch.user, batch.position, batch.items, 3)
    shared = generator(params, batch, None, keys)
    rows = lambda x: jnp.repeat(x.reshape(6, 1, *x.shape[2:]), 3, axis=0)  # noqa: E731
    alone = dataclasses.replace(
        batch,
        user=jnp.repeat(batch.user, 9),
        prefix=jnp.repeat(batch.prefix, 9, axis=0),
        prefix_length=jnp.repeat(batch.prefix_length, 9),
        **{name: rows(getattr(batch, name)) for name in ("items", "suffix", "suffix_length", "labels", "mask")},
    )
    found = make_generator(rationales=1)(params, alone, None, keys.reshape(18, 1, 1))
    np.testing.assert_array_equal(found.rationales.tokens.reshape(-1, 12), shared.rationales.tokens.reshape(-1, 12))
    np.testing.assert_allclose(found.logp.reshape(-1, 12), shared.logp.reshape(-1, 12), atol=1e-5)


@pytest.mark.slow
def test_warm_up_compiles_everything_there_will_be(request):
    """18 lanes: widths 18 and 9; 12 tokens in waves of 3: caches of 0, 3, 6 and 9."""
    assert widths(18) == [18, 9] and past_sizes(12, 3) == [0, 3, 6, 9] and past_sizes(0, 1) == [0]
    params, generator = make_params(QWEN2), make_generator.__wrapped__()
    batch = ragged_batch()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    # Seven waves (the first is always wide); after each but the last a way to narrow lanes and two to make room; start
    # and finish.
    programs = 7 + 3 * (1 + 2) + 2
    assert generator.warm_up(params, abstract, sampled=True) == programs
    compiled = []
    listen = lambda event, _, **kw: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(listen))
    generator(params, batch, KEY)  # the program that folds the keys
    others = [
        (dataclasses.replace(batch, mask=jax.random.bernoulli(jax.random.key(seed), 0.6, (2, 6))), jax.random.key(seed))
        for seed in range(3)
    ]
    compiled.clear()
    for other in others:
        generator(params, *other)
    assert not [event for event in compiled if "backend_compile" in event], compiled
    assert generator.warm_up(params, abstract, sampled=True) == programs
