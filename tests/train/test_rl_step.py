"""The step of RL: on eight devices as on one, and doing what its losses say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, RLConfig
from r2rank_jax.model.logprobs import TokenStatistics
from r2rank_jax.ranking.expectation import expected_ndcg
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import make_mesh, to_mesh
from r2rank_jax.train.losses import clipped_policy, without_scale_gradient
from r2rank_jax.train.rl_step import TokenConstants, make_rl_steps, rl_gradients, token_loss
from r2rank_jax.train.state import fresh_state
from tests.support.training_steps import MESHES, STEPS, STOP, local_batches, make_config


@functools.cache
def train_rl(mesh_config, **rl):
    config = make_config(mesh_config, **rl)
    mesh = make_mesh(config.mesh)
    state = fresh_state(mesh, config.model, config.rl.optimizer, STEPS * config.rl.updates, seed=0)
    reference = jax.tree.map(jnp.copy, state.params)
    rollout_fn = make_rollout(mesh, config, STOP)
    assess, update = make_rl_steps(mesh, config)
    losses = []
    for local, _ in local_batches(config):
        batch = to_mesh(mesh, local)
        rollout = rollout_fn(state.params, batch, jax.random.fold_in(state.key(), 0))
        assessment = assess(state.params, reference, batch, rollout)
        for _ in range(config.rl.updates):
            state, metrics = update(state, reference, batch, rollout, assessment)
        losses.append(jax.device_get(metrics) | {"tokens": np.asarray(rollout.rationales.tokens)})
    return state, losses


@pytest.mark.slow
def test_rl_on_eight_devices_equals_one():
    """Two updates for each rollout; a single one is compared, in chunks, by `test_chunks.py`."""
    one, eight = train_rl(MeshConfig(), updates=2), train_rl(MESHES[2], updates=2)
    for a, b in zip(one[1], eight[1]):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        for name in ("loss", "reward", "kl", "value"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_rollout_and_trainer_agree_and_rl_starts_at_its_reference():
    _, metrics = train_rl(MeshConfig(), updates=2)
    assert all(m["logp_gap"] < 1e-4 for m in metrics)
    assert metrics[0]["kl"] == 0, "the warm-up's first learning rate is 0: this is still the reference policy"
    assert metrics[-1]["kl"] > 0, "by now the policy has moved"
    assert all(m["advantage_rms"] > 0 for m in metrics)


@pytest.mark.slow
def test_reinforce_with_shared_credit_gives_finite_steps():
    """The paper's family. `exact` with `counterfactual`, the default, is trained above; `pl_rank` with
    `leave_item_out` in `test_chunks.py`."""
    state, metrics = train_rl(MeshConfig(), estimator="reinforce", credit="shared")
    assert all(m["skipped"] == 0 and np.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in metrics)
    assert int(state.step) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["exact", "pl_rank"])
def test_a_step_learns_from_the_reward_that_is_configured(estimator):
    _, metrics = train_rl(MeshConfig(), reward="0.5*recall@2+2*mrr", estimator=estimator)
    _, other = train_rl(MeshConfig(), updates=2)
    assert all(m["skipped"] == 0 and np.isfinite(m["loss"]) and m["advantage_rms"] > 0 for m in metrics)
    assert 1 < metrics[0]["value"] < 2.5 and other[0]["value"] < 1
    np.testing.assert_allclose(metrics[0]["reward"], metrics[0]["value"], rtol=1e-5 if estimator == "exact" else 0.2)


def test_clipped_policy_by_hand():
    old = jnp.log(jnp.array([0.5, 0.5]))
    new = jnp.log(jnp.array([0.75, 0.5]))  # ratios 1.5 and 1
    weight = jnp.array([1.0, 0.5])
    settings = {"clip_low": 0.2, "clip_high": 0.3}
    up, was_clipped = clipped_policy(new - old, jnp.full(2, 2.0), weight, **settings)
    np.testing.assert_allclose(up, [1.3 * 2, 1.0 * 2 * 0.5], rtol=1e-6)
    np.testing.assert_array_equal(was_clipped, [True, False])
    down, was_clipped = clipped_policy(new - old, jnp.full(2, -2.0), weight, **settings)
    np.testing.assert_allclose(down, [1.5 * -2, 1.0 * -2 * 0.5], rtol=1e-6)
    assert not was_clipped.any()


def test_token_loss_by_hand():
    """Two real tokens and a padding, whose ratio must not count: ratios 1.5 and 1, importance 1 and 0.5."""
    log = lambda *p: jnp.log(jnp.array([[[[*p]]]]))  # noqa: E731
    statistics = TokenStatistics(logp=log(0.75, 0.5, 0.01), entropy=log(2, 3, 4), kl=log(5, 6, 7))
    constants = {"sampled_logp": log(0.5, 1.0, 0.5), "old_logp": log(0.5, 0.5, 0.5)}
    constants |= {"advantages": jnp.full((1, 1, 1, 3), 2.0), "real": jnp.array([[[[True, True, False]]]])}
    settings = {"token_weight": 3.0, "kl_weight": 0.1, "entropy_weight": 0.2, "clip_low": 0.2, "clip_high": 0.3}
    shared = jnp.float32(2), jnp.float32(4)  # tokens, lists
    regular = 0.1 * np.log([5, 6]) / 2 - 0.2 * np.log([2, 3]) / 2
    loss, diagnostics = token_loss(RLConfig(ratio="token", **settings), statistics, TokenConstants(**constants), shared)
    np.testing.assert_allclose(loss[0, 0, 0, :2], regular - 3 / 4 * np.array([1.3 * 2, 2 * 0.5]), rtol=1e-5)
    assert float(loss[0, 0, 0, 2]) == 0 and int(diagnostics["clipped"].sum()) == 1
    loss, _ = token_loss(RLConfig(ratio="sequence", **settings), statistics, TokenConstants(**constants), shared)
    np.testing.assert_allclose(loss[0, 0, 0, :2], regular - 3 / 4 * 1.5**0.5 * np.array([2, 2 * 0.5]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(diagnostics["gap"][0, 0, 0]), [1.0, 0.5, 1.0], rtol=1e-6)


@pytest.mark.slow
def test_no_gradient_scales_all_scores_together():
    scores = jax.random.normal(jax.random.key(0), (3, 5, 2)).at[0, 4].set(99.0)
    mask = jnp.ones((3, 5), bool).at[0, 4].set(False)
    labels = jnp.zeros((3, 5)).at[:, 1].set(1.0)

    def value(s):
        return jnp.sum(expected_ndcg(s.swapaxes(1, 2), labels[:, None], mask[:, None]))

    fixed = without_scale_gradient(scores, mask)
    np.testing.assert_allclose(value(fixed), value(scores), rtol=1e-5)
    plain, found = jax.grad(value)(scores), jax.grad(lambda s: value(without_scale_gradient(s, mask)))(scores)
    assert abs(jnp.vdot(plain, fixed)) > 0.01, "the test must have something to take out"
    np.testing.assert_allclose(jnp.vdot(found, fixed), 0, atol=1e-5)
    # What is left is the plain gradient without its part along the scores.
    np.testing.assert_allclose(found, plain - fixed * jnp.vdot(plain, fixed) / jnp.vdot(fixed, fixed), atol=1e-5)
    equal = jax.grad(lambda s: value(without_scale_gradient(s, mask)))(jnp.zeros_like(scores))
    assert np.isfinite(equal).all()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False])
def test_the_score_part_moves_the_heads_scale_only_where_it_may(fixed):
    config = make_config(MeshConfig(), fixed_scale=fixed, token_weight=0.0, kl_weight=0.0)
    mesh = make_mesh(config.mesh)
    params = fresh_state(mesh, config.model, config.rl.optimizer, STEPS, seed=0).params
    params = {**params, "score_head": 30 * params["score_head"]}
    batch = to_mesh(mesh, next(local_batches(config))[0])
    rollout = make_rollout(mesh, config, STOP)(params, batch, jax.random.key(0))
    # The item with the highest score is the relevant one, so that larger scores would surely raise V.
    scores = jnp.where(batch.mask, rollout.scores.mean(axis=2), -jnp.inf)
    best = (scores == scores.max(axis=1, keepdims=True)).astype(jnp.float32)
    batch = dataclasses.replace(batch, labels=best)
    assessment = make_rl_steps(mesh, config)[0](params, params, batch, rollout)
    gradient = jax.jit(
        lambda p: rl_gradients(mesh, config, p, params, batch, rollout, assessment, jax.random.key(1))[0]
    )(params)
    along = abs(float(jnp.vdot(gradient["score_head"], params["score_head"])))  # the head is linear, without bias
    assert (along < 1e-5) if fixed else (along > 1e-3), along
