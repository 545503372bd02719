"""Decoding as pure functions: start from prompts, decode some tokens, drop what has ended, read off the result.

Every row stands at the same t, so keys and values are written by one uniform update per layer. A wave writes to a cache
of its own, short enough for XLA to copy in every step, which on CPU it does; what earlier waves wrote is a constant
beside it, until `merge` joins the two. The loop ends as soon as every row has stopped. A user keeps its lanes: rows
move within a user only, so that the prefix beside them stays where it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.forward import read_items
from r2rank_jax.model.transformer import by_layer, extend, scores, vocabulary_kernel
from r2rank_jax.rollout.sampling import sample_token
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales


@struct.dataclass
class Rollout:
    """Rationales with what the policy that wrote them thought of them."""

    rationales: Rationales
    logp: Array  # float32 [U, N, G, T]   under the tempered distribution they were drawn from; 0 on padding
    scores: Array  # float32 [U, N, G]      the head, read at the last token


@struct.dataclass
class Before:
    """What stands before the rationales; constant while they are decoded.

    Lanes are [A, B]: [N, G] at first, when G rows share the keys of their item; [W, 1] once rows have been dropped.
    """

    prefix: KeyValues
    suffix: KeyValues  # [U, KV, A, 1, ...]
    length: Array  # int32 [U, A]     true prefix + suffix tokens
    keys: Array | None  # PRNG [U, A, B]   None: greedy


@struct.dataclass
class Said:
    """All that was said so far, wherever it was decoded."""

    tokens: Array  # int32 [U, N·G, T]
    logp: Array  # float32 [U, N·G, T]
    length: Array  # int32 [U, N·G]
    stopped: Array  # bool [U, N·G]
    last: Array  # [U, N·G, D]      the hidden state at the last token


@struct.dataclass
class Lanes:
    """Rows that are being decoded."""

    t: Array  # int32 []         tokens decoded so far
    row: Array  # int32 [U, A, B]  which of the user's N·G rationales; N·G = an empty lane
    alive: Array  # bool [U, A, B]
    hidden: Array  # [U, A, B, D]     predicts the next token; frozen once the row has ended
    k: tuple[Array, ...]  # per layer [U, KV, A, B, H, C]   of earlier waves
    v: tuple[Array, ...]  # per layer [U, KV, A, B, C, H]
    new_k: tuple[Array, ...]  # per layer [U, KV, A, B, H, wave]   of the last wave
    new_v: tuple[Array, ...]  # per layer [U, KV, A, B, wave, H]
    said: Said


def start(
    config: ModelConfig,
    params: Params,
    batch: ListBatch,
    keys: Array | None,
    *,
    rationales: int,
    max_tokens: int,
    wave_tokens: int,
) -> tuple[Before, Lanes]:
    """Read prefixes and items, and fork every item into its rationales.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts; masked items are not decoded.
        keys: [U, N, G] from `row_keys`, or None to take the most likely token each time.
        rationales: G.
        max_tokens: T.
        wave_tokens: that one `decode` writes at most.
    """
    context = read_items(config, params, batch)
    users, items, width = context.last_hidden.shape
    lanes, all_rows = (users, items, rationales), items * rationales
    heads = (users, config.kv_heads, items, rationales)
    hidden = jnp.broadcast_to(context.last_hidden[:, :, None], (*lanes, width))
    return (
        Before(prefix=context.prefix, suffix=context.suffix, length=context.length, keys=keys),
        Lanes(
            t=jnp.zeros((), jnp.int32),
            row=jnp.broadcast_to(jnp.arange(all_rows, dtype=jnp.int32).reshape(lanes[1:]), lanes),
            alive=jnp.broadcast_to(batch.mask[:, :, None], lanes),
            hidden=hidden,
            k=tuple(jnp.zeros((*heads, config.head_size, 0), config.dtype) for _ in range(config.layers)),
            v=tuple(jnp.zeros((*heads, 0, config.head_size), config.dtype) for _ in range(config.layers)),
            new_k=tuple(jnp.zeros((*heads, config.head_size, wave_tokens), config.dtype) for _ in range(config.layers)),
            new_v=tuple(jnp.zeros((*heads, wave_tokens, config.head_size), config.dtype) for _ in range(config.layers)),
            said=Said(
                tokens=jnp.zeros((users, all_rows, max_tokens), jnp.int32),
                logp=jnp.zeros((users, all_rows, max_tokens), jnp.float32),
                length=jnp.zeros((users, all_rows), jnp.int32),
                stopped=jnp.full((users, all_rows), not max_tokens),  # who is to say nothing is not cut off
                last=hidden.reshape(users, all_rows, width),
            ),
        ),
    )


@struct.dataclass
class _Wave:
    """The carry of the loop: what one step changes."""

    i: Array
    tokens: Array  # int32 [wave, U, A, B]
    logp: Array
    length: Array  # int32 [U, A, B]  tokens of this wave
    alive: Array
    hidden: Array
    k: tuple[Array, ...]
    v: tuple[Array, ...]


def decode(
    config: ModelConfig,
    params: Params,
    before: Before,
    lanes: Lanes,
    *,
    stop_token: int,
    temperature: float = 1.0,
) -> Lanes:
    """Decode a wave: as many tokens as its cache holds, fewer where all rows end sooner or T is reached.

    Args:
        config: shape of the model.
        params: its parameters.
        before: from `start` or `compact`.
        lanes: likewise; `merge` must have taken in the wave before.
        stop_token: its log-probability counts, nothing after it does.
        temperature: divides the logits, also those of the log-probabilities.
    """
    kernel = vocabulary_kernel(params).astype(config.dtype)
    params = params | {"layers": by_layer(params["layers"])}  # before the loop: layers are not cut out at every token
    shape = lanes.alive.shape
    steps, past_tokens = lanes.new_v[0].shape[4], lanes.v[0].shape[4]
    end = jnp.minimum(steps, lanes.said.tokens.shape[2] - lanes.t)
    context: tuple[KeyValues, ...] = (before.prefix, before.suffix)
    if past_tokens:
        valid = jnp.broadcast_to(jnp.arange(past_tokens) < lanes.t, (*shape, past_tokens))
        context += (KeyValues(k=lanes.k, v=lanes.v, valid=valid),)

    def step(wave: _Wave) -> _Wave:
        t = lanes.t + wave.i
        flat = wave.hidden.reshape(-1, wave.hidden.shape[-1])
        logits = jnp.matmul(flat, kernel.T, preferred_element_type=jnp.float32).reshape(*shape, -1) / temperature
        if before.keys is None:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            token = sample_token(before.keys, logits, t)
        logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(wave.alive, token, 0)

        written = jnp.broadcast_to(jnp.arange(steps) <= wave.i, (*shape, steps))
        hidden, cache = extend(
            config,
            params,
            token[..., None],
            jnp.broadcast_to(before.length[:, :, None, None] + t, (*shape, 1)),
            jnp.ones((*shape, 1), bool),
            context,
            (KeyValues(k=wave.k, v=wave.v, valid=written), wave.i),
        )
        return _Wave(
            i=wave.i + 1,
            tokens=wave.tokens.at[wave.i].set(token),
            logp=wave.logp.at[wave.i].set(jnp.where(wave.alive, logp, 0.0)),
            length=wave.length + wave.alive,
            alive=wave.alive & (token != stop_token),
            hidden=jnp.where(wave.alive[..., None], hidden[..., 0, :], wave.hidden),
            k=cache.k,
            v=cache.v,
        )

    done = jax.lax.while_loop(
        lambda wave: (wave.i < end) & jnp.any(wave.alive),
        step,
        _Wave(
            i=jnp.zeros((), jnp.int32),
            tokens=jnp.zeros((steps, *shape), jnp.int32),
            logp=jnp.zeros((steps, *shape), jnp.float32),
            length=jnp.zeros(shape, jnp.int32),
            alive=lanes.alive,
            hidden=lanes.hidden,
            k=lanes.new_k,
            v=lanes.new_v,
        ),
    )
    return _file(lanes, done)


def _file(lanes: Lanes, wave: _Wave) -> Lanes:
    """Put what a wave said where it belongs among all that was said."""
    users, flat = lanes.row.shape[0], lanes.row.reshape(lanes.row.shape[0], -1)
    user = jnp.arange(users)[:, None]
    rows = lambda x: x.reshape(users, flat.shape[1], *x.shape[3:])  # noqa: E731
    place = (user[..., None], flat[..., None], lanes.t + jnp.arange(wave.tokens.shape[0]))
    words = lambda x: rows(jnp.moveaxis(x, 0, -1))  # noqa: E731
    was, is_alive, said = rows(lanes.alive), rows(wave.alive), lanes.said
    return replace(
        lanes,
        t=lanes.t + wave.i,
        alive=wave.alive,
        hidden=wave.hidden,
        new_k=wave.k,
        new_v=wave.v,
        said=Said(
            tokens=said.tokens.at[place].set(words(wave.tokens), mode="drop"),
            logp=said.logp.at[place].set(words(wave.logp), mode="drop"),
            length=said.length.at[user, flat].add(rows(wave.length), mode="drop"),
            stopped=said.stopped.at[user, flat].max(was & ~is_alive, mode="drop"),
            last=said.last.at[user, flat].set(rows(wave.hidden), mode="drop"),
        ),
    )


def most_alive(lanes: Lanes) -> Array:
    """int32 []: living rows of the user who has most of them."""
    return jnp.max(jnp.sum(lanes.alive, axis=(1, 2), dtype=jnp.int32))


def compact(before: Before, lanes: Lanes, width: int) -> tuple[Before, Lanes]:
    """Keep `width` lanes per user: living rows in their order, then empty lanes. Needs `most_alive` <= width."""
    users, items, forks = lanes.row.shape
    alive = lanes.alive.reshape(users, -1)
    lane = jnp.argsort(~alive, axis=1, stable=True)[:, :width]  # [U, W]
    kept = jnp.take_along_axis(alive, lane, axis=1)
    flat = lambda x: _take(x.reshape(users, items * forks, *x.shape[3:]), lane)[:, :, None]  # noqa: E731
    row = jnp.where(kept[..., None], flat(lanes.row), lanes.said.tokens.shape[1])

    def by_item(x: Array) -> Array:  # [U, A, ...] -> [U, W, ...]
        return _take(x, lane // forks)

    def by_lane(x: Array) -> Array:  # [U, KV, A, B, ...] -> [U, KV, W, 1, ...]
        merged = x.reshape(*x.shape[:2], items * forks, *x.shape[4:])
        return jnp.take_along_axis(merged, lane[:, None, :, None, None], axis=2)[:, :, :, None]

    def shared(x: Array) -> Array:  # [U, KV, A, 1, ...] -> [U, KV, W, 1, ...]
        return jnp.take_along_axis(x, (lane // forks)[:, None, :, None, None, None], axis=2)

    suffix = KeyValues(
        k=tuple(map(shared, before.suffix.k)), v=tuple(map(shared, before.suffix.v)), valid=by_item(before.suffix.valid)
    )
    keys = None if before.keys is None else flat(before.keys)
    return (
        replace(before, suffix=suffix, length=by_item(before.length), keys=keys),
        replace(
            lanes,
            row=row,
            alive=kept[..., None],
            hidden=flat(lanes.hidden),
            k=tuple(map(by_lane, lanes.k)),
            v=tuple(map(by_lane, lanes.v)),
            new_k=tuple(map(by_lane, lanes.new_k)),
            new_v=tuple(map(by_lane, lanes.new_v)),
        ),
    )


def merge(lanes: Lanes, past_tokens: int) -> Lanes:
    """Put the keys and values of the last wave behind those of the waves before it.

    Args:
        lanes: after a wave that wrote all its tokens.
        past_tokens: room to make for them, at least `lanes.t`.
    """
    rows, more = [(0, 0)] * 4, (0, past_tokens - lanes.v[0].shape[4])
    at = lanes.t - lanes.new_v[0].shape[4]

    def join(old: Array, new: Array, axis: int) -> Array:
        room = jnp.pad(old, [*rows, (0, 0), more] if axis == 5 else [*rows, more, (0, 0)])
        return jax.lax.dynamic_update_slice_in_dim(room, new, at, axis)

    return replace(
        lanes,
        k=tuple(join(old, new, 5) for old, new in zip(lanes.k, lanes.new_k, strict=True)),
        v=tuple(join(old, new, 4) for old, new in zip(lanes.v, lanes.new_v, strict=True)),
    )


def finish(params: Params, said: Said, *, items: int) -> Rollout:
    """All that was said, as [U, N, G, ...]; rows that are still alive were cut off."""
    fold: Any = lambda x: x.reshape(x.shape[0], items, x.shape[1] // items, *x.shape[2:])  # noqa: E731
    rationales = Rationales(tokens=fold(said.tokens), length=fold(said.length), stopped=fold(said.stopped))
    return Rollout(rationales=rationales, logp=fold(said.logp), scores=fold(scores(params, said.last)))


def _take(x: Array, index: Array) -> Array:
    """x [U, A, ...] at index [U, W] -> [U, W, ...]; also of PRNG keys."""
    return jax.vmap(lambda a, i: a[i])(x, index)
