"""The rollout: waves of decoding on the device, and between them a look at which rows still live.

Rationales differ in length, so soon most lanes would decode nothing. After each wave the host reads one number, the
living rows of the user who has most of them; if they fit into fewer lanes, they move there, and the cache grows to what
the next wave needs. Widths and cache lengths come in few sizes, so that few programs are compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.model.adapters import without_adapters
from r2rank_jax.rollout.decoding import Before, Lanes, Rollout, compact, decode, finish, merge, most_alive, start
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.sharding import on_lanes, users, weights_for_decoding
from r2rank_jax.types import Array, ListBatch, Params

# Narrower batches than this do not decode faster.
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
    """Write `rationales` rationales per item in one go: a pure function, to be jitted whole.

    Args:
        config: shape of the model.
        params: its parameters.
        batch: prompts; masked items are not decoded.
        key: PRNG key of this run and step, or None for the most likely token each time.
        rationales: G.
        max_tokens: T; a row without a stop token by then is truncated (`stopped` False). 0: nothing is said, and the
            head reads the last token of each item.
        stop_token: its log-probability counts, nothing after it does.
        temperature: of the sampling, and of the log-probabilities returned.
    """
    keys = None if key is None else row_keys(key, batch.user, batch.items, rationales)
    sizes = {"rationales": rationales, "max_tokens": max_tokens, "wave_tokens": max_tokens}
    before, lanes = start(config, params, batch, keys, **sizes)
    if max_tokens:
        lanes = decode(config, params, before, lanes, stop_token=stop_token, temperature=temperature)
    return finish(params, lanes.said, items=batch.items.shape[1])


def widths(rows: int) -> list[int]:
    """Lanes per user that programs are compiled for, widest first: halves, down to `NARROWEST`."""
    found = [rows]
    while found[-1] >= 2 * NARROWEST:
        found.append(-(-found[-1] // 2))
    return found


def past_sizes(max_tokens: int, wave_tokens: int) -> list[int]:
    """Tokens of earlier waves that programs are compiled for: none, one wave, doubled up to all but the last wave."""
    most = max(max_tokens - 1, 0) // wave_tokens * wave_tokens
    found = [0, *([wave_tokens] if most else [])]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


class Generator:
    """`generate` in waves, for one mesh and one set of settings; it says the same.

    Args:
        mesh: users are split over it.
        config: shape of the model.
        rationales: G.
        max_tokens: T.
        stop_token: ends a rationale.
        temperature: of the sampling.
        wave_tokens: tokens between two looks at what has ended.
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
        config = without_adapters(config)  # those are merged into the weights for decoding
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._results: dict[Any, Any] = {}

        # The functions that are compiled, each for few shapes and static sizes.
        def begin(params: Params, batch: ListBatch, keys: Array | None) -> tuple[Before, Lanes, Array]:
            sizes = {"rationales": rationales, "max_tokens": max_tokens, "wave_tokens": self._wave_tokens}
            before, lanes = start(config, params, batch, keys, **sizes)
            return before, lanes, most_alive(lanes)

        def wave(params: Params, before: Before, lanes: Lanes) -> tuple[Lanes, Array]:
            settings: dict[str, Any] = {"stop_token": stop_token, "temperature": temperature}
            lanes = decode(config, params, before, lanes, **settings)
            return lanes, most_alive(lanes)

        self._begin, self._wave = begin, wave
        self._row_keys = jax.jit(
            lambda key, batch: row_keys(key, batch.user, batch.items, rationales), out_shardings=users(mesh)
        )

    def __call__(self, params: Params, batch: ListBatch, key: Array | None, keys: Array | None = None) -> Rollout:
        """Write rationales for every item.

        Args:
            params: the policy.
            batch: prompts.
            key: PRNG key of this run and step.
            keys: [U, N, G], instead of those that `row_keys` folds out of `key`. Without either the most likely token
                is taken each time.
        """
        if keys is None and key is not None:
            keys = self._row_keys(key, batch)
        # Programs whose collectives wait side by side can keep many CPU devices on few cores from ever meeting.
        weights = jax.block_until_ready(self._weights(params))
        before, lanes, living = self._run(self._begin, weights, batch, keys)
        for said in range(0, self._max_tokens, self._wave_tokens):
            live = int(living)
            if not live:
                break
            if said:
                before, lanes = self._fit(before, lanes, live, said)
            lanes, living = self._run(self._wave, weights, before, lanes)
        return self._run(finish, weights, lanes.said, items=batch.items.shape[1])

    def _fit(self, before: Before, lanes: Lanes, live: int, said: int) -> tuple[Before, Lanes]:
        """Move the living rows to as few lanes as hold them, and make room for what they said."""
        for width in widths(lanes.said.length.shape[1]):
            if live <= width < _width(lanes):  # step by step: fewer programs than from every width to every other
                before, lanes = self._run(compact, before, lanes, width=width)
        return before, self._run(merge, lanes, past_tokens=self._room(said))

    def _room(self, said: int) -> int:
        """Slots for what earlier waves said, in one of few sizes."""
        return min(size for size in self._pasts if size >= said)

    def warm_up(self, params: Params, batch: ListBatch, *, sampled: bool) -> int:
        """Compile everything that batches of this shape can come to need, side by side.

        Args:
            params: the policy, or its abstract leaves.
            batch: prompts, or their abstract leaves.
            sampled: False = greedy.

        Returns:
            The number of programs that are ready.
        """
        weights, keys = self._abstract_inputs(params, batch, sampled=sampled)
        wanted: dict[Any, tuple[Any, ...]] = {}

        def want(f: Callable[..., Any], *args: Any, **static: int) -> Any:
            wanted[_name(f, args, static)] = (f, args, static)
            return self._abstract(f, args, static)

        before, lanes, _ = want(self._begin, weights, batch, keys)
        want(finish, weights, lanes.said, items=batch.items.shape[1])
        sizes = widths(_width(lanes))
        ready = {sizes[0]: (before, lanes)}
        for said in range(0, self._max_tokens, self._wave_tokens):
            for here in ready.values():
                want(self._wave, weights, *here)
            if said + self._wave_tokens < self._max_tokens:
                for width, narrower in itertools.pairwise(sizes):
                    fewer = want(compact, *ready[width], width=narrower)
                    ready.setdefault(narrower, fewer)
                room = self._room(said + self._wave_tokens)
                ready = {width: (b, want(merge, x, past_tokens=room)) for width, (b, x) in ready.items()}
        with ThreadPoolExecutor() as pool:  # XLA compiles outside of Python's lock
            list(pool.map(lambda each: self._program(*each), wanted.values()))
        return len(self._programs)

    def lower_largest(self, params: Params, batch: ListBatch) -> dict[str, jax.stages.Lowered]:
        """The programs of a sampled rollout that need most memory: all rows live to the end.

        Args:
            params: abstract leaves of the policy.
            batch: abstract leaves of the prompts.

        Returns:
            The start, the last merge and the last wave at full width (as far as there are any), and the end.
        """
        weights, keys = self._abstract_inputs(params, batch, sampled=True)
        before, lanes, _ = self._abstract(self._begin, (weights, batch, keys), {})
        found = {"rollout start": self._lower(self._begin, (weights, batch, keys), {})}
        for past in self._pasts[1:]:
            found["rollout merge"] = self._lower(merge, (lanes,), {"past_tokens": past})
            lanes = self._abstract(merge, (lanes,), {"past_tokens": past})
        if self._max_tokens:
            found["rollout wave"] = self._lower(self._wave, (weights, before, lanes), {})
        return found | {"rollout finish": self._lower(finish, (weights, lanes.said), {"items": batch.items.shape[1]})}

    def _abstract_inputs(self, params: Params, batch: ListBatch, *, sampled: bool) -> tuple[Params, Any]:
        """Weights and keys of a rollout without their values, if `params` has none."""
        weights = jax.eval_shape(self._weights, params) if _is_abstract(params) else self._weights(params)
        if not sampled:
            return weights, None
        keys = jax.eval_shape(self._row_keys, jax.random.key(0), batch)
        return weights, jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=users(self._mesh))

    def _run(self, f: Callable[..., Any], *args: Any, **static: int) -> Any:
        return self._program(f, args, static)(*args)

    def _program(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> jax.stages.Compiled:
        """`f` compiled for these shapes, now or before."""
        name = _name(f, args, static)
        if name not in self._programs:
            self._programs[name] = self._lower(f, args, static).compile()
        return self._programs[name]

    def _lower(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> jax.stages.Lowered:
        out = jax.tree.map(lambda x: x.sharding, self._abstract(f, args, static))
        # A wave's caches become the next ones; nobody else looks at them.
        donated = 2 if f is self._wave else ()
        return jax.jit(partial(f, **static), out_shardings=out, donate_argnums=donated).lower(*args)

    def _abstract(self, f: Callable[..., Any], args: tuple[Any, ...], static: dict[str, int]) -> Any:
        """Shapes, types and shardings of what `f` returns."""
        name = _name(f, args, static)
        if name not in self._results:  # a deep model takes long to trace
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
