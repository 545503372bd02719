"""The critic: a head at an item's last token, before any reasoning, that learns which items are relevant.

It is trained beside the policy, on the labels of further lists that need no rationales and so cost a quarter of a list
with them. Rankings of the policy never use its scores; evaluation ranks by them alone, as the control that says
nothing. It helps the reasoning in two ways: the hidden states that a rationale starts from know more, and RL can judge
rationales by the relevance that the SFT policy's critic expects instead of the sampled labels, which are few and noisy
(as an actor-critic does; R. Sutton, A. Barto, "Reinforcement Learning", ch. 13).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.model.forward import read_items
from r2rank_jax.model.transformer import critic_scores, in_compute_dtype
from r2rank_jax.ranking.metrics import has_relevant
from r2rank_jax.rollout.scoring import Scorer
from r2rank_jax.sharding import gather, sum_over_users
from r2rank_jax.train.objectives import head_loss_of
from r2rank_jax.train.trainable import join_params, split_params
from r2rank_jax.types import Array, ListBatch, Params


def critic_gradients(mesh: Mesh, config: RunConfig, params: Params, lists: ListBatch) -> tuple[Params, Array]:
    """Gradient of the critic's mean loss, `sft.head_loss`, over the lists that have a relevant item; and the loss.

    Args:
        mesh: lists are split over its users.
        config: of the run.
        params: float32.
        lists: prompts and labels, without rationales.

    Returns:
        Gradients like `params`, with None for frozen parameters, and float32 [].
    """
    trainable, frozen = (in_compute_dtype(config.model, part) for part in split_params(config.trained, params))
    counted = has_relevant(lists.labels, lists.mask)
    total = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32)
    of_list = head_loss_of(config.sft)

    def on_device(shared: tuple[Params, Params, Array], own: ListBatch) -> tuple[tuple[Params, Array], tuple[()]]:
        trainable, frozen, total = shared

        def loss(trainable: Params) -> Array:
            params = join_params(trainable, frozen)
            scores = critic_scores(params, read_items(config.model, params, own).last_hidden)
            losses = of_list(scores, own.labels, own.mask)
            return jnp.sum(jnp.where(has_relevant(own.labels, own.mask), losses, 0.0)) / total

        value, grads = jax.value_and_grad(loss)(trainable)
        return (jax.tree.map(lambda x: x.astype(jnp.float32), grads), value), ()

    (grads, value), _ = sum_over_users(mesh, on_device)((trainable, frozen, total), lists)
    return grads, value


def make_critic(mesh: Mesh, config: RunConfig) -> Scorer:
    """A scorer by the critic alone: one score per item, and a rationale without tokens."""

    @jax.jit
    def score(params: Params, batch: ListBatch) -> Array:
        return critic_scores(params, read_items(config.model, params, batch).last_hidden)[..., None]

    def scores(params: Params, batch: ListBatch) -> tuple[np.ndarray, np.ndarray]:
        own = gather(mesh, score(params, batch))  # [U, N, 1]
        return own, np.zeros((*own.shape, 0), np.int32)

    return scores


def expected_labels(scores: Array, labels: Array, mask: Array, *, share: float) -> Array:
    """Labels that a critic expects, mixed with those that were sampled.

    A list's gains 2^label − 1 are known to sum to some G. The critic's softmax says how they are spread over the items;
    no item is expected to have more than the largest gain of its list.

    Args:
        scores: float32 [U, N] of the critic.
        labels: float32 [U, N].
        mask: bool [U, N].
        share: of the critic, from 0 (sampled labels) to 1.

    Returns:
        float32 [U, N], labels whose gains are the mixture; 0 at masked items. No gradient flows through them.
    """
    gains = jnp.where(mask, jnp.exp2(labels) - 1, 0.0)
    chances = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1, where=mask)
    expected = chances * jnp.sum(gains, axis=-1, keepdims=True)
    expected = jnp.minimum(expected, jnp.max(gains, axis=-1, keepdims=True))
    mixed = (1 - share) * gains + share * expected
    return jax.lax.stop_gradient(jnp.where(mask, jnp.log2(1 + mixed), 0.0))
