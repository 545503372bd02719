"""One step of supervised fine-tuning: the policy learns the teacher's rationales, and the head learns to score them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.forward import Judgement, judge_and_sum, real_tokens
from r2rank_jax.model.logprobs import TokenLoss
from r2rank_jax.sharding import replicated
from r2rank_jax.train.chunks import Losses, Rows, gradients
from r2rank_jax.train.context import update_context
from r2rank_jax.train.losses import listwise_softmax
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales

SFTStep = Callable[[TrainState, ListBatch, Rationales], tuple[TrainState, dict[str, Array]]]


def sft_gradients(
    mesh: Mesh, config: RunConfig, params: Params, batch: ListBatch, rationales: Rationales
) -> tuple[Params, dict[str, Array]]:
    """Gradient of rationale cross-entropy + head_weight · listwise softmax of the head.

    Returns:
        The gradient; the loss and its two parts, in nats per token and nats per list.
    """
    context = update_context(mesh, config, batch, rationales)
    tokens = jnp.maximum(jnp.sum(real_tokens(batch, rationales)), 1).astype(jnp.float32)
    rows = Rows(batch, rationales)

    def of_tokens(p: Params, tokens: Array, prefix: KeyValues | None, chunk: Rows) -> tuple[Array, Judgement]:
        loss = TokenLoss(lambda statistics, _, tokens: -statistics.logp / tokens, (), tokens)
        return judge_and_sum(loss, context.model, p, chunk.batch, chunk.rationales, prefix=prefix)

    def of_scores(_: Array, scores: Array, rows: Rows) -> Array:
        return config.sft.head_weight * head_loss(scores, rows.batch)

    grads, judged = gradients(context, Losses(of_tokens, of_scores), params, tokens, rows)
    parts = {"rationale_loss": -jnp.sum(judged.logp) / tokens, "head_loss": head_loss(judged.scores, batch)}
    return grads, {"loss": parts["rationale_loss"] + config.sft.head_weight * parts["head_loss"], **parts}


def head_loss(scores: Array, batch: ListBatch) -> Array:
    """Listwise softmax of scores [U, N, G], in nats per list."""
    return listwise_softmax(scores.swapaxes(1, 2), batch.labels[:, None], batch.mask[:, None]).mean()


def make_sft_step(mesh: Mesh, config: RunConfig) -> SFTStep:
    """The jitted step. It donates the train state that it is given."""
    settings = config.sft.optimizer
    optimizer = make_optimizer(settings, config.sft.steps)

    def step(state: TrainState, batch: ListBatch, rationales: Rationales) -> tuple[TrainState, dict[str, Array]]:
        grads, metrics = sft_gradients(mesh, config, state.params, batch, rationales)
        state, update = apply_gradients(state, grads, optimizer, settings.ema_decay, config.trained)
        return state, metrics | update

    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, config.sft.steps, config.trained)
    )
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
