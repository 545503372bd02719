"""Rewards of the rationales themselves: by hand, by name, and where they enter a step of RL."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import make_mesh, to_mesh
from r2rank_jax.train.objectives import check, head_loss_of
from r2rank_jax.train.rationale_rewards import centered, rationale_rewards_of
from r2rank_jax.train.rl_step import make_rl_steps, rl_gradients
from r2rank_jax.train.state import fresh_state
from r2rank_jax.types import Rationales
from tests.support.training_steps import STEPS, STOP, local_batches, make_config

# One user, two items, two rationales each.
RATIONALES = Rationales(
    tokens=jnp.array([[[[7, 8, 3, 0], [7, 3, 0, 0]], [[9, 9, 9, 9], [5, 6, 7, 3]]]]),
    length=jnp.array([[[3, 2], [4, 4]]]),
    stopped=jnp.array([[[True, True], [False, True]]]),
)


def says_seven(rationales):
    """1 for a rationale that holds token 7: a reward of one's own."""
    return jnp.any(rationales.tokens == 7, axis=-1).astype(jnp.float32)


def says(token):
    return lambda rationales: jnp.any(rationales.tokens == token, axis=-1).astype(jnp.float32)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("cut_off", [[0, 0], [-1, 0]]),
        ("0.1*cut_off", [[0, 0], [-0.1, 0]]),
        ("too_long@2", [[-1, 0], [-2, -2]]),
        ("0.5*cut_off+0.1*too_long@3", [[0, 0], [-0.6, -0.1]]),
        (f"{__name__}:says_seven - 2*{__name__}:says@5", [[1, 1], [0, -1]]),
    ],
)
def test_by_hand(text, want):
    found = rationale_rewards_of(RLConfig(rationale_rewards=text))(RATIONALES)  # type: ignore[misc]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], want, atol=1e-7)


def test_centered_over_the_other_rationales_of_the_item():
    rewards = jnp.array([[[1.0, 2.0, 6.0], [5.0, 5.0, 5.0], [9.0, jnp.nan, 0.0]]])
    found = centered(rewards, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(found[0], [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(centered(rewards[..., :1], jnp.array([[True, True, False]]))[0, :, 0], [1, 5, 0])


def test_the_centered_reward_gives_an_unbiased_policy_gradient():
    """Every pair of rationales of one item, weighted by its probability: E[Σ_g A_g ∇log π] / G = ∇E[r]."""
    logits, rewards = np.array([0.3, -0.2, 0.8]), np.array([1.0, -2.0, 0.5])
    policy = np.exp(logits) / np.exp(logits).sum()
    got = np.zeros(3)
    for a in range(3):
        for b in range(3):
            advantages = np.asarray(centered(jnp.array([[[rewards[a], rewards[b]]]]), jnp.ones((1, 1), bool)))[0, 0]
            slope = np.eye(3)[[a, b]] - policy
            got += policy[a] * policy[b] * (advantages @ slope) / 2
    np.testing.assert_allclose(got, policy * (rewards - policy @ rewards), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "0.7*too_long@2+0.3*cut_off"])
def test_a_step_moves_the_token_gradient_and_no_other(text):
    config = make_config(MeshConfig(), rationale_rewards=text, kl_weight=0.0)
    plain = make_config(MeshConfig(), kl_weight=0.0)
    mesh = make_mesh(config.mesh)
    params = fresh_state(mesh, config.model, config.rl.optimizer, STEPS, seed=0).params
    batch = to_mesh(mesh, next(local_batches(config))[0])
    rollout = make_rollout(mesh, config, STOP)(params, batch, jax.random.key(0))
    assert len(np.unique(rollout.rationales.length)) > 1, "the test needs rationales of different length"

    def gradients(config, **weights):
        config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, **weights))
        assessment = make_rl_steps(mesh, config)[0](params, params, batch, rollout)
        step = jax.jit(lambda p: rl_gradients(mesh, config, p, params, batch, rollout, assessment, jax.random.key(1)))
        return assessment.advantages, *step(params)

    with_it, slopes, metrics = gradients(config, score_weight=0.0)
    without, plain_slopes, _ = gradients(plain, score_weight=0.0)
    moved = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (slopes, plain_slopes))))
    if not text:
        assert moved == 0 and "rationale_reward" not in metrics
        return
    of_rationales = rationale_rewards_of(config.rl)(rollout.rationales)  # type: ignore[misc]
    np.testing.assert_allclose(with_it, without + centered(of_rationales, batch.mask), atol=1e-6)
    assert moved > 1e-4
    np.testing.assert_allclose(
        metrics["rationale_reward"], np.mean(np.asarray(of_rationales)[np.asarray(batch.mask)]), rtol=1e-5
    )
    _, slopes, _ = gradients(config, token_weight=0.0)
    _, plain_slopes, _ = gradients(plain, token_weight=0.0)
    for a, b in zip(*map(jax.tree.leaves, (slopes, plain_slopes))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rl": RLConfig(reward="ndgc@10")}, r"rl\.reward: reward must be one of ndcg, .*; got 'ndgc'; correct"),
        (
            {"rl": RLConfig(rationale_rewards="too_long")},
            r"rl\.rationale_rewards: too_long needs a number .*@12",
        ),
        (
            {"rl": RLConfig(rationale_rewards="short")},
            r"rl\.rationale_rewards: .* cut_off, too_long or module:",
        ),
        ({"sft": SFTConfig(head_loss="softmax")}, r"sft\.head_loss must be one of softmax_cross_entropy, .*'softmax'"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        check(RunConfig(name="x", **fields))
    assert "\n" not in str(error.value)
    check(RunConfig(name="x"))
    assert head_loss_of(SFTConfig(head_loss="r2rank_jax.ranking.losses:list_mle")).__name__ == "list_mle"  # type: ignore[attr-defined]
