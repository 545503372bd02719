"""Rationales for every item of a batch of users: prefix once per user, suffix once per item, then decode all rows.

Every row stands at the same t, so the cache is written by one uniform update per layer; it lives in the carry of a
`while_loop`, which XLA updates in place, and the loop ends as soon as every row has stopped.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.model.forward import ItemContext, read_items
from r2rank_jax.model.transformer import extend, scores, vocabulary_kernel
from r2rank_jax.rollout.sampling import row_keys, sample_token
from r2rank_jax.sharding import users
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales


@struct.dataclass
class Rollout:
    """Rationales with what the policy that wrote them thought of them."""

    rationales: Rationales
    logp: Array  # float32 [U, N, G, T]   under the tempered distribution they were drawn from; 0 on padding
    scores: Array  # float32 [U, N, G]      the head, read at the last token


@struct.dataclass
class _Decoding:
    t: Array
    tokens: Array
    logp: Array
    length: Array
    alive: Array
    hidden: Array  # [U, N, G, D]  predicts the next token; frozen once the row has ended
    k: tuple[Array, ...]
    v: tuple[Array, ...]


def generate(
    config: ModelConfig,
    params: Params,
    batch: ListBatch,
    key: Array | None,
    *,
    rationales: int,
    max_tokens: int,
    stop_token: int,
    temperature: float = 1.0,
) -> Rollout:
    """Write `rationales` rationales per item, sampled with `key`, or greedily where `key` is None.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts; masked items are not decoded.
        key: PRNG key of this run and step, or None for the most likely token each time.
        rationales: G.
        max_tokens: T; a row without a stop token by then is truncated (`stopped` False).
        stop_token: its log-probability counts, nothing after it does.
        temperature: of the sampling, and of the log-probabilities returned.
    """
    context = read_items(config, params, batch)
    keys = None if key is None else row_keys(key, batch.user, batch.items, rationales)
    state = _start(config, context, batch.mask, rationales, max_tokens)

    def step(state: _Decoding) -> _Decoding:
        logits = jnp.einsum(
            "ungd,vd->ungv",
            state.hidden,
            vocabulary_kernel(params).astype(state.hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        logits = logits / temperature
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32) if keys is None else sample_token(keys, logits, state.t)
        logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(state.alive, token, 0)
        hidden, k, v = _feed(config, params, context, state, token)
        return _Decoding(
            t=state.t + 1,
            tokens=state.tokens.at[..., state.t].set(token),
            logp=state.logp.at[..., state.t].set(jnp.where(state.alive, logp, 0.0)),
            length=state.length + state.alive,
            alive=state.alive & (token != stop_token),
            hidden=jnp.where(state.alive[..., None], hidden, state.hidden),
            k=k,
            v=v,
        )

    end = jax.lax.while_loop(lambda s: (s.t < max_tokens) & jnp.any(s.alive), step, state)
    stopped = batch.mask[:, :, None] & ~end.alive
    spoken = Rationales(tokens=end.tokens, length=end.length, stopped=stopped)
    return Rollout(rationales=spoken, logp=end.logp, scores=scores(params, end.hidden))


def make_rollout(mesh: Mesh, config: RunConfig, stop_token: int) -> Callable[[Params, ListBatch, Array], Rollout]:
    """The jitted rollout of RL: G sampled rationales per item, split over users like the batch."""

    def rollout(params: Params, batch: ListBatch, key: Array) -> Rollout:
        return generate(
            config.model,
            params,
            batch,
            key,
            rationales=config.rl.rationales,
            max_tokens=config.data.rationale_tokens,
            stop_token=stop_token,
            temperature=config.rl.temperature,
        )

    return jax.jit(rollout, out_shardings=users(mesh))


def _start(config: ModelConfig, context: ItemContext, mask: Array, rationales: int, max_tokens: int) -> _Decoding:
    batch, items, width = context.last_hidden.shape
    rows = (batch, items, rationales)
    cache = (batch, config.kv_heads, items, rationales, max_tokens, config.head_size)
    return _Decoding(
        t=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((*rows, max_tokens), jnp.int32),
        logp=jnp.zeros((*rows, max_tokens), jnp.float32),
        length=jnp.zeros(rows, jnp.int32),
        alive=jnp.broadcast_to(mask[:, :, None], rows),
        hidden=jnp.broadcast_to(context.last_hidden[:, :, None], (*rows, width)),
        k=tuple(jnp.zeros(cache, config.dtype) for _ in range(config.layers)),
        v=tuple(jnp.zeros(cache, config.dtype) for _ in range(config.layers)),
    )


def _feed(
    config: ModelConfig, params: Params, context: ItemContext, state: _Decoding, token: Array
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Read one token per row; its keys and values go to slot t of the cache."""
    max_tokens = state.tokens.shape[-1]
    written = jnp.broadcast_to(jnp.arange(max_tokens) < state.t, state.tokens.shape)
    cache = KeyValues(k=state.k, v=state.v, valid=written)
    positions = jnp.broadcast_to(context.length[:, :, None, None] + state.t, (*token.shape, 1))
    hidden, new = extend(
        config,
        params,
        token[..., None],
        positions,
        jnp.ones((*token.shape, 1), bool),
        (context.prefix, context.suffix, cache),
    )
    slot = (0, 0, 0, 0, state.t, 0)
    k = tuple(jax.lax.dynamic_update_slice(old, x, slot) for old, x in zip(state.k, new.k, strict=True))
    v = tuple(jax.lax.dynamic_update_slice(old, x, slot) for old, x in zip(state.v, new.v, strict=True))
    return hidden[..., 0, :], k, v
