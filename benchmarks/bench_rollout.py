"""Writing rationales: prefix shared, against the same rows as independent prompts, and against `transformers`.

    python benchmarks/bench_rollout.py                                    about 4 minutes on 2 cores
    python benchmarks/bench_rollout.py --shape qwen2.5-1.5b --users 8     one accelerator

No rationale stops early, so that all decode the same number of tokens. Both of our own paths sample with the same keys;
that they say the same is checked, and so are the log-probabilities against those the trainer computes. Prints a table
and then one JSON line; ratios above 1 mean that ours is faster. `compaction` is what moving living rows together is
worth where rationales are of all lengths; the two `..._at_double_...` are times over those of the shape itself.
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


class Wide(Generator):
    """A rollout that never moves rows to fewer lanes."""

    def _fit(self, prompts: PromptCache, lanes: Lanes, live: int, past: int) -> tuple[PromptCache, Lanes]:
        return prompts, self._run(merge, lanes, past_tokens=self._past_size(past))


def ending(shape: Shape, params: Params) -> tuple[Shape, Params]:
    """The same model, but token 0, at every step, with probability 4 / T: one embedding column is so large that the
    final norm makes a constant of it, and only that token's output row reads it."""
    large, row = 100.0, jnp.log(shape.model.vocabulary / (shape.length / 4 - 1)) / shape.model.width**0.5
    head = params["embedding"].at[:, 0].set(0.0).at[0].set(0.0).at[0, 0].set(row)
    params = params | {"embedding": params["embedding"].at[:, 0].set(large), "lm_head": head}
    return dataclasses.replace(shape, model=dataclasses.replace(shape.model, tied_embeddings=False)), params


def compaction(shape: Shape, params: Params, batch: ListBatch, keys: Array, rounds: int) -> tuple[list[Line], float]:
    """Rationales of all lengths, a quarter of T on average: with and without moving those that live together."""
    shape, params = ending(shape, params)
    lines = []
    for name, kind in (("a quarter as long, living rows moved together", Generator), ("  left where they are", Wide)):
        write = generator(shape, shape.rationales, kind, stop_token=0)
        took = median(seconds(lambda: write(params, batch, None, keys), rounds))  # noqa: B023
        length = write(params, batch, None, keys).rationales.length
        lines.append(Line(name, took, None, int(length.sum())))
    return lines, lines[1].seconds / lines[0].seconds


def logp_gaps(shape: Shape, params: Params, batch: ListBatch, rollout: Rollout) -> np.ndarray:
    """How far the trainer's log-probabilities are from the rollout's, token by token; one user at a time."""
    judged = jax.jit(lambda params, batch, rationales: judge(shape.model, params, batch, rationales).logp)
    gaps = []
    for user in range(shape.users):
        one = jax.tree.map(lambda x: x[user : user + 1], (batch, rollout.rationales, rollout.logp))  # noqa: B023
        gaps.append(np.abs(np.asarray(judged(params, *one[:2]) - one[2])))
    return np.concatenate(gaps)


def main() -> None:
    shape, rounds, with_peers = parse(__doc__)
    params, batch, rationales = make(shape)
    keys = row_keys(jax.random.key(0), batch.user, batch.items, shape.rationales)

    write, write_alone = generator(shape, shape.rationales), generator(shape, 1)
    alone, _ = independent(batch, rationales)
    rows = int(os.environ.get("INDEPENDENT_ROWS", shape.rows))  # as many as fit into memory
    part, part_keys = jax.tree.map(lambda x: x[:rows], alone), keys.reshape(-1, 1, 1)[:rows]
    with turn(alone=False):
        start = time.perf_counter()
        programs = write.warm_up(params, batch, sampled=True)
        compile_s = time.perf_counter() - start
        write_alone.warm_up(params, part, sampled=True)
        report("compile_s", compile_s)
    turn_taken = turn(alone=True)
    turn_taken.__enter__()
    counted, rate, tokens = flops(shape), matmul_rate(shape.model.dtype), shape.rows * shape.length
    took = seconds(lambda: write(params, batch, None, keys), rounds)
    ours = write(params, batch, None, keys)
    lines = [Line("shared prefix", median(took), compile_s, tokens, counted["rollout"])]
    report("shared prefix, seconds", median(took))
    report("tokens a second", tokens / median(took))
    report("peak_gib", peak_gib())

    apart = median(seconds(lambda: write_alone(params, part, None, part_keys), rounds)) * shape.rows / rows
    theirs = np.asarray(write_alone(params, part, None, part_keys).rationales.tokens).ravel()
    name = "independent prompts" + (f", {rows} of {shape.rows} at a time" if rows < shape.rows else "")
    lines.append(Line(name, apart, None, tokens, counted["rollout_independent"]))
    report("rollout_vs_independent", apart / median(took))
    same = np.mean(np.asarray(ours.rationales.tokens).ravel()[: theirs.size] == theirs)
    gaps = logp_gaps(shape, params, batch, ours)
    found = {
        "rollout_vs_independent": apart / median(took),
        "same_tokens": float(same),
        "max_logp_gap": float(np.max(gaps)),
        "mean_logp_gap": float(np.mean(gaps)),
        "compilations": programs,
        "peak_gib": peak_gib(),
    }
    for figure, value in found.items():
        report(figure, value)

    missing = "left out" if not with_peers else peers.peers_available("torch")
    if missing is None:
        import torch

        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        model = peers.to_torch(shape.model, params, shape.model.dtype, device)
        prompts = np.concatenate([alone.prefix, alone.suffix[:, 0]], axis=1)
        theirs_s = median(peers.generate_seconds(model, prompts, shape.length, min(rounds, 3)))
        lines.append(Line("transformers.generate", theirs_s, None, tokens, counted["rollout_independent"]))
        found["rollout_vs_transformers"] = theirs_s / median(took)
    else:
        print(f"transformers: {missing}")

    if os.environ.get("QUICK"):
        print_table(lines, rate)
        print(json.dumps({k: float(f"{v:.4g}") for k, v in found.items()} | {"device": jax.devices()[0].device_kind}))
        return
    ended, found["compaction"] = compaction(shape, params, batch, keys, rounds)
    lines += ended

    # Cost is flat where it should be.
    double_g = dataclasses.replace(shape, rationales=2 * shape.rationales)
    double_p = dataclasses.replace(shape, prefix=2 * shape.prefix)
    prefill, decode = prefill_and_decode_seconds(shape, rounds)
    found["prefill_at_double_g"] = prefill_and_decode_seconds(double_g, rounds)[0] / prefill
    found["decode_at_double_history"] = prefill_and_decode_seconds(double_p, rounds)[1] / decode

    print_table(lines, rate)
    print(json.dumps({k: float(f"{v:.4g}") for k, v in found.items()} | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
