"""The critic: its gradient on every mesh, the labels that it expects, and what RL does with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, RLConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.forward import read_items
from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.losses import BY_NAME
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import abstract_params, make_mesh, to_mesh
from r2rank_jax.train.advantages.critic import critic_gradients, expected_labels
from r2rank_jax.train.advantages.spread import spread_advantages
from r2rank_jax.train.objectives import reward_of
from r2rank_jax.train.rl_step import make_rl_steps
from r2rank_jax.train.sft_step import make_sft_step
from r2rank_jax.train.state import fresh_state
from tests.support.tiny_models import make_params
from tests.support.training_steps import MESHES, STOP, local_batches, make_config

ONE = MeshConfig()


def with_critic(mesh=ONE, users=8, **rl):
    config = make_config(mesh)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, critic=True),
        sft=dataclasses.replace(config.sft, critic_users=users),
        rl=dataclasses.replace(config.rl, **rl),
    )


def params_of(config):
    params = make_params(config.model)
    return {**params, "critic_head": jax.random.normal(jax.random.key(3), params["critic_head"].shape)}


def lists_of(config):
    return next(local_batches(config))[0]


@functools.cache
def gradients_on(mesh_config):
    config = with_critic(mesh_config)
    mesh = make_mesh(config.mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(mesh, config.model))
    params = jax.device_put(params_of(config), places)
    return jax.jit(lambda p, lists: critic_gradients(mesh, config, p, lists))(params, to_mesh(mesh, lists_of(config)))


def test_the_gradient_is_that_of_the_mean_loss_over_lists_with_a_relevant_item():
    config = with_critic()
    lists = lists_of(config)
    lists = dataclasses.replace(lists, labels=lists.labels * (np.arange(8) != 5)[:, None])  # list 5 has none

    def mean_loss(params):
        scores = read_items(config.model, params, lists).last_hidden @ params["critic_head"]
        losses = BY_NAME[config.sft.head_loss](scores, lists.labels, lists.mask)
        return jnp.mean(jnp.delete(losses, 5))

    value, expected = jax.value_and_grad(mean_loss)(params_of(config))
    grads, loss = critic_gradients(make_mesh(config.mesh), config, params_of(config), lists)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    for (path, a), b in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    assert np.linalg.norm(grads["critic_head"]) > 0 and np.linalg.norm(grads["embedding"]) > 0
    assert not np.any(grads["score_head"]), "the critic says nothing about the words' scores"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=["data8", "fsdp8", "data2fsdp2tensor2"])
def test_the_gradient_on_eight_devices_equals_that_on_one(mesh):
    one, eight = gradients_on(ONE), gradients_on(mesh)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_a_frozen_backbone_leaves_the_head_to_be_trained():
    config = dataclasses.replace(with_critic(), trained="head")
    grads, _ = critic_gradients(make_mesh(config.mesh), config, params_of(config), lists_of(config))
    assert grads["embedding"] is None
    assert np.array_equal(np.asarray(grads["critic_head"]) != 0, np.asarray(gradients_on(ONE)[0]["critic_head"]) != 0)


def test_a_step_of_sft_trains_the_critic():
    config = with_critic()
    mesh = make_mesh(config.mesh)
    step = make_sft_step(mesh, config)
    state = fresh_state(mesh, config.model, config.sft.optimizer, config.sft.steps, seed=0)
    losses = []
    for batch, rationales in local_batches(config):
        state, metrics = step(state, *to_mesh(mesh, (batch, rationales)), to_mesh(mesh, lists_of(config)))
        losses.append(float(metrics["critic_loss"]))
    assert losses[-1] < losses[0]
    items = lists_of(config).mask.sum(axis=1)
    assert losses[0] == pytest.approx(np.log(items).mean(), rel=1e-5), "it starts at zero: all items are equally likely"


def test_expected_labels_share_the_gains_as_the_critic_says():
    labels = np.array([[1.0, 0, 0, 1], [2, 0, 0, 0]], np.float32)
    mask = np.array([[True] * 4, [True, True, True, False]])
    scores = np.log(np.array([[4.0, 2, 1, 1], [1, 1, 2, 9]], np.float32))
    sampled = expected_labels(scores, labels, mask, share=0.0)
    np.testing.assert_allclose(sampled, labels, rtol=1e-6)
    gains = 2.0 ** np.asarray(expected_labels(scores, labels, mask, share=1.0)) - 1
    np.testing.assert_allclose(gains[0], [1, 0.5, 0.25, 0.25], rtol=1e-5)  # 2 · (4, 2, 1, 1)/8
    np.testing.assert_allclose(gains[1], [0.75, 0.75, 1.5, 0], rtol=1e-5)  # 3 · (1, 1, 2)/4; the last is masked
    half = 2.0 ** np.asarray(expected_labels(scores, labels, mask, share=0.5)) - 1
    np.testing.assert_allclose(half[0], [1, 0.25, 0.125, 0.625], rtol=1e-5)
    certain = 2.0 ** np.asarray(expected_labels(50 * scores, labels, mask, share=1.0)) - 1
    np.testing.assert_allclose(certain[0], [1, 0, 0, 0], atol=1e-5)  # capped: no item has more than the largest gain


def test_expected_labels_have_no_gradient_and_survive_a_list_without_items():
    scores, labels, mask = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32), np.zeros((1, 3), bool)
    np.testing.assert_array_equal(expected_labels(scores, labels, mask, share=1.0), np.zeros((1, 3)))
    total = lambda s: jnp.sum(expected_labels(s, labels, ~mask, share=1.0))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(scores), np.zeros((1, 3)))


@pytest.mark.slow
def test_advantages_follow_the_critic_of_the_reference():
    """With share 1, sampled labels count only through their sum: moving them changes no advantage."""
    config = with_critic(critic_share=1.0, rationales=2)
    mesh, params = make_mesh(config.mesh), params_of(with_critic())
    lists = lists_of(config)
    lists = dataclasses.replace(lists, mask=np.ones_like(lists.mask))  # no label may move to an item that is not there
    batch = to_mesh(mesh, lists)
    rollout = make_rollout(mesh, config, STOP)(params, batch, jax.random.key(1))
    assess = make_rl_steps(mesh, config)[0]
    moved = dataclasses.replace(batch, labels=jnp.roll(batch.labels, 1, axis=1))
    own, same = assess(params, params, batch, rollout), assess(params, params, moved, rollout)
    assert np.abs(own.advantages).max() > 1e-3
    np.testing.assert_allclose(own.advantages, same.advantages, atol=1e-6)
    scores = read_items(config.model, params, lists).last_hidden @ params["critic_head"]
    labels = expected_labels(scores, lists.labels, lists.mask, share=1.0)
    by_list, reward = rollout.scores.swapaxes(1, 2), reward_of(config.rl)
    rules = {"rule": config.rl.credit, "reward": reward}
    expected = item_advantages(by_list, labels, lists.mask, **rules)
    expected -= spread_advantages(by_list, labels, lists.mask, **rules)
    np.testing.assert_allclose(own.advantages, expected.swapaxes(1, 2), atol=1e-6)
    other = {**params, "critic_head": -params["critic_head"]}
    np.testing.assert_allclose(assess(other, params, batch, rollout).advantages, own.advantages, atol=1e-6)
    assert np.abs(assess(params, other, batch, rollout).advantages - own.advantages).max() > 1e-3


def test_settings_of_a_critic_need_one():
    with pytest.raises(ConfigError, match=r"sft\.critic_users=8 trains a critic and needs model\.critic"):
        dataclasses.replace(with_critic(), model=make_config(ONE).model)
    with pytest.raises(ConfigError, match=r"rl\.critic_share lets a critic judge rationales and needs model\.critic"):
        RunConfig(name="x", rl=RLConfig(critic_share=1.0))
    with pytest.raises(ConfigError, match=r"sft\.critic_users=3 must be divisible by mesh\.data x mesh\.fsdp = 2"):
        with_critic(MeshConfig(data=2), users=3)
