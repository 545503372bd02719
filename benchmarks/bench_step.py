"""A whole step of reinforcement learning (rollout, assessment, update), compared with TRL's `GRPOTrainer`.

    python benchmarks/bench_step.py                                    about 4 minutes on 2 cores
    python benchmarks/bench_step.py --shape qwen2.5-1.5b --users 2     one accelerator

Both sample the same number of completions with the same weights, keep a reference policy and take one AdamW step. TRL
reads every prompt independently; ours shares the prefix between the items of a user. Prints a table, then one JSON
line.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
from jax.sharding import Mesh
from kernel_times import kernel_times, options, print_kernels
from workload import (
    Line,
    Shape,
    flops,
    make,
    matmul_rate,
    parse,
    peak_gib,
    print_table,
    report,
    run_config,
    turn,
)

from r2rank_jax.config import RunConfig
from r2rank_jax.plan.programs import abstract_rollout
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.sharding import abstract_lists, abstract_params, make_mesh, replicated
from r2rank_jax.train.rl_step import make_rl_steps
from r2rank_jax.train.state import abstract_state, fresh_state, start_from
from r2rank_jax.types import ListBatch


def main() -> None:
    shape, rounds, with_peers = parse(__doc__)
    params, batch, _ = make(shape)
    config = run_config(shape)
    mesh = make_mesh(config.mesh)
    params = jax.device_put(params, replicated(mesh))  # as in a train state; otherwise the second step compiles again
    state = start_from(fresh_state(mesh, config.model, config.rl.optimizer, config.rl.steps, 0), params)
    reference = jax.tree.map(jnp.copy, params)
    with turn(alone=False):
        start = time.perf_counter()
        write = make_rollout(mesh, config, shape.model.vocabulary)  # a stop token that is never drawn
        with ThreadPoolExecutor() as pool:
            rollout_ready = pool.submit(write.warm_up, params, batch, sampled=True)
            assess, update = pool.map(lambda lowered: lowered.compile(), lowered_steps(mesh, config))
            rollout_ready.result()
        compile_s = time.perf_counter() - start
        report("compile_s", compile_s)
    with turn(alone=True):
        measure(
            shape, rounds, with_peers, config, (write, assess, update), (state, reference, params, batch), compile_s
        )


def lowered_steps(mesh: Mesh, config: RunConfig) -> list[jax.stages.Lowered]:
    """Assessment and update, traced."""
    state = abstract_state(mesh, config.model, config.rl.optimizer, config.rl.steps, config.trained)
    batch, reference = abstract_lists(mesh, config, config.rl.batch_users), abstract_params(mesh, config.model)
    rollout, assessment = abstract_rollout(mesh, config)
    assess, update = make_rl_steps(mesh, config)
    return [
        assess.lower(state.params, reference, batch, rollout),  # type: ignore[attr-defined]
        update.lower(state, reference, batch, rollout, assessment),  # type: ignore[attr-defined]
    ]


def measure(
    shape: Shape,
    rounds: int,
    with_peers: bool,
    config: RunConfig,
    programs: tuple[Any, Any, Any],
    values: tuple[Any, Any, Any, ListBatch],
    compile_s: float,
) -> None:
    """Time whole steps, then print."""
    write, assess, update = programs
    state, reference, params, batch = values
    rate, counted = matmul_rate(shape.model.dtype), flops(shape)
    step_times: list[list[float]] = []  # of each step: rollout, assessment, update
    gap = 0.0
    for step in range(rounds + 1):
        times = [time.perf_counter()]
        rollout = jax.block_until_ready(write(state.params, batch, jax.random.key(step)))
        times.append(time.perf_counter())
        assessment = jax.block_until_ready(assess(state.params, reference, batch, rollout))
        times.append(time.perf_counter())
        state, metrics = jax.block_until_ready(update(state, reference, batch, rollout, assessment))
        times.append(time.perf_counter())
        gap = float(np.maximum(gap, metrics["logp_gap"]))  # keeps a NaN
        step_times.append([b - a for a, b in itertools.pairwise(times)])
        print("seconds:", *(f"{seconds:.3f}" for seconds in step_times[-1]), flush=True)
    profile = os.environ.get("PROFILE")  # a folder for the profile of one more step
    if profile:
        with jax.profiler.trace(profile, profiler_options=options()):
            rollout = write(state.params, batch, jax.random.key(rounds + 1))
            assessment = assess(state.params, reference, batch, rollout)
            state, metrics = jax.block_until_ready(update(state, reference, batch, rollout, assessment))
        print_kernels(kernel_times(Path(profile)))
    tokens = shape.rows * shape.length
    step_times.pop(0)  # the first step also allocates
    parts = [median(part) for part in zip(*step_times)]
    whole = median(sum(step) for step in step_times)
    report("step_s", whole)
    report("peak_gib", peak_gib())
    names = ("  rollout", "  assess", "  update")
    # The assessment computes no logits of the reference. The update does, in addition to those of the policy.
    costs = (counted["rollout"], counted["rollout"] - counted["logits"], counted["update"] + counted["logits"])
    lines = [Line("step", whole, compile_s, tokens, sum(costs))]
    lines += [Line(n, p, None, tokens, c) for n, p, c in zip(names, parts, costs)]
    figures = {"step_s": whole, "max_logp_gap": gap, "peak_gib": peak_gib()}

    missing = "skipped" if not with_peers else peers.peers_available("trl")
    if missing is None:
        import torch

        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        model = peers.to_torch(shape.model, params, shape.model.dtype, device)
        prompts = np.concatenate([np.repeat(batch.prefix, shape.items, 0), batch.suffix.reshape(-1, shape.suffix)], 1)
        # TRL was fastest with a quarter of the rows at once on 2 cores.
        theirs = peers.trl_step_seconds(model, prompts, shape.rationales, shape.length, 3, shape.rows // 4)
        lines.append(Line("TRL GRPOTrainer step", median(theirs), None, tokens))
        figures["step_vs_trl"] = median(theirs) / whole
    else:
        print(f"TRL: {missing}")

    print_table(lines, rate)
    print(json.dumps({k: float(f"{v:.4g}") for k, v in figures.items()} | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
