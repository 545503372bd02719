"""Adapters and frozen backbones: what is trained moves as it would in the whole model, and nothing else moves."""

import dataclasses

import jax
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.adapters import is_adapter, merged, without_adapters
from r2rank_jax.model.forward import judge, real_tokens
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.sft_step import sft_gradients
from r2rank_jax.train.state import abstract_state, apply_gradients, fresh_state, make_optimizer, start_from
from r2rank_jax.train.trainable import join_params, split_params
from tests.support.tiny_models import QWEN2, make_batch, make_params
from tests.support.training_steps import at_once

ADAPTED = dataclasses.replace(QWEN2, layers=1, lora_rank=2, lora_alpha=3.0)
SETTINGS = RunConfig(name="x").sft.optimizer


def names(tree):
    return {path[-1].key for path, leaf in jax.tree.leaves_with_path(tree) if leaf is not None}


def run_config(trained):
    model = ADAPTED if trained == "adapters" else without_adapters(ADAPTED)
    return dataclasses.replace(RunConfig(name="test"), model=model, trained=trained)


@pytest.mark.slow
def test_adapters_equal_the_model_they_are_merged_into():
    params, (batch, rationales) = make_params(ADAPTED), make_batch(ADAPTED)
    plain = merged(ADAPTED, params)
    assert not any(map(is_adapter, names(plain))) and sum(map(is_adapter, names(params))) == 14
    ours = jax.jit(lambda p: judge(ADAPTED, p, batch, rationales))(params)
    theirs = jax.jit(lambda p: judge(without_adapters(ADAPTED), p, batch, rationales))(plain)
    np.testing.assert_allclose(ours.logp, theirs.logp, atol=2e-5)
    # By hand, of one matrix: W + a b · alpha / r.
    attention = params["layers"]["attention"]
    by_hand = attention["q"][0] + 1.5 * np.einsum("dr,rjh->djh", attention["q_a"][0], attention["q_b"][0])
    np.testing.assert_allclose(plain["layers"]["attention"]["q"][0], by_hand, rtol=1e-5, atol=1e-6)
    assert np.abs(by_hand - attention["q"][0]).max() > 0.01


def test_a_fresh_adapter_changes_nothing():
    mesh = make_mesh(MeshConfig())
    state = fresh_state(mesh, ADAPTED, SETTINGS, 10, seed=0, trained="adapters")
    attention = state.params["layers"]["attention"]
    assert attention["q_a"].any() and not attention["q_b"].any()
    for a, b in zip(jax.tree.leaves(merged(ADAPTED, state.params)), jax.tree.leaves(plain_part(state.params))):
        np.testing.assert_array_equal(a, b)


def plain_part(params):
    layers = {
        part: {name: leaf for name, leaf in weights.items() if not is_adapter(name)}
        for part, weights in params["layers"].items()
    }
    return params | {"layers": layers}


@pytest.mark.slow
def test_sampler_and_trainer_compute_adapters_alike_in_bfloat16():
    """If decoding merged the adapters into their matrices, as it once did, the sums would round differently."""
    model = dataclasses.replace(ADAPTED, vocabulary=200, width=64, lora_rank=4, dtype="bfloat16")
    params, (batch, _) = make_params(model), make_batch(model, users=8, items=4)
    trainer = jax.jit(lambda rationales: judge(model, params, batch, rationales).logp)

    def gap(sampler, weights):
        settings = {"rationales": 4, "max_tokens": 8, "stop_token": 3, "wave_tokens": 8}
        found = Generator(make_mesh(MeshConfig()), sampler, **settings)(weights, batch, jax.random.key(0))
        difference = (found.logp - trainer(found.rationales))[real_tokens(batch, found.rationales)]
        return float(np.sqrt(np.mean(difference**2)))

    ours, if_merged = gap(model, params), gap(without_adapters(model), merged(model, params))
    assert ours < 0.7 * if_merged and if_merged > 1e-3, (ours, if_merged)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_items", [1, 9])
@pytest.mark.parametrize("trained", ["adapters", "head"])
def test_gradients_of_a_part_are_that_part_of_all_gradients(monkeypatch, trained, chunk_items):
    config, mesh = run_config(trained), make_mesh(MeshConfig())
    params, (batch, rationales) = make_params(config.model), make_batch(config.model, groups=1)
    part = jax.jit(lambda p: sft_gradients(mesh, config, p, batch, rationales)[0])
    whole = jax.jit(lambda p: sft_gradients(mesh, all_of(config), p, batch, rationales)[0])(params)
    at_once(monkeypatch, chunk_items)
    found, expected = part(params), split_params(trained, whole)[0]
    assert "score_head" in names(found) and len(names(found)) == (15 if trained == "adapters" else 1)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(b) > 0 and np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), jax.tree_util.keystr(path)


def all_of(config):
    """The same run, training everything: not one that a user may ask for, since adapters would be idle weight."""
    other = dataclasses.replace(config)
    object.__setattr__(other, "trained", "all")
    return other


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["adapters", "head"])
def test_an_update_moves_what_is_trained_and_keeps_moments_of_nothing_else(trained):
    config, mesh = run_config(trained), make_mesh(MeshConfig())
    settings = dataclasses.replace(SETTINGS, ema_decay=0.5, warmup_steps=0)
    state = fresh_state(mesh, config.model, settings, 10, seed=0, trained=trained)
    state = start_from(state, make_params(config.model))
    trainable, frozen = split_params(trained, state.params)
    grads = jax.tree.map(np.ones_like, trainable)
    after, _ = apply_gradients(state, grads, make_optimizer(settings, 10), 0.5, trained)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(split_params(trained, after.params)[0]), jax.tree.leaves(trainable)
    ):
        assert (np.asarray(a) != np.asarray(b)).any(), jax.tree_util.keystr(path)
    for a, b in zip(jax.tree.leaves(split_params(trained, after.params)[1]), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sum(sizes) == 2 * sum(leaf.size for leaf in jax.tree.leaves(trainable))
    like = abstract_state(mesh, config.model, settings, 10, trained)
    assert jax.tree.structure(like) == jax.tree.structure(after)
    assert jax.tree.structure(join_params(trainable, frozen)) == jax.tree.structure(state.params)


def test_adapters_and_their_training_need_each_other():
    with pytest.raises(ConfigError, match=r"trained=adapters and model.lora_rank > 0 need each other.*lora_rank=0"):
        dataclasses.replace(RunConfig(name="x"), trained="adapters")
    with pytest.raises(ConfigError, match="lora_rank=2"):
        dataclasses.replace(RunConfig(name="x"), model=ADAPTED)
