"""Writing rationales: prefix shared, against the same rows as independent prompts, and against `transformers`.

    python benchmarks/bench_rollout.py                                    about 4 minutes on 2 cores
    python benchmarks/bench_rollout.py --shape qwen2.5-1.5b --users 8     one accelerator

No rationale stops early, so that all decode the same number of tokens. Both of our own paths sample with the same keys;
that they say the same is checked, and so are the log-probabilities against those the trainer computes. Prints a table
and then one JSON line; ratios above 1 mean that ours is faster.
"""

from __future__ import annotations

import dataclasses
import json
import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import peers
from workload import Line, Shape, flops, independent, make, matmul_rate, parse, print_table, run_config, seconds

from r2rank_jax.model.forward import judge
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.rollout.sampling import row_keys
from r2rank_jax.sharding import make_mesh
from r2rank_jax.types import ListBatch, Params


def generator(shape: Shape, rationales: int) -> Generator:
    config = run_config(shape)
    return Generator(
        make_mesh(config.mesh),
        shape.model,
        rationales=rationales,
        max_tokens=shape.length,
        stop_token=shape.model.vocabulary,  # never drawn
        wave_tokens=config.compute.wave_tokens,
    )


def prefill_seconds(shape: Shape, rounds: int) -> float:
    """Reading prefixes and items, and forking: a rollout of one token less its decoding."""
    params, batch, _ = make(shape)
    write = generator(dataclasses.replace(shape, length=1), shape.rationales)
    keys = row_keys(jax.random.key(0), batch.user, batch.items, shape.rationales)
    return median(seconds(lambda: write._run(write._begin, write._weights(params), batch, keys), rounds))


def decode_seconds(shape: Shape, params: Params, batch: ListBatch, rounds: int) -> float:
    """A rollout less its prefill."""
    write = generator(shape, shape.rationales)
    whole = median(seconds(lambda: write(params, batch, jax.random.key(0)), rounds))
    return whole - prefill_seconds(shape, rounds)


def main() -> None:
    shape, rounds, with_peers = parse(__doc__)
    params, batch, said = make(shape)
    counted, rate, tokens = flops(shape), matmul_rate(shape.model.dtype), shape.rows * shape.length
    keys = row_keys(jax.random.key(0), batch.user, batch.items, shape.rationales)

    write = generator(shape, shape.rationales)
    start = time.perf_counter()
    programs = write.warm_up(params, batch, sampled=True)
    compile_s = time.perf_counter() - start
    took = seconds(lambda: write(params, batch, None, keys), rounds)
    ours = write(params, batch, None, keys)
    lines = [Line("shared prefix", median(took), compile_s, tokens, counted["rollout"])]

    alone, _ = independent(batch, said)
    write_alone = generator(shape, 1)
    apart = seconds(lambda: write_alone(params, alone, None, keys.reshape(-1, 1, 1)), rounds)
    theirs = write_alone(params, alone, None, keys.reshape(-1, 1, 1))
    lines.append(Line("independent prompts", median(apart), None, tokens, counted["rollout_independent"]))
    same = np.mean(np.asarray(ours.rationales.tokens).ravel() == np.asarray(theirs.rationales.tokens).ravel())
    judged = jax.jit(lambda p: judge(shape.model, p, batch, ours.rationales).logp)(params)
    found = {
        "rollout_vs_independent": median(apart) / median(took),
        "same_tokens": float(same),
        "max_logp_gap": float(jnp.max(jnp.abs(judged - ours.logp))),
        "compilations": programs,
    }

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

    # Cost is flat where it should be.
    double_g = dataclasses.replace(shape, rationales=2 * shape.rationales)
    found["prefill_at_double_g"] = prefill_seconds(double_g, rounds) / prefill_seconds(shape, rounds)
    long = dataclasses.replace(shape, prefix=2 * shape.prefix)
    long_batch = make(long)[1]
    found["decode_at_double_history"] = decode_seconds(long, params, long_batch, rounds) / decode_seconds(
        shape, params, batch, rounds
    )

    print_table(lines, rate)
    print(json.dumps({k: float(f"{v:.4g}") for k, v in found.items()} | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
