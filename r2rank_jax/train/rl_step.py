"""One step of reinforcement learning from a reward of rankings: both gradient routes on one screen.

V(s) = E_{ranking ~ PL(s)}[R(ranking)]        the value of a list with scores s; R is `rl.reward`
∇J   = E[ ∇V(s) through s ]                   score part: the head, and with `joint` the backbone behind it;
                                              with `fixed_scale`, without the direction that multiplies all scores
     + E[ Σ_i A_i ∇log π(rationale_i) ]       token part: PPO, A_i from `ranking.credit` and `rl.rationale_rewards`;
                                              with `fixed_scale`, without the gain of spreading all scores
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2rank_jax.config import RLConfig, RunConfig
from r2rank_jax.model.forward import Judgement, judge, judge_and_sum, read_rationales, real_tokens
from r2rank_jax.model.logprobs import TokenLoss, TokenStatistics
from r2rank_jax.model.transformer import critic_scores
from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.expectation import expected_reward
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.rollout.summary import summary
from r2rank_jax.sharding import replicated, users
from r2rank_jax.train.advantages.critic import expected_labels
from r2rank_jax.train.advantages.spread import spread_advantages
from r2rank_jax.train.chunks import Losses, Rows, gradients, read_in_chunks
from r2rank_jax.train.context import UpdateContext, update_context
from r2rank_jax.train.losses import clipped_policy, sequence_log_ratio, without_scale_gradient
from r2rank_jax.train.objectives import reward_of
from r2rank_jax.train.rationale_rewards import centered, rationale_rewards_of
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales

# Streams folded out of a step's key. Calibration, before the first step, folds one more key for each of its batches.
ROLLOUT, UPDATE, CALIBRATION = 0, 1, 2


@struct.dataclass
class Assessment:
    """What a step computes from a rollout before its updates; constants of the updates."""

    old_logp: Array | None  # float32 [U, N, G, T]  under the policy before the updates; None = the current policy
    reference_hidden: Array  # [U, N, G, T, D]  the SFT policy's hidden states, for the logits of the KL term
    advantages: Array  # float32 [U, N, G]
    value: Array  # float32 []            mean V(s) of the lists


@struct.dataclass
class TokenConstants:
    """Constants of the loss of each token; [U, N, G, T], or the same tokens in any other order."""

    sampled_logp: Array  # under the sampler
    old_logp: Array | None  # as in `Assessment`
    advantages: Array  # of the token's rationale
    real: Array


@struct.dataclass
class _LossInputs:
    """What the loss of a rationale needs besides the rationale."""

    tokens: TokenConstants
    reference_hidden: Array


@struct.dataclass
class _SharedConstants:
    """Constants that all rows of an update share."""

    reference: Params
    key: Array
    tokens: Array  # float32 []  real tokens of all rationales
    lists: Array  # float32 []  U·G


def assess(
    mesh: Mesh, config: RunConfig, params: Params, reference: Params, batch: ListBatch, rollout: Rollout
) -> Assessment:
    """Turn list rewards into item advantages, and compute what the update needs of the old and the reference policy.

    The scores are those that the rollout computed. With one update per rollout, the old policy is the policy being
    updated, whose log-probabilities the update computes anyway, so a forward pass is saved.
    """
    rl, rationales = config.rl, rollout.rationales
    context = update_context(mesh, config, batch, rationales)
    rows = Rows(batch, rationales)

    def logp(p: Params, _: Any, prefix: KeyValues | None, chunk: Rows) -> Array:
        return judge(context.model, p, chunk.batch, chunk.rationales, prefix=prefix, temperature=rl.temperature).logp

    def hidden(p: Params, _: Any, prefix: KeyValues | None, chunk: Rows) -> Array:
        return read_rationales(context.model, p, chunk.batch, chunk.rationales, prefix).predicting

    old_logp = read_in_chunks(context, logp, params, (), rows) if rl.updates > 1 else None
    scores = rollout.scores.swapaxes(1, 2)  # [U, G, N]
    reward, of_rationales = reward_of(rl), rationale_rewards_of(rl)
    reference_hidden, labels = read_in_chunks(context, hidden, reference, (), rows), batch.labels
    if rl.critic_share:  # the state that predicts a rationale's first token is that of the item's last token
        of_critic = critic_scores(reference, reference_hidden[:, :, 0, 0])
        labels = expected_labels(of_critic, labels, batch.mask, share=rl.critic_share)
    advantages = item_advantages(scores, labels, batch.mask, rule=rl.credit, reward=reward)
    if rl.fixed_scale:
        advantages -= spread_advantages(scores, labels, batch.mask, rule=rl.credit, reward=reward)
    advantages = advantages.swapaxes(1, 2)
    if of_rationales is not None:
        advantages = advantages + centered(of_rationales(rationales), batch.mask)
    values = expected_reward(scores, batch.labels[:, None], batch.mask[:, None], reward=reward)
    return Assessment(
        old_logp=old_logp,
        reference_hidden=reference_hidden,
        advantages=advantages,
        value=jnp.mean(values),
    )


def rl_gradients(
    mesh: Mesh,
    config: RunConfig,
    params: Params,
    reference: Params,
    batch: ListBatch,
    rollout: Rollout,
    assessment: Assessment,
    key: Array,
) -> tuple[Params, dict[str, Array]]:
    """Gradient of - (score_weight · V + token_weight · PPO) + kl_weight · KL - entropy_weight · entropy, per list."""
    rl, rationales = config.rl, rollout.rationales
    context = update_context(mesh, config, batch, rationales)
    real = real_tokens(batch, rationales)
    constants = _SharedConstants(
        reference=reference,
        key=key,
        tokens=jnp.maximum(jnp.sum(real), 1).astype(jnp.float32),
        lists=jnp.float32(rationales.tokens.shape[0] * rationales.tokens.shape[2]),
    )
    advantages = jnp.broadcast_to(assessment.advantages[..., None], real.shape)
    tokens = TokenConstants(sampled_logp=rollout.logp, old_logp=assessment.old_logp, advantages=advantages, real=real)
    rows = Rows(batch, rationales, _LossInputs(tokens, assessment.reference_hidden))

    def of_scores(constants: _SharedConstants, scores: Array, rows: Rows) -> Array:
        return score_loss(config, constants, scores, rows)[0]

    losses = Losses(_token_part(context, rl), of_scores)
    # On the first update of a rollout the policy still has the scores that the rollout computed.
    scores = rollout.scores if rl.updates == 1 else None
    grads, judged = gradients(context, losses, params, constants, rows, scores)
    by_token, diagnostics = token_loss(rl, judged, tokens, (constants.tokens, constants.lists))
    by_score, reward = score_loss(config, constants, judged.scores, rows)
    return grads, {
        "loss": jnp.sum(by_token) + by_score,
        "reward": reward,
        "kl": jnp.sum(judged.kl) / constants.tokens,
        "entropy": jnp.sum(judged.entropy) / constants.tokens,
        "ratio_clipped": jnp.sum(diagnostics["clipped"]) / constants.tokens,
        "logp_gap": jnp.max(jnp.abs(diagnostics["gap"]), initial=0.0),
        "advantage_rms": jnp.sqrt(jnp.mean(assessment.advantages**2)),
        "value": assessment.value,
        "zero_advantages": _share_of_zeros(assessment.advantages, batch.mask),
        **summary(batch, rollout),
        **_rationale_reward(rl, batch, rationales),
    }


def _token_part(context: UpdateContext, rl: RLConfig) -> Callable[..., tuple[Array, Judgement]]:
    """The token part of the loss, as `Losses.of_tokens`."""

    def of_token(
        statistics: TokenStatistics | Judgement, constants: TokenConstants, shared: tuple[Array, Array]
    ) -> Array:
        return token_loss(rl, statistics, constants, shared)[0]

    def of_tokens(
        p: Params, constants: _SharedConstants, prefix: KeyValues | None, chunk: Rows
    ) -> tuple[Array, Judgement]:
        tokens, shared = chunk.loss_inputs.tokens, (constants.tokens, constants.lists)
        reference = chunk.loss_inputs.reference_hidden, constants.reference
        inputs = context.model, p, chunk.batch, chunk.rationales, reference, prefix
        settings: dict[str, Any] = {"temperature": rl.temperature, "joint": rl.joint}
        if rl.ratio == "token":
            return judge_and_sum(TokenLoss(of_token, tokens, shared), *inputs, **settings)
        # The ratio of a whole rationale is not a function of single tokens, as `TokenLoss` requires.
        judged = judge(*inputs, **settings)
        return jnp.sum(of_token(judged, tokens, shared)), judged

    return of_tokens


def score_loss(config: RunConfig, constants: Any, scores: Array, rows: Rows) -> tuple[Array, Array]:
    """The score part of the loss, minus an estimate of V(s) that is differentiable in the scores [U, N, G]; and V."""
    rl, batch = config.rl, rows.batch
    if rl.fixed_scale:
        scores = without_scale_gradient(scores, batch.mask)
    value = surrogate(
        constants.key,
        scores.swapaxes(1, 2),  # [U, G, N]
        batch.labels[:, None],
        batch.mask[:, None],
        estimator=rl.estimator,
        num_samples=rl.num_samples,
        reward=reward_of(rl),
    )
    reward = jnp.mean(value)
    return -rl.score_weight * reward, reward


def token_loss(
    rl: RLConfig,
    statistics: TokenStatistics | Judgement,
    constants: TokenConstants,
    shared: tuple[Array, Array],
) -> tuple[Array, dict[str, Array]]:
    """The token part of the loss: PPO with the advantage of each token's rationale, and the KL term.

    Args:
        rl: weights and clips.
        statistics: of the policy being trained.
        constants: of the same tokens; [U, N, G, T] where the ratio is that of whole rationales.
        shared: the number of real tokens in all rationales, and the number of lists.

    Returns:
        The loss of each token, float32, 0 on padding; and "gap" and "clipped" of each token.
    """
    tokens, lists = shared
    old_logp = jax.lax.stop_gradient(statistics.logp) if constants.old_logp is None else constants.old_logp
    # Trainer and sampler compute the same policy, so the gap is rounding unless their numerics differ.
    gap = jnp.where(constants.real, old_logp - constants.sampled_logp, 0.0)
    log_ratio = jnp.where(constants.real, statistics.logp - old_logp, 0.0)
    if rl.ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, constants.real)
    surrogate, clipped = clipped_policy(
        log_ratio,
        constants.advantages,
        jnp.minimum(jnp.exp(gap), rl.max_importance_weight),
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
    )
    regularizer = (rl.kl_weight * statistics.kl - rl.entropy_weight * statistics.entropy) / tokens
    loss = regularizer - rl.token_weight * surrogate / lists
    return jnp.where(constants.real, loss, 0.0), {"gap": gap, "clipped": constants.real & clipped}


def _share_of_zeros(advantages: Array, mask: Array) -> Array:
    """Share of the rationales [U, N, G] that the token part learns nothing from: 0 but for rounding."""
    real = jnp.broadcast_to(mask[:, :, None], advantages.shape)
    return jnp.sum(real & (jnp.abs(advantages) < 1e-6)) / jnp.maximum(jnp.sum(real), 1)


def _rationale_reward(rl: RLConfig, batch: ListBatch, rationales: Rationales) -> dict[str, Array]:
    """Mean reward of the rationales themselves, where the configuration has one."""
    of_rationales = rationale_rewards_of(rl)
    if of_rationales is None:
        return {}
    real = jnp.broadcast_to(batch.mask[:, :, None], rationales.length.shape)
    return {
        "rationale_reward": jnp.sum(jnp.where(real, of_rationales(rationales), 0.0)) / jnp.maximum(jnp.sum(real), 1)
    }


RLUpdate = Callable[[TrainState, Params, ListBatch, Rollout, Assessment], tuple[TrainState, dict[str, Array]]]
Assess = Callable[[Params, Params, ListBatch, Rollout], Assessment]


def make_rl_steps(mesh: Mesh, config: RunConfig) -> tuple[Assess, RLUpdate]:
    """The two jitted halves of a step: `assess` a rollout, then `update` the state, which is donated."""
    settings, steps = config.rl.optimizer, config.rl.steps * config.rl.updates
    optimizer = make_optimizer(settings, steps)

    def update(
        state: TrainState, reference: Params, batch: ListBatch, rollout: Rollout, assessment: Assessment
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key(), UPDATE)
        grads, metrics = rl_gradients(mesh, config, state.params, reference, batch, rollout, assessment, key)
        state, changed = apply_gradients(state, grads, optimizer, settings.ema_decay, config.trained)
        return state, metrics | changed

    split, whole = users(mesh), replicated(mesh)
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, steps, config.trained)
    )
    return (
        jax.jit(
            lambda params, reference, batch, rollout: assess(mesh, config, params, reference, batch, rollout),
            out_shardings=Assessment(split, split, split, whole),  # type: ignore[arg-type]
        ),
        jax.jit(update, out_shardings=(shardings, whole), donate_argnums=0),
    )
