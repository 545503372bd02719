"""Decoding as pure functions: start from prompts, decode some tokens, drop finished rows, collect the results.

All rows are at the same position t, so one uniform update per layer writes keys and values. Each wave writes to its own
short cache, because XLA for CPU copies the cache in every step. The keys and values of earlier waves are constants
during a wave; `merge` appends the keys and values of the finished wave to them. The loop ends as soon as every row has
stopped. Rows move between the lanes of one user only, so the user's prefix stays in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.forward import read_items, words_scores
from r2rank_jax.model.transformer import by_layer, extend, item_scores, scores, vocabulary_kernel
from r2rank_jax.rollout.sampling import sample_token
from r2rank_jax.types import Array, KeyValues, ListBatch, Params, Rationales


@struct.dataclass
class Rollout:
    """Rationales with their log-probabilities and scores under the policy that wrote them."""

    rationales: Rationales
    logp: Array  # float32 [U, N, G, T]   under the tempered distribution they were sampled from; 0 on padding
    scores: Array  # float32 [U, N, G]      of the head
    item_scores: Array  # float32 [U, N]    of the item head, 0 without it


@struct.dataclass
class PromptCache:
    """Keys and values of the prompts, and the PRNG keys of the rows; constant during a wave.

    Lanes are [A, B]: [N, G] at first, when G rows share the keys and values of their item; [W, 1] once finished rows
    have been dropped.
    """

    prefix: KeyValues
    suffix: KeyValues  # [U, KV, A, 1, ...]
    length: Array  # int32 [U, A]     true prefix + suffix tokens
    keys: Array | None  # PRNG [U, A, B]   None = greedy


@struct.dataclass
class DecodedRows:
    """The rationales decoded so far, whichever lanes they were decoded in."""

    tokens: Array  # int32 [U, N·G, T]
    logp: Array  # float32 [U, N·G, T]
    length: Array  # int32 [U, N·G]
    stopped: Array  # bool [U, N·G]
    last: Array  # [U, N·G, D]      hidden state at the last token
    item_scores: Array  # float32 [U, N]  of the item head


@struct.dataclass
class Lanes:
    """Rows that are being decoded."""

    t: Array  # int32 []         tokens decoded so far
    row: Array  # int32 [U, A, B]  which of the user's N·G rationales; N·G = an empty lane
    alive: Array  # bool [U, A, B]
    hidden: Array  # [U, A, B, D]     predicts the next token; constant once the row has stopped
    k: tuple[Array, ...]  # per layer [U, KV, A, B, H, C]   of earlier waves
    v: tuple[Array, ...]  # per layer [U, KV, A, B, C, H]
    new_k: tuple[Array, ...]  # per layer [U, KV, A, B, H, wave]   of the last wave
    new_v: tuple[Array, ...]  # per layer [U, KV, A, B, wave, H]
    decoded: DecodedRows


def start(
    config: ModelConfig,
    params: Params,
    batch: ListBatch,
    keys: Array | None,
    *,
    rationales: int,
    max_tokens: int,
    wave_tokens: int,
) -> tuple[PromptCache, Lanes]:
    """Read prefixes and items, and fork every item into its G rationales.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts; masked items are not decoded.
        keys: [U, N, G] from `row_keys`, or None for greedy decoding.
        rationales: G.
        max_tokens: T.
        wave_tokens: the most tokens that one `decode` writes.
    """
    context = read_items(config, params, batch)
    users, items, width = context.last_hidden.shape
    lanes, all_rows = (users, items, rationales), items * rationales
    heads = (users, config.kv_heads, items, rationales)
    hidden = jnp.broadcast_to(context.last_hidden[:, :, None], (*lanes, width))
    return (
        PromptCache(prefix=context.prefix, suffix=context.suffix, length=context.length, keys=keys),
        Lanes(
            t=jnp.zeros((), jnp.int32),
            row=jnp.broadcast_to(jnp.arange(all_rows, dtype=jnp.int32).reshape(lanes[1:]), lanes),
            alive=jnp.broadcast_to(batch.mask[:, :, None], lanes),
            hidden=hidden,
            k=tuple(jnp.zeros((*heads, config.head_size, 0), config.dtype) for _ in range(config.layers)),
            v=tuple(jnp.zeros((*heads, 0, config.head_size), config.dtype) for _ in range(config.layers)),
            new_k=tuple(jnp.zeros((*heads, config.head_size, wave_tokens), config.dtype) for _ in range(config.layers)),
            new_v=tuple(jnp.zeros((*heads, wave_tokens, config.head_size), config.dtype) for _ in range(config.layers)),
            decoded=DecodedRows(
                tokens=jnp.zeros((users, all_rows, max_tokens), jnp.int32),
                logp=jnp.zeros((users, all_rows, max_tokens), jnp.float32),
                length=jnp.zeros((users, all_rows), jnp.int32),
                stopped=jnp.full((users, all_rows), not max_tokens),  # an empty rationale is not truncated
                last=hidden.reshape(users, all_rows, width),
                item_scores=item_scores(params, context.last_hidden),
            ),
        ),
    )


@struct.dataclass
class _Wave:
    """The carry of the decoding loop."""

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
    prompts: PromptCache,
    lanes: Lanes,
    *,
    stop_token: int,
    temperature: float = 1.0,
) -> Lanes:
    """Decode a wave: as many tokens as its cache holds, or fewer if all rows stop or reach T earlier.

    Args:
        config: shape of the model.
        params: its parameters.
        prompts: from `start` or `compact`.
        lanes: from the same call; `merge` must have appended the previous wave.
        stop_token: ends a rationale. Its log-probability counts; tokens after it do not.
        temperature: divides the logits, also for the log-probabilities.
    """
    kernel = vocabulary_kernel(params).astype(config.dtype)
    params = params | {"layers": by_layer(params["layers"])}  # outside of the loop, so that it slices no layers
    shape, steps = lanes.alive.shape, lanes.new_v[0].shape[4]
    end = jnp.minimum(steps, lanes.decoded.tokens.shape[2] - lanes.t)
    context = _segments_before_wave(prompts, lanes)

    def step(wave: _Wave) -> _Wave:
        t = lanes.t + wave.i
        token, logp = _next_tokens(prompts, kernel, wave.hidden, t, temperature)
        token = jnp.where(wave.alive, token, 0)

        written = jnp.broadcast_to(jnp.arange(steps) <= wave.i, (*shape, steps))
        hidden, cache = extend(
            config,
            params,
            token[..., None],
            jnp.broadcast_to(prompts.length[:, :, None, None] + t, (*shape, 1)),
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

    wave = jax.lax.while_loop(lambda wave: (wave.i < end) & jnp.any(wave.alive), step, _empty_wave(lanes))
    return _record(lanes, wave)


def _segments_before_wave(prompts: PromptCache, lanes: Lanes) -> tuple[KeyValues, ...]:
    """Prefixes, suffixes, and the tokens of earlier waves if there are any."""
    past_tokens = lanes.v[0].shape[4]
    if not past_tokens:
        return prompts.prefix, prompts.suffix
    valid = jnp.broadcast_to(jnp.arange(past_tokens) < lanes.t, (*lanes.alive.shape, past_tokens))
    return prompts.prefix, prompts.suffix, KeyValues(k=lanes.k, v=lanes.v, valid=valid)


def _next_tokens(
    prompts: PromptCache, kernel: Array, hidden: Array, t: Array, temperature: float
) -> tuple[Array, Array]:
    """Choose the token at position t of every row: token int32 [U, A, B] and its log-probability float32 [U, A, B]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.matmul(flat, kernel.T, preferred_element_type=jnp.float32).reshape(*hidden.shape[:-1], -1)
    logits = logits / temperature
    if prompts.keys is None:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        token = sample_token(prompts.keys, logits, t)
    return token, jnp.take_along_axis(logits, token[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def _empty_wave(lanes: Lanes) -> _Wave:
    shape, steps = lanes.alive.shape, lanes.new_v[0].shape[4]
    return _Wave(
        i=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((steps, *shape), jnp.int32),
        logp=jnp.zeros((steps, *shape), jnp.float32),
        length=jnp.zeros(shape, jnp.int32),
        alive=lanes.alive,
        hidden=lanes.hidden,
        k=lanes.new_k,
        v=lanes.new_v,
    )


def _record(lanes: Lanes, wave: _Wave) -> Lanes:
    """Copy the tokens of a wave into the decoded rows."""
    users, flat = lanes.row.shape[0], lanes.row.reshape(lanes.row.shape[0], -1)
    user = jnp.arange(users)[:, None]
    rows = lambda x: x.reshape(users, flat.shape[1], *x.shape[3:])  # noqa: E731
    place = (user[..., None], flat[..., None], lanes.t + jnp.arange(wave.tokens.shape[0]))
    by_row = lambda x: rows(jnp.moveaxis(x, 0, -1))  # noqa: E731
    was_alive, is_alive, decoded = rows(lanes.alive), rows(wave.alive), lanes.decoded
    return replace(
        lanes,
        t=lanes.t + wave.i,
        alive=wave.alive,
        hidden=wave.hidden,
        new_k=wave.k,
        new_v=wave.v,
        decoded=DecodedRows(
            tokens=decoded.tokens.at[place].set(by_row(wave.tokens), mode="drop"),
            logp=decoded.logp.at[place].set(by_row(wave.logp), mode="drop"),
            length=decoded.length.at[user, flat].add(rows(wave.length), mode="drop"),
            stopped=decoded.stopped.at[user, flat].max(was_alive & ~is_alive, mode="drop"),
            last=decoded.last.at[user, flat].set(rows(wave.hidden), mode="drop"),
            item_scores=decoded.item_scores,
        ),
    )


def most_alive(lanes: Lanes) -> Array:
    """int32 []: the largest number of rows that a user still has to decode."""
    return jnp.max(jnp.sum(lanes.alive, axis=(1, 2), dtype=jnp.int32))


def compact(prompts: PromptCache, lanes: Lanes, width: int) -> tuple[PromptCache, Lanes]:
    """Keep `width` lanes per user: unfinished rows in their order, then empty lanes. Needs `most_alive` <= width."""
    users, items, forks = lanes.row.shape
    alive = lanes.alive.reshape(users, -1)
    lane = jnp.argsort(~alive, axis=1, stable=True)[:, :width]  # [U, W]
    kept = jnp.take_along_axis(alive, lane, axis=1)
    flat = lambda x: _take(x.reshape(users, items * forks, *x.shape[3:]), lane)[:, :, None]  # noqa: E731
    row = jnp.where(kept[..., None], flat(lanes.row), lanes.decoded.tokens.shape[1])

    def by_item(x: Array) -> Array:  # [U, A, ...] -> [U, W, ...]
        return _take(x, lane // forks)

    def by_lane(x: Array) -> Array:  # [U, KV, A, B, ...] -> [U, KV, W, 1, ...]
        merged = x.reshape(*x.shape[:2], items * forks, *x.shape[4:])
        return jnp.take_along_axis(merged, lane[:, None, :, None, None], axis=2)[:, :, :, None]

    def shared(x: Array) -> Array:  # [U, KV, A, 1, ...] -> [U, KV, W, 1, ...]
        return jnp.take_along_axis(x, (lane // forks)[:, None, :, None, None, None], axis=2)

    suffix = KeyValues(
        k=tuple(map(shared, prompts.suffix.k)),
        v=tuple(map(shared, prompts.suffix.v)),
        valid=by_item(prompts.suffix.valid),
    )
    keys = None if prompts.keys is None else flat(prompts.keys)
    return (
        replace(prompts, suffix=suffix, length=by_item(prompts.length), keys=keys),
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
    """Append the keys and values of the last wave to those of earlier waves.

    Args:
        lanes: after a wave that wrote all its tokens.
        past_tokens: length of the resulting cache, at least `lanes.t`.
    """
    rows, growth = [(0, 0)] * 4, (0, past_tokens - lanes.v[0].shape[4])
    offset = lanes.t - lanes.new_v[0].shape[4]

    def join(old: Array, new: Array, axis: int) -> Array:
        longer = jnp.pad(old, [*rows, (0, 0), growth] if axis == 5 else [*rows, growth, (0, 0)])
        return jax.lax.dynamic_update_slice_in_dim(longer, new, offset, axis)

    return replace(
        lanes,
        k=tuple(join(old, new, 5) for old, new in zip(lanes.k, lanes.new_k, strict=True)),
        v=tuple(join(old, new, 4) for old, new in zip(lanes.v, lanes.new_v, strict=True)),
    )


def finish(config: ModelConfig, params: Params, decoded: DecodedRows, *, items: int) -> Rollout:
    """The decoded rows as [U, N, G, ...], with their scores. Rows that have not stopped are truncated."""
    fold: Any = lambda x: x.reshape(x.shape[0], items, x.shape[1] // items, *x.shape[2:])  # noqa: E731
    rationales = Rationales(tokens=fold(decoded.tokens), length=fold(decoded.length), stopped=fold(decoded.stopped))
    if config.score_reads == "words":
        of_rows = words_scores(config, params, rationales)
    else:
        of_rows = fold(scores(params, decoded.last))
    return Rollout(
        rationales=rationales, logp=fold(decoded.logp), scores=of_rows, item_scores=decoded.item_scores
    )


def _take(x: Array, index: Array) -> Array:
    """x [U, A, ...] at index [U, W] -> [U, W, ...]; x may hold PRNG keys."""
    return jax.vmap(lambda a, i: a[i])(x, index)
