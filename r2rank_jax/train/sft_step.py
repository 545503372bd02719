"""One step of supervised fine-tuning: say what the teacher said, and score what was said."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.forward import judge, padding_mask
from r2rank_jax.sharding import replicated
from r2rank_jax.train.losses import listwise_softmax, rationale_cross_entropy
from r2rank_jax.train.state import TrainState, abstract_state, apply_gradients, make_optimizer
from r2rank_jax.types import Array, ListBatch, Params, Rationales

SFTStep = Callable[[TrainState, ListBatch, Rationales], tuple[TrainState, dict[str, Array]]]


def sft_loss(
    config: RunConfig, params: Params, batch: ListBatch, rationales: Rationales
) -> tuple[Array, dict[str, Array]]:
    """rationale cross-entropy + head_weight · listwise softmax of the head.

    Returns:
        The loss and its two parts, in nats per token and nats per list.
    """
    judged = judge(config.model, params, batch, rationales)
    real = padding_mask(rationales.length, rationales.tokens.shape[-1]) & batch.mask[:, :, None, None]
    rationale_loss = rationale_cross_entropy(judged.logp, real).mean()
    lists = judged.scores.swapaxes(1, 2)  # [U, G, N]
    head_loss = listwise_softmax(lists, batch.labels[:, None], batch.mask[:, None]).mean()
    loss = rationale_loss + config.sft.head_weight * head_loss
    return loss, {"loss": loss, "rationale_loss": rationale_loss, "head_loss": head_loss}


def make_sft_step(mesh: Mesh, config: RunConfig) -> SFTStep:
    """The jitted step; it donates the state that it is given."""
    settings = config.sft.optimizer
    optimizer = make_optimizer(settings, config.sft.steps)

    def step(state: TrainState, batch: ListBatch, rationales: Rationales) -> tuple[TrainState, dict[str, Array]]:
        gradient = jax.grad(lambda p: sft_loss(config, p, batch, rationales), has_aux=True)
        grads, metrics = gradient(state.params)
        state, update = apply_gradients(state, grads, optimizer, settings.ema_decay)
        return state, metrics | update

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(mesh, config.model, settings, config.sft.steps))
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
