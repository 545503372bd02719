"""Parameters, floating point operations and cache bytes by formula.

docs/performance.md states the formulas for FLOPs and the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from r2rank_jax.config import ModelConfig, Trained


class BatchShape(NamedTuple):
    """Sizes of a batch of prompts and rationales without padding."""

    users: int  # U
    prefix: int  # P
    suffix: int  # S
    length: int  # T
    items: int  # N
    rationales: int  # G

    @property
    def rows(self) -> int:
        return self.users * self.items * self.rationales


def parameters(model: ModelConfig) -> int:
    """The number of parameters, including the heads."""
    heads = 2 * model.heads + 2 * model.kv_heads  # queries and outputs; keys and values
    layer = heads * model.head_size * model.width + 3 * model.width * model.mlp_width + 2 * model.width
    if model.attention_bias:
        layer += (model.heads + 2 * model.kv_heads) * model.head_size
    if model.qk_norm:
        layer += 2 * model.head_size
    layer += model.lora_rank * _adapted_axes(model)
    matrices = 1 if model.tied_embeddings else 2
    return model.layers * layer + matrices * model.vocabulary * model.width + (2 + model.critic) * model.width


def _adapted_axes(model: ModelConfig) -> int:
    """The number of adapter parameters of a layer per rank: inputs plus outputs of its seven matrices."""
    attention = 4 * model.width + (2 * model.heads + 2 * model.kv_heads) * model.head_size
    return attention + 3 * (model.width + model.mlp_width)


def forward_flops(model: ModelConfig, shape: BatchShape, *, shared: bool = True, logits: bool = True) -> float:
    """Floating point operations of one forward pass.

    Only matrix products count: 2 per weight and token, 4 · heads · head size per query-key pair and layer (each causal
    pair once), 2 · V · D per row of logits.

    Args:
        model: its shape.
        shape: sizes of the batch.
        shared: False = every rationale has its own copy of the prompt.
        logits: False = hidden states only.
    """
    attention = (2 * model.heads + 2 * model.kv_heads) * model.head_size * model.width
    weights = attention + 3 * model.width * model.mlp_width + model.lora_rank * _adapted_axes(model)
    per_token = 2.0 * model.layers * weights
    per_pair = 4.0 * model.layers * model.heads * model.head_size
    users, p, s, t, n, g = shape
    m = n * g
    if shared:
        tokens = p + n * s + m * t
        pairs = p * p / 2 + n * (s * p + s * s / 2) + m * (t * (p + s) + t * t / 2)
    else:
        tokens, pairs = m * (p + s + t), m * (p + s + t) ** 2 / 2
    if model.score_reads == "words":  # the second reading of each rationale
        tokens, pairs = tokens + m * t, pairs + m * t * t / 2
    of_logits = 2.0 * model.vocabulary * model.width * m * t if logits else 0.0
    return users * (per_token * tokens + per_pair * pairs + of_logits)


def update_flops(model: ModelConfig, shape: BatchShape, *, shared: bool = True, trained: Trained = "all") -> float:
    """Floating point operations of the forward and backward pass of one update, without recomputation.

    A backward pass costs as much as one forward pass for the gradients of activations and one for the gradients of
    matrices. A frozen backbone saves the second; training the head alone saves both.
    """
    return {"all": 3, "adapters": 2, "head": 1}[trained] * forward_flops(model, shape, shared=shared)


def cache_bytes(model: ModelConfig, tokens: int) -> int:
    """Bytes of the keys and values of some tokens in all layers, in the compute dtype."""
    return tokens * model.layers * 2 * model.kv_heads * model.head_size * jnp.dtype(model.dtype).itemsize


def decode_bytes(model: ModelConfig, shape: BatchShape) -> float:
    """Bytes that a rollout reads from memory: for each token, all weights and the keys and values of earlier tokens."""
    weights = jnp.dtype(model.dtype).itemsize * parameters(model)
    shared = shape.users * (shape.prefix + shape.items * shape.suffix)
    own = shape.rows * (shape.length - 1) / 2  # on average
    return shape.length * (weights + cache_bytes(model, 1) * (shared + own))
