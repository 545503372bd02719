"""The rollout: waves of decoding on the device, and compaction between them.

Rationales differ in length, so after a while most lanes would decode nothing. After each wave the host reads one
number, the largest number of unfinished rows of any user. If they fit into fewer lanes they move there, and the cache
grows to the length that the next wave needs. Widths and cache lengths come in few sizes, so that few programs are
compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from r2rank_jax import stopping
from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.rollout.decoding import (
    DecodedRows,
    Lanes,
    PromptCache,
    Rollout,
    compact,
    decode,
    finish,
    merge,
    most_alive,
    start,
)
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.sharding import on_lanes, users, weights_for_decoding
from r2rank_jax.types import Array, ListBatch, Params

# Batches narrower than this do not decode faster.
NARROWEST = 8


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
    """Write `rationales` rationales per item in one wave: a pure function that is jitted as a whole.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts; masked items are not decoded.
        key: PRNG key of this run and step, or None for greedy decoding.
        rationales: G.
        max_tokens: T. A row without a stop token by then is truncated (`stopped` is False). With 0, rationales are
            empty and the head reads the last token of each item.
        stop_token: ends a rationale. Its log-probability counts; tokens after it do not.
        temperature: of the sampling and of the returned log-probabilities.
    """
    keys = None if key is None else row_keys(key, batch.user, batch.position, batch.items, rationales)
    sizes = {"rationales": rationales, "max_tokens": max_tokens, "wave_tokens": max_tokens}
    prompts, lanes = start(config, params, batch, keys, **sizes)
    if max_tokens:
        lanes = decode(config, params, prompts, lanes, stop_token=stop_token, temperature=temperature)
    return finish(config, params, lanes.decoded, items=batch.items.shape[1])


def widths(rows: int) -> list[int]:
    """Numbers of lanes per user that programs are compiled for: halved repeatedly, down to `NARROWEST`."""
    sizes = [rows]
    while sizes[-1] >= 2 * NARROWEST:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def past_sizes(max_tokens: int, wave_tokens: int) -> list[int]:
    """Cache lengths that programs are compiled for: 0, one wave, then doubled, up to all waves but the last."""
    most = max(max_tokens - 1, 0) // wave_tokens * wave_tokens
    sizes = [0, *([wave_tokens] if most else [])]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


class Generator:
    """`generate` in waves, for one mesh and one set of settings. Its rationales equal those of `generate`.

    Args:
        mesh: users are split over its devices.
        config: shape of the model.
        rationales: G.
        max_tokens: T.
        stop_token: ends a rationale.
        temperature: of the sampling.
        wave_tokens: tokens that are decoded between two compactions.
    """

    def __init__(
        self,
        mesh: Mesh,
        config: ModelConfig,
        *,
        rationales: int,
        max_tokens: int,
        stop_token: int,
        temperature: float = 1.0,
        wave_tokens: int,
    ):
        self._mesh = mesh
        self._wave_tokens = max(1, min(wave_tokens, max_tokens))
        self._max_tokens = max_tokens
        self._pasts = past_sizes(max_tokens, self._wave_tokens)
        self._weights = weights_for_decoding(mesh, config)
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._results: dict[Any, Any] = {}

        # The compiled functions, each for few shapes and static sizes.
        def begin(params: Params, batch: ListBatch, keys: Array | None) -> tuple[PromptCache, Lanes, Array]:
            sizes = {"rationales": rationales, "max_tokens": max_tokens, "wave_tokens": self._wave_tokens}
            prompts, lanes = start(config, params, batch, keys, **sizes)
            return prompts, lanes, most_alive(lanes)

        def wave(params: Params, prompts: PromptCache, lanes: Lanes) -> tuple[Lanes, Array]:
            settings: dict[str, Any] = {"stop_token": stop_token, "temperature": temperature}
            lanes = decode(config, params, prompts, lanes, **settings)
            return lanes, most_alive(lanes)

        def end(params: Params, decoded: DecodedRows, *, items: int) -> Rollout:
            return finish(config, params, decoded, items=items)

        self._begin, self._wave, self._end = begin, wave, end
        self._row_keys = jax.jit(
            lambda key, batch: row_keys(key, batch.user, batch.position, batch.items, rationales),
            out_shardings=users(mesh),
        )

    def __call__(self, params: Params, batch: ListBatch, key: Array | None, keys: Array | None = None) -> Rollout:
        """Write rationales for every item.

        Args:
            params: the policy.
            batch: prompts.
            key: PRNG key of this run and step.
            keys: [U, N, G], used instead of those that `row_keys` folds out of `key`. Without `key` and `keys`,
                decoding is greedy.

        Raises:
            Stopped: between two waves, if this job was told to stop.
        """
        if keys is None and key is not None:
            keys = self._row_keys(key, batch)
        # Collectives of programs that are queued together can deadlock many CPU devices on few cores.
        weights = jax.block_until_ready(self._weights(params))
        prompts, lanes, alive = self._run(self._begin, weights, batch, keys)
        for past in range(0, self._max_tokens, self._wave_tokens):
            live = int(alive)
            if not live:
                break
            stopping.check()
            if past:
                prompts, lanes = self._fit(prompts, lanes, live, past)
            lanes, alive = self._run(self._wave, weights, prompts, lanes)
        return self._run(self._end, weights, lanes.decoded, items=batch.items.shape[1])

    def _fit(self, prompts: PromptCache, lanes: Lanes, live: int, past: int) -> tuple[PromptCache, Lanes]:
        """Move unfinished rows to the smallest sufficient number of lanes, and append the last wave to the cache.

        Args:
            prompts: of the present lanes.
            lanes: after a wave.
            live: the largest number of unfinished rows of any user.
            past: tokens decoded so far.
        """
        for width in widths(lanes.decoded.length.shape[1]):
            if live <= width < _width(lanes):  # one halving at a time, which needs fewer programs
                prompts, lanes = self._run(compact, prompts, lanes, width=width)
        return prompts, self._run(merge, lanes, past_tokens=self._past_size(past))

    def _past_size(self, past: int) -> int:
        """The smallest compiled cache length for `past` tokens."""
        return min(size for size in self._pasts if size >= past)

    def warm_up(self, params: Params, batch: ListBatch, *, sampled: bool) -> int:
        """Compile all programs that batches of this shape can need, in parallel.

        Args:
            params: the policy, or its abstract leaves.
            batch: prompts, or their abstract leaves.
            sampled: False = greedy.

        Returns:
            The number of compiled programs.
        """
        weights, keys = self._abstract_inputs(params, batch, sampled=sampled)
        requests: dict[Any, tuple[Any, ...]] = {}

        def request(f: Callable[..., Any], *args: Any, **static: int) -> Any:
            requests[_name(f, args, static)] = (f, args, static)
            return self._abstract(f, args, static)

        prompts, lanes, _ = request(self._begin, weights, batch, keys)
        request(self._end, weights, lanes.decoded, items=batch.items.shape[1])
        sizes = widths(_width(lanes))
        ready = {sizes[0]: (prompts, lanes)}
        for past in range(0, self._max_tokens, self._wave_tokens):
            for state in ready.values():
                request(self._wave, weights, *state)
            if past + self._wave_tokens < self._max_tokens:
                for width, narrower in itertools.pairwise(sizes):
                    fewer = request(compact, *ready[width], width=narrower)
                    ready.setdefault(narrower, fewer)
                size = self._past_size(past + self._wave_tokens)
                ready = {width: (b, request(merge, x, past_tokens=size)) for width, (b, x) in ready.items()}
        with ThreadPoolExecutor() as pool:  # XLA compiles outside of Python's lock
            list(pool.map(lambda each: self._program(*each), requests.values()))
        return len(self._programs)

    def lower_largest(self, params: Params, batch: ListBatch) -> dict[str, jax.stages.Lowered]:
        """Lower the programs of a sampled rollout that need most memory: no row stops before T.

        Args:
            params: abstract leaves of the policy.
            batch: abstract leaves of the prompts.

        Returns:
            "rollout start", "rollout finish", and at full width the last "rollout merge" and "rollout wave", if any.
        """
        weights, keys = self._abstract_inputs(params, batch, sampled=True)
        prompts, lanes, _ = self._abstract(self._begin, (weights, batch, keys), {})
        programs = {"rollout start": self._lower(self._begin, (weights, batch, keys), {})}
        for past in self._pasts[1:]:
            programs["rollout merge"] = self._lower(merge, (lanes,), {"past_tokens": past})
            lanes = self._abstract(merge, (lanes,), {"past_tokens": past})
        if self._max_tokens:
            programs["rollout wave"] = self._lower(self._wave, (weights, prompts, lanes), {})
        return programs | {
            "rollout finish": self._lower(self._end, (weights, lanes.decoded), {"items": batch.items.shape[1]})
        }

    def _abstract_inputs(self, params: Params, batch: ListBatch, *, sampled: bool) -> tuple[Params, Any]:
        """Weights and keys of a rollout; without values if `params` is abstract."""
        weights = jax.eval_shape(self._weights, params) if _is_abstract(params) else self._weights(params)
        if not sampled:
            return weights, None
        keys = jax.eval_shape(self._row_keys, jax.random.key(0), batch)
        return weights, jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=users(self._mesh))

    def _run(self, f: Callable[..., Any], *args: Any, **static: int) -> Any:
        return self._program(f, args, static)(*args)

    def _program(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> jax.stages.Compiled:
        """`f` compiled for these shapes, from the cache if possible."""
        name = _name(f, args, static)
        if name not in self._programs:
            self._programs[name] = self._lower(f, args, static).compile()
        return self._programs[name]

    def _lower(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> jax.stages.Lowered:
        out = jax.tree.map(lambda x: x.sharding, self._abstract(f, args, static))
        # The caches of a wave are reused for the next one and are not read anywhere else.
        donated = 2 if f is self._wave else ()
        return jax.jit(partial(f, **static), out_shardings=out, donate_argnums=donated).lower(*args)

    def _abstract(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> Any:
        """Shapes, dtypes and shardings of the results of `f`."""
        name = _name(f, args, static)
        if name not in self._results:  # tracing a deep model takes long
            self._results[name] = on_lanes(self._mesh, jax.eval_shape(partial(f, **static), *args))
        return self._results[name]


def make_rollout(mesh: Mesh, config: RunConfig, stop_token: int) -> Generator:
    """The rollout of RL: G sampled rationales per item, split over users like the batch."""
    return Generator(
        mesh,
        config.model,
        rationales=config.rl.rationales,
        max_tokens=config.data.rationale_tokens,
        stop_token=stop_token,
        temperature=config.rl.temperature,
        wave_tokens=config.compute.wave_tokens,
    )


def _name(f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> Any:
    return (f, *static.items(), *((x.shape, x.dtype) for x in jax.tree.leaves(args)))


def _width(lanes: Lanes) -> int:
    return lanes.row.shape[1] * lanes.row.shape[2]


def _is_abstract(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
