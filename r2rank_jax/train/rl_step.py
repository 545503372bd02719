"""One step of reinforcement learning from NDCG: both gradient routes on one screen.

V(s) = E_{ranking ~ PL(s)}[NDCG@k]            the value of a list with scores s
∇J   = E[ ∇V(s) through s ]                   score part: the head, and with `joint` the backbone behind it;
                                              with `fixed_scale` without the direction that multiplies all scores
     + E[ Σ_i A_i ∇log π(rationale_i) ]       token part: PPO, A_i from `ranking.credit`
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.forward import judge, padding_mask, read_rationales
from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.expectation import expected_ndcg
from r2rank_jax.rollout.generate import Rollout
from r2rank_jax.sharding import replicated, users
from r2rank_jax.train.losses import clipped_policy, without_scale_gradient
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, ListBatch, Params, Rationales

# Streams folded out of a step's key; calibration, before the first step, takes one for each of its batches.
ROLLOUT, UPDATE, CALIBRATION = 0, 1, 2


@struct.dataclass
class Assessment:
    """What is known of a rollout before it is learned from; constants of the update."""

    old_logp: Array | None  # float32 [U, N, G, T]  under the policy before the updates; None = it is still that policy
    reference_hidden: Array  # [U, N, G, T, D]  the SFT policy's, whose logits the KL term compares with
    advantages: Array  # float32 [U, N, G]
    value: Array  # float32 []            mean V(s) of the lists


def assess(config: RunConfig, params: Params, reference: Params, batch: ListBatch, rollout: Rollout) -> Assessment:
    """List reward to item advantages, and the two policies that the update is held against.

    The scores are those that the rollout read on its way. With one update per rollout the policy before it is the one
    being updated, whose log-probabilities the update computes anyway: a forward pass saved.
    """
    rl, said = config.rl, rollout.rationales
    old_logp = None
    if rl.updates > 1:
        old_logp = judge(config.model, params, batch, said, temperature=rl.temperature).logp
    lists = rollout.scores.swapaxes(1, 2)  # [U, G, N]
    advantages = item_advantages(lists, batch.labels, batch.mask, rule=rl.credit, k=rl.metric_k)
    values = expected_ndcg(lists, batch.labels[:, None], batch.mask[:, None], k=rl.metric_k)
    return Assessment(
        old_logp=old_logp,
        reference_hidden=read_rationales(config.model, reference, batch, said).predicting,
        advantages=advantages.swapaxes(1, 2),
        value=jnp.mean(values),
    )


def rl_loss(
    config: RunConfig,
    params: Params,
    reference: Params,
    batch: ListBatch,
    rollout: Rollout,
    assessment: Assessment,
    key: Array,
) -> tuple[Array, dict[str, Array]]:
    """- (score_weight · V + token_weight · PPO) + kl_weight · KL - entropy_weight · entropy, per list."""
    rl, said = config.rl, rollout.rationales
    judged = judge(
        config.model,
        params,
        batch,
        said,
        (assessment.reference_hidden, reference),
        temperature=rl.temperature,
        joint=rl.joint,
    )
    real = padding_mask(said.length, said.tokens.shape[-1]) & batch.mask[:, :, None, None]
    lists = judged.scores.shape[0] * judged.scores.shape[2]  # U·G

    # -- score part: an estimate of ∇V(s), straight through the scores --------------------------------------------
    scores = without_scale_gradient(judged.scores, batch.mask) if rl.fixed_scale else judged.scores
    value = surrogate(
        key,
        scores.swapaxes(1, 2),  # [U, G, N]
        batch.labels[:, None],
        batch.mask[:, None],
        estimator=rl.estimator,
        num_samples=rl.num_samples,
        k=rl.metric_k,
    )
    score_part = jnp.mean(value)

    # -- token part: each rationale's own advantage, on each of its tokens ----------------------------------------
    old_logp = jax.lax.stop_gradient(judged.logp) if assessment.old_logp is None else assessment.old_logp
    gap = old_logp - rollout.logp  # trainer against sampler, the same policy: rounding, unless their numerics differ
    per_rationale, clipped = clipped_policy(
        judged.logp,
        old_logp,
        assessment.advantages,
        jnp.minimum(jnp.exp(gap), rl.max_importance_weight),
        real,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        ratio=rl.ratio,
    )
    token_part = jnp.sum(per_rationale) / lists

    tokens = jnp.maximum(jnp.sum(real), 1)
    kl = jnp.sum(judged.kl) / tokens
    entropy = jnp.sum(judged.entropy) / tokens
    loss = -rl.score_weight * score_part - rl.token_weight * token_part + rl.kl_weight * kl
    loss = loss - rl.entropy_weight * entropy
    return loss, {
        "loss": loss,
        "reward": score_part,
        "kl": kl,
        "entropy": entropy,
        "ratio_clipped": clipped,
        "advantage_rms": jnp.sqrt(jnp.mean(assessment.advantages**2)),
        "value": assessment.value,
        "logp_gap": jnp.max(jnp.abs(gap)),
    } | _lengths(batch, said)


def _lengths(batch: ListBatch, said: Rationales) -> dict[str, Array]:
    """Mean tokens of a rationale, and the share of rationales that were cut off."""
    real = jnp.broadcast_to(batch.mask[:, :, None], said.stopped.shape)
    rationales = jnp.maximum(jnp.sum(real), 1)
    return {
        "rationale_tokens": jnp.sum(jnp.where(real, said.length, 0)) / rationales,
        "truncated": jnp.sum(real & ~said.stopped) / rationales,
    }


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
        gradient = jax.grad(lambda p: rl_loss(config, p, reference, batch, rollout, assessment, key), has_aux=True)
        grads, metrics = gradient(state.params)
        state, changed = apply_gradients(state, grads, optimizer, settings.ema_decay)
        return state, metrics | changed

    split, whole = users(mesh), replicated(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, steps))
    return (
        jax.jit(
            lambda params, reference, batch, rollout: assess(config, params, reference, batch, rollout),
            out_shardings=Assessment(split, split, split, whole),  # type: ignore[arg-type]
        ),
        jax.jit(update, out_shardings=(shardings, whole), donate_argnums=0),
    )
