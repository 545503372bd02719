"""One step of reinforcement learning from NDCG: both gradient routes on one screen.

V(s) = E_{ranking ~ PL(s)}[NDCG@k]            the value of a list with scores s
∇J   = E[ ∇V(s) through s ]                   score part: the head, and with `joint` the backbone behind it;
                                              with `fixed_scale` without the direction that multiplies all scores
     + E[ Σ_i A_i ∇log π(rationale_i) ]       token part: PPO, A_i from `ranking.credit`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.model.forward import Judgement, judge, padding_mask, read_rationales
from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.estimators import surrogate
from r2rank_jax.ranking.expectation import expected_ndcg
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.sharding import replicated, users
from r2rank_jax.train.chunks import Losses, Rows, gradients, read_in_chunks
from r2rank_jax.train.losses import clipped_policy, without_scale_gradient
from r2rank_jax.train.memory import plan_update
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
class _Known:
    """What is known of each rationale, beside the rationale."""

    sampled_logp: Array  # float32 [U, N, G, T]  under the sampler
    old_logp: Array | None
    advantages: Array
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
    model, chunk_items = _plan(config, batch, said)
    rows = Rows(batch=batch, said=said)

    def logp(p: Params, _: Any, prefix: KeyValues | None, here: Rows) -> Array:
        return judge(model, p, here.batch, here.said, prefix=prefix, temperature=rl.temperature).logp

    def hidden(p: Params, _: Any, prefix: KeyValues | None, here: Rows) -> Array:
        return read_rationales(model, p, here.batch, here.said, prefix).predicting

    old_logp = None
    if rl.updates > 1:
        old_logp = read_in_chunks(mesh, model, logp, params, (), rows, chunk_items=chunk_items)
    lists = rollout.scores.swapaxes(1, 2)  # [U, G, N]
    advantages = item_advantages(lists, batch.labels, batch.mask, rule=rl.credit, k=rl.metric_k)
    values = expected_ndcg(lists, batch.labels[:, None], batch.mask[:, None], k=rl.metric_k)
    return Assessment(
        old_logp=old_logp,
        reference_hidden=read_in_chunks(mesh, model, hidden, reference, (), rows, chunk_items=chunk_items),
        advantages=advantages.swapaxes(1, 2),
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
    model, chunk_items = _plan(config, batch, said)
    real = padding_mask(said.length, said.tokens.shape[-1]) & batch.mask[:, :, None, None]
    constants = _Constants(
        reference=reference,
        key=key,
        tokens=jnp.maximum(jnp.sum(real), 1).astype(jnp.float32),
        lists=jnp.float32(said.tokens.shape[0] * said.tokens.shape[2]),
    )
    known = _Known(rollout.logp, assessment.old_logp, assessment.advantages, assessment.reference_hidden)  # type: ignore[call-arg]
    rows = Rows(batch=batch, said=said, more=known)

    def read(p: Params, constants: _Constants, prefix: KeyValues | None, here: Rows) -> Judgement:
        return judge(
            model,
            p,
            here.batch,
            here.said,
            (here.more.reference_hidden, constants.reference),
            prefix,
            temperature=rl.temperature,
            joint=rl.joint,
        )

    grads, judged = gradients(
        mesh,
        model,
        Losses(
            read,
            lambda constants, judged, here: token_loss(config, constants, judged, here)[0],
            lambda constants, scores, here: score_loss(config, constants, scores, here)[0],
        ),
        params,
        constants,
        rows,
        # On the first update of a rollout the policy is still the one whose scores the rollout read.
        rollout.scores if rl.updates == 1 else None,
        chunk_items=chunk_items,
    )
    by_token, token_metrics = token_loss(config, constants, judged, rows)
    by_score, reward = score_loss(config, constants, judged.scores, rows)
    return grads, {
        "loss": by_token + by_score,
        "reward": reward,
        **token_metrics,
        "advantage_rms": jnp.sqrt(jnp.mean(assessment.advantages**2)),
        "value": assessment.value,
        **_lengths(batch, said),
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
        k=rl.metric_k,
    )
    reward = jnp.mean(value)
    return -rl.score_weight * reward, reward


def token_loss(config: RunConfig, constants: Any, judged: Judgement, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Token part: each rationale's own advantage, on each of its tokens; and the KL that holds the policy."""
    rl, known = config.rl, rows.more
    real = padding_mask(rows.said.length, judged.logp.shape[-1]) & rows.batch.mask[:, :, None, None]
    old_logp = jax.lax.stop_gradient(judged.logp) if known.old_logp is None else known.old_logp
    gap = (
        old_logp - known.sampled_logp
    )  # trainer against sampler, the same policy: rounding, unless their numerics differ
    per_rationale, clipped = clipped_policy(
        judged.logp,
        old_logp,
        known.advantages,
        jnp.minimum(jnp.exp(gap), rl.max_importance_weight),
        real,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        ratio=rl.ratio,
    )
    kl = jnp.sum(judged.kl) / constants.tokens
    entropy = jnp.sum(judged.entropy) / constants.tokens
    loss = -rl.token_weight * jnp.sum(per_rationale) / constants.lists + rl.kl_weight * kl - rl.entropy_weight * entropy
    return loss, {"kl": kl, "entropy": entropy, "ratio_clipped": clipped, "logp_gap": jnp.max(jnp.abs(gap))}


def _plan(config: RunConfig, batch: ListBatch, said: Rationales) -> tuple[ModelConfig, int]:
    """The model as it is computed, and the items that are read at once."""
    plan = plan_update(config.model, config.compute, batch, said, batch_shards=config.mesh.batch_shards)
    return replace(config.model, remat="block" if plan.remat else "none"), plan.chunk_items


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
        grads, metrics = rl_gradients(mesh, config, state.params, reference, batch, rollout, assessment, key)
        state, changed = apply_gradients(state, grads, optimizer, settings.ema_decay)
        return state, metrics | changed

    split, whole = users(mesh), replicated(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, steps))
    return (
        jax.jit(
            lambda params, reference, batch, rollout: assess(mesh, config, params, reference, batch, rollout),
            out_shardings=Assessment(split, split, split, whole),  # type: ignore[arg-type]
        ),
        jax.jit(update, out_shardings=(shardings, whole), donate_argnums=0),
    )
