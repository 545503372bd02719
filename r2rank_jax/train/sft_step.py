"""One step of supervised fine-tuning: the policy learns the teacher's rationales, and the head learns to score them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.forward import Judgement, judge_and_sum, real_tokens
from r2rank_jax.model.logprobs import TokenLoss
from r2rank_jax.ranking.losses import Loss
from r2rank_jax.ranking.metrics import has_relevant
from r2rank_jax.sharding import replicated
from r2rank_jax.train.advantages.critic import critic_gradients
from r2rank_jax.train.chunks import Losses, Rows, gradients
from r2rank_jax.train.context import update_context
from r2rank_jax.train.objectives import head_loss_of
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales, WeightedSum

# state, batch, rationales, lists of the critic or None -> state, metrics
SFTStep = Callable[..., tuple[TrainState, dict[str, Array]]]


def sft_gradients(
    mesh: Mesh,
    config: RunConfig,
    params: Params,
    batch: ListBatch,
    rationales: Rationales,
    key: Array | None = None,
) -> tuple[Params, dict[str, Array]]:
    """Gradient of rationale cross-entropy + head_weight · loss of the head.

    Args:
        mesh: rows are split over its users.
        config: `sft.head_loss` names the loss of the scores.
        params: float32.
        batch: prompts and labels.
        rationales: the teacher's, one per item.
        key: for losses that involve chance; without one, equal labels keep their order in `list_mle`.

    Returns:
        The gradient; the loss and its two parts, in nats per token and nats per list.
    """
    context = update_context(mesh, config, batch, rationales)
    tokens = jnp.maximum(jnp.sum(real_tokens(batch, rationales)), 1).astype(jnp.float32)
    rows = Rows(batch, rationales)

    of_list = head_loss_of(config.sft)

    def of_tokens(p: Params, shared: Any, prefix: KeyValues | None, chunk: Rows) -> tuple[Array, Judgement]:
        tokens, _ = shared
        loss = TokenLoss(lambda statistics, _, tokens: -statistics.logp / tokens, (), tokens)
        return judge_and_sum(loss, context.model, p, chunk.batch, chunk.rationales, prefix=prefix)

    def of_scores(shared: Any, scores: Array, rows: Rows) -> Array:
        return config.sft.head_weight * head_loss(of_list, scores, rows.batch, shared[1])

    grads, judged = gradients(context, Losses(of_tokens, of_scores), params, (tokens, key), rows)
    parts = {
        "rationale_loss": -jnp.sum(judged.logp) / tokens,
        "head_loss": head_loss(of_list, judged.scores, batch, key),
    }
    return grads, {"loss": parts["rationale_loss"] + config.sft.head_weight * parts["head_loss"], **parts}


def head_loss(of_list: Loss, scores: Array, batch: ListBatch, key: Array | None) -> Array:
    """Mean loss of scores [U, N, G] over the lists that have a relevant item."""
    labels, mask = batch.labels[:, None], batch.mask[:, None]
    losses = of_list(scores.swapaxes(1, 2), labels, mask, key=key)  # [U, G]
    counted = jnp.broadcast_to(has_relevant(labels, mask), losses.shape)
    total = jnp.sum(jnp.where(counted, losses, 0.0))
    return WeightedSum(total=total, weight=jnp.sum(counted).astype(jnp.float32)).mean()


def make_sft_step(mesh: Mesh, config: RunConfig) -> SFTStep:
    """The jitted step. It donates the train state that it is given; `lists` train the critic."""
    settings = config.sft.optimizer
    optimizer = make_optimizer(settings, config.sft.steps)

    def step(
        state: TrainState, batch: ListBatch, rationales: Rationales, lists: ListBatch | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        grads, metrics = sft_gradients(mesh, config, state.params, batch, rationales, state.key())
        if lists is not None:
            of_critic, metrics["critic_loss"] = critic_gradients(mesh, config, state.params, lists)
            grads = jax.tree.map(jnp.add, grads, of_critic)
        state, update = apply_gradients(state, grads, optimizer, settings.ema_decay, config.trained)
        return state, metrics | update

    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, config.sft.steps, config.trained)
    )
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
