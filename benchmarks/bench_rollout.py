"""Rollouts with shared prefixes, compared with independent prompts and with `transformers`.

    python benchmarks/bench_rollout.py                                    about 4 minutes on 2 cores
    python benchmarks/bench_rollout.py --shape qwen2.5-1.5b --users 8     one accelerator

No rationale stops early, so that all decode the same number of tokens. Our two paths sample with the same keys, and the
benchmark reports the share of equal tokens and the gap between the log-probabilities of rollout and trainer. Prints a
table, then one JSON line; ratios above 1 mean that ours is faster. `compaction` is the speedup from moving live rows
together when rationales differ in length. The `..._at_double_...` figures are times relative to the shape itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import peers
from workload import (
    Line,
    Shape,
    flops,
    generator,
    independent,
    make,
    matmul_rate,
    parse,
    peak_gib,
    prefill_and_decode_seconds,
    print_table,
    report,
    seconds,
    turn,
)

from r2rank_jax.model.forward import judge
from r2rank_jax.rollout.decoding import Lanes, PromptCache, Rollout, merge
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.types import Array, ListBatch, Params


class FixedLanesGenerator(Generator):
    """A rollout that never moves live rows to fewer lanes."""

    def _fit(self, prompts: PromptCache, lanes: Lanes, live: int, past: int) -> tuple[PromptCache, Lanes]:
        return prompts, self._run(merge, lanes, past_tokens=self._past_size(past))


def ending(shape: Shape, params: Params) -> tuple[Shape, Params]:
    """The same model, but token 0 has probability 4 / T at every step. One embedding column is so large that the final
    norm makes it constant, and only the output row of token 0 reads it."""
    large, row = 100.0, jnp.log(shape.model.vocabulary / (shape.length / 4 - 1)) / shape.model.width**0.5
    head = params["embedding"].at[:, 0].set(0.0).at[0].set(0.0).at[0, 0].set(row)
    params = params | {"embedding": params["embedding"].at[:, 0].set(large), "lm_head": head}
    return dataclasses.replace(shape, model=dataclasses.replace(shape.model, tied_embeddings=False)), params


def compaction(shape: Shape, params: Params, batch: ListBatch, keys: Array, rounds: int) -> tuple[list[Line], float]:
    """Rationales of different lengths, a quarter of T on average, with and without moving live rows together."""
    shape, params = ending(shape, params)
    lines = []
    for name, kind in (
        ("a quarter as long, live rows moved together", Generator),
        ("  not moved", FixedLanesGenerator),
    ):
        write = generator(shape, shape.rationales, kind, stop_token=0)
        elapsed_s = median(seconds(lambda: write(params, batch, None, keys), rounds))  # noqa: B023
        length = write(params, batch, None, keys).rationales.length
        lines.append(Line(name, elapsed_s, None, int(length.sum())))
    return lines, lines[1].seconds / lines[0].seconds


def logp_gaps(shape: Shape, params: Params, batch: ListBatch, rollout: Rollout) -> np.ndarray:
    """Absolute differences between the log-probabilities of trainer and rollout, computed one user at a time."""
    judged = jax.jit(lambda params, batch, rationales: judge(shape.model, params, batch, rationales).logp)
    gaps = []
    for user in range(shape.users):
        one = jax.tree.map(lambda x: x[user : user + 1], (batch, rollout.rationales, rollout.logp))  # noqa: B023
        gaps.append(np.abs(np.asarray(judged(params, *one[:2]) - one[2])))
    return np.concatenate(gaps)


def main() -> None:
    shape, rounds, with_peers = parse(__doc__)
    params, batch, rationales = make(shape)
    keys = row_keys(jax.random.key(0), batch.user, batch.position, batch.items, shape.rationales)

    write, write_alone = generator(shape, shape.rationales), generator(shape, 1)
    alone, _ = independent(batch, rationales)
    rows = int(os.environ.get("INDEPENDENT_ROWS", shape.rows))  # a number that fits into memory
    part, part_keys = jax.tree.map(lambda x: x[:rows], alone), keys.reshape(-1, 1, 1)[:rows]
    with turn(alone=False):
        start = time.perf_counter()
        programs = write.warm_up(params, batch, sampled=True)
        compile_s = time.perf_counter() - start
        write_alone.warm_up(params, part, sampled=True)
        report("compile_s", compile_s)
    exclusive_turn = turn(alone=True)
    exclusive_turn.__enter__()
    counted, rate, tokens = flops(shape), matmul_rate(shape.model.dtype), shape.rows * shape.length
    ours_s = median(seconds(lambda: write(params, batch, None, keys), rounds))
    ours = write(params, batch, None, keys)
    lines = [Line("shared prefix", ours_s, compile_s, tokens, counted["rollout"])]
    report("shared prefix, seconds", ours_s)
    report("tokens a second", tokens / ours_s)
    report("peak_gib", peak_gib())

    independent_s = median(seconds(lambda: write_alone(params, part, None, part_keys), rounds)) * shape.rows / rows
    theirs = np.asarray(write_alone(params, part, None, part_keys).rationales.tokens).ravel()
    name = "independent prompts" + (f", {rows} of {shape.rows} at a time" if rows < shape.rows else "")
    lines.append(Line(name, independent_s, None, tokens, counted["rollout_independent"]))
    report("rollout_vs_independent", independent_s / ours_s)
    same = np.mean(np.asarray(ours.rationales.tokens).ravel()[: theirs.size] == theirs)
    gaps = logp_gaps(shape, params, batch, ours)
    figures = {
        "rollout_vs_independent": independent_s / ours_s,
        "same_tokens": float(same),
        "max_logp_gap": float(np.max(gaps)),
        "mean_logp_gap": float(np.mean(gaps)),
        "compilations": programs,
        "peak_gib": peak_gib(),
    }
    for name, value in figures.items():
        report(name, value)

    missing = "skipped" if not with_peers else peers.peers_available("torch")
    if missing is None:
        import torch

        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        model = peers.to_torch(shape.model, params, shape.model.dtype, device)
        prompts = np.concatenate([alone.prefix, alone.suffix[:, 0]], axis=1)
        theirs_s = median(peers.generate_seconds(model, prompts, shape.length, min(rounds, 3)))
        lines.append(Line("transformers.generate", theirs_s, None, tokens, counted["rollout_independent"]))
        figures["rollout_vs_transformers"] = theirs_s / ours_s
    else:
        print(f"transformers: {missing}")

    if os.environ.get("QUICK"):
        print_table(lines, rate)
        print(json.dumps({k: float(f"{v:.4g}") for k, v in figures.items()} | {"device": jax.devices()[0].device_kind}))
        return
    ended, figures["compaction"] = compaction(shape, params, batch, keys, rounds)
    lines += ended

    # The time of prefill should not depend on G, nor that of decoding on the length of the history.
    double_g = dataclasses.replace(shape, rationales=2 * shape.rationales)
    double_p = dataclasses.replace(shape, prefix=2 * shape.prefix)
    prefill, decode = prefill_and_decode_seconds(shape, rounds)
    figures["prefill_at_double_g"] = prefill_and_decode_seconds(double_g, rounds)[0] / prefill
    figures["decode_at_double_history"] = prefill_and_decode_seconds(double_p, rounds)[1] / decode

    print_table(lines, rate)
    print(json.dumps({k: float(f"{v:.4g}") for k, v in figures.items()} | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
