"""One step of reinforcement learning from a reward of rankings: both gradient routes on one screen.

V(s) = E_{ranking ~ PL(s)}[R(ranking)]        the value of a list with scores s; R is `rl.reward`
∇J   = E[ ∇V(s) through s ]                   score part: the head, and with `joint` the backbone behind it;
                                              with `fixed_scale` without the direction that multiplies all scores
     + E[ Σ_i A_i ∇log π(rationale_i) ]       token part: PPO, A_i from `ranking.credit` and `rl.rationale_rewards`
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
from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.expectation import expected_reward
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.sharding import replicated, users
from r2rank_jax.train.chunks import Losses, Rows, gradients, read_in_chunks
from r2rank_jax.train.losses import clipped_policy, sequence_log_ratio, without_scale_gradient
from r2rank_jax.train.memory import Plan, plan_update
from r2rank_jax.train.objectives import reward_of
from r2rank_jax.train.rationale_rewards import centred, rationale_rewards_of
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales

# Streams folded out of a step's key; calibration, before the first step, takes one for each of its batches.
ROLLOUT, UPDATE, CALIBRATION = 0, 1, 2


@struct.dataclass
class Assessment:
    """What is known of a rollout before it is learned from; constants of the update."""

    old_logp: Array | None  # float32 [U, N, G, T]  under the policy before the updates; None = it is still that policy
    reference_hidden: Array  # [U, N, G, T, D]  the SFT policy's, whose logits the KL term compares with
    advantages: Array  # float32 [U, N, G]
    value: Array  # float32 []            mean V(s) of the lists


@struct.dataclass
class KnownOfToken:
    """What the loss of a token takes as given; [U, N, G, T], or any other order of the same tokens."""

    sampled_logp: Array  # under the sampler
    old_logp: Array | None  # as in `Assessment`
    advantages: Array  # of the rationale
    real: Array


@struct.dataclass
class _Known:
    """What is known of each rationale, beside the rationale."""

    tokens: KnownOfToken
    reference_hidden: Array


@struct.dataclass
class _Constants:
    """What all rows of an update share."""

    reference: Params
    key: Array
    tokens: Array  # float32 []  real tokens of all rationales
    lists: Array  # float32 []  U·G


def assess(
    mesh: Mesh, config: RunConfig, params: Params, reference: Params, batch: ListBatch, rollout: Rollout
) -> Assessment:
    """List reward to item advantages, and the two policies that the update is held against.

    The scores are those that the rollout read on its way. With one update per rollout the policy before it is the one
    being updated, whose log-probabilities the update computes anyway: a forward pass saved.
    """
    rl, said = config.rl, rollout.rationales
    plan = _plan(config, batch, said)
    rows = Rows(batch=batch, said=said)

    def logp(p: Params, _: Any, prefix: KeyValues | None, here: Rows) -> Array:
        return judge(plan.model, p, here.batch, here.said, prefix=prefix, temperature=rl.temperature).logp

    def hidden(p: Params, _: Any, prefix: KeyValues | None, here: Rows) -> Array:
        return read_rationales(plan.model, p, here.batch, here.said, prefix).predicting

    old_logp = None
    if rl.updates > 1:
        old_logp = read_in_chunks(mesh, plan.model, logp, params, (), rows, chunk_items=plan.chunk_items)
    lists = rollout.scores.swapaxes(1, 2)  # [U, G, N]
    reward, of_rationales = reward_of(rl), rationale_rewards_of(rl)
    advantages = item_advantages(lists, batch.labels, batch.mask, rule=rl.credit, reward=reward).swapaxes(1, 2)
    if of_rationales is not None:
        advantages = advantages + centred(of_rationales(said), batch.mask)
    values = expected_reward(lists, batch.labels[:, None], batch.mask[:, None], reward=reward)
    return Assessment(
        old_logp=old_logp,
        reference_hidden=read_in_chunks(mesh, plan.model, hidden, reference, (), rows, chunk_items=plan.chunk_items),
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
    rl, said = config.rl, rollout.rationales
    plan = _plan(config, batch, said)
    real = real_tokens(batch, said)
    constants = _Constants(
        reference=reference,
        key=key,
        tokens=jnp.maximum(jnp.sum(real), 1).astype(jnp.float32),
        lists=jnp.float32(said.tokens.shape[0] * said.tokens.shape[2]),
    )
    advantages = jnp.broadcast_to(assessment.advantages[..., None], real.shape)
    known = KnownOfToken(sampled_logp=rollout.logp, old_logp=assessment.old_logp, advantages=advantages, real=real)
    rows = Rows(batch=batch, said=said, more=_Known(tokens=known, reference_hidden=assessment.reference_hidden))

    def of_token(found: TokenStatistics | Judgement, known: KnownOfToken, shared: tuple[Array, Array]) -> Array:
        return token_loss(rl, found, known, shared)[0]

    def of_tokens(p: Params, constants: _Constants, prefix: KeyValues | None, here: Rows) -> tuple[Array, Judgement]:
        known, shared = here.more.tokens, (constants.tokens, constants.lists)
        reference = here.more.reference_hidden, constants.reference
        read = plan.model, p, here.batch, here.said, reference, prefix
        settings: dict[str, Any] = {"temperature": rl.temperature, "joint": rl.joint}
        if rl.ratio == "token":
            return judge_and_sum(TokenLoss(of_token, known, shared), *read, **settings)
        judged = judge(*read, **settings)  # a ratio of whole rationales is not for single tokens to know
        return jnp.sum(of_token(judged, known, shared)), judged

    grads, judged = gradients(
        mesh,
        plan.model,
        Losses(of_tokens, lambda constants, scores, here: score_loss(config, constants, scores, here)[0]),
        params,
        constants,
        rows,
        # On the first update of a rollout the policy is still the one whose scores the rollout read.
        rollout.scores if rl.updates == 1 else None,
        chunk_items=plan.chunk_items,
        trained=config.trained,
    )
    by_token, seen = token_loss(rl, judged, known, (constants.tokens, constants.lists))
    by_score, reward = score_loss(config, constants, judged.scores, rows)
    return grads, {
        "loss": jnp.sum(by_token) + by_score,
        "reward": reward,
        "kl": jnp.sum(judged.kl) / constants.tokens,
        "entropy": jnp.sum(judged.entropy) / constants.tokens,
        "ratio_clipped": jnp.sum(seen["clipped"]) / constants.tokens,
        "logp_gap": jnp.max(jnp.abs(seen["gap"]), initial=0.0),
        "advantage_rms": jnp.sqrt(jnp.mean(assessment.advantages**2)),
        "value": assessment.value,
        **_lengths(batch, said),
        **_rationale_reward(rl, batch, said),
    }


def score_loss(config: RunConfig, constants: Any, scores: Array, rows: Rows) -> tuple[Array, Array]:
    """Score part: minus an estimate of V(s), straight through the scores [U, N, G]; and V itself."""
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
    rl: RLConfig, found: TokenStatistics | Judgement, known: KnownOfToken, shared: tuple[Array, Array]
) -> tuple[Array, dict[str, Array]]:
    """Token part, of each token: its rationale's advantage; and the KL that holds the policy.

    Args:
        rl: weights and clips.
        found: of the policy being trained.
        known: of the same tokens; [U, N, G, T] where the ratio is one of rationales.
        shared: real tokens of all rationales; lists.

    Returns:
        float32, 0 on padding; and what else was found on the way.
    """
    tokens, lists = shared
    old_logp = jax.lax.stop_gradient(found.logp) if known.old_logp is None else known.old_logp
    # Trainer against sampler, the same policy: rounding, unless their numerics differ.
    gap = jnp.where(known.real, old_logp - known.sampled_logp, 0.0)
    log_ratio = jnp.where(known.real, found.logp - old_logp, 0.0)
    if rl.ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, known.real)
    surrogate, clipped = clipped_policy(
        log_ratio,
        known.advantages,
        jnp.minimum(jnp.exp(gap), rl.max_importance_weight),
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
    )
    loss = (rl.kl_weight * found.kl - rl.entropy_weight * found.entropy) / tokens - rl.token_weight * surrogate / lists
    return jnp.where(known.real, loss, 0.0), {"gap": gap, "clipped": known.real & clipped}


def _plan(config: RunConfig, batch: ListBatch, said: Rationales) -> Plan:
    return plan_update(
        config.model,
        config.compute,
        batch,
        said,
        batch_shards=config.mesh.batch_shards,
        tensor=config.mesh.tensor,
        trained=config.trained,
    )


def _lengths(batch: ListBatch, said: Rationales) -> dict[str, Array]:
    """Mean tokens of a rationale, and the share of rationales that were cut off."""
    real = jnp.broadcast_to(batch.mask[:, :, None], said.stopped.shape)
    rationales = jnp.maximum(jnp.sum(real), 1)
    return {
        "rationale_tokens": jnp.sum(jnp.where(real, said.length, 0)) / rationales,
        "truncated": jnp.sum(real & ~said.stopped) / rationales,
    }


def _rationale_reward(rl: RLConfig, batch: ListBatch, said: Rationales) -> dict[str, Array]:
    """Mean reward of the rationales themselves, where the configuration has one."""
    of_rationales = rationale_rewards_of(rl)
    if of_rationales is None:
        return {}
    real = jnp.broadcast_to(batch.mask[:, :, None], said.length.shape)
    return {"rationale_reward": jnp.sum(jnp.where(real, of_rationales(said), 0.0)) / jnp.maximum(jnp.sum(real), 1)}


RLUpdate = Callable[[TrainState, Params, ListBatch, Rollout, Assessment], tuple[TrainState, dict[str, Array]]]
Assess = Callable[[Params, Params, ListBatch, Rollout], Assessment]


def make_rl_steps(mesh: Mesh, config: RunConfig) -> tuple[Assess, RLUpdate]:
    """The two jitted halves of a step: `assess` a rollout, then `update` from it (donating the state)."""
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
