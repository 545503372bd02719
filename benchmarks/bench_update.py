"""One policy-gradient update with shared prefixes, compared with independent prompts and with torch.

    python benchmarks/bench_update.py                          about 2 minutes on 2 cores
    python benchmarks/bench_update.py --shape qwen2.5-1.5b     one accelerator

All three compute the gradient of the same kind of loss, a weighted log-probability of every rationale token, and take
one AdamW step. Ours also computes the entropy of every token. The peak is the memory that XLA plans to allocate. If
the independent rows do not fit into memory, as many as fit are measured, and the time is scaled to all rows. Prints a
table, then one JSON line; ratios above 1 mean that ours is faster.
"""

from __future__ import annotations

import dataclasses
import json
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from workload import (
    Line,
    Shape,
    flops,
    independent,
    make,
    matmul_rate,
    parse,
    print_table,
    report,
    rows_that_fit,
    run_config,
    seconds,
)

from r2rank_jax.model.forward import Judgement, judge_and_sum
from r2rank_jax.model.logprobs import TokenLoss
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.chunks import Losses, Rows, gradients
from r2rank_jax.train.context import UpdateContext
from r2rank_jax.train.memory.chunk_choice import choose_chunks
from r2rank_jax.types import Array, KeyValues, Params


def update(shape: Shape, context: UpdateContext) -> Any:
    """The step, (params, optimizer state, rows) -> (params, optimizer state, gradient), and its optimizer."""
    optimizer = optax.adamw(1e-6)

    def of_tokens(params: Params, _: Any, prefix: KeyValues | None, chunk: Rows) -> tuple[Array, Judgement]:
        weights = jnp.broadcast_to(chunk.loss_inputs[..., None] / shape.rows, chunk.rationales.tokens.shape)
        loss = TokenLoss(lambda statistics, weight, _: -statistics.logp * weight, weights, ())
        return judge_and_sum(loss, context.model, params, chunk.batch, chunk.rationales, prefix=prefix)

    def of_scores(_: Any, scores: Array, rows: Rows) -> Array:
        return -jnp.sum(scores * rows.loss_inputs) / shape.rows

    def step(params: Params, state: Any, rows: Rows) -> tuple[Params, Any, Params]:
        losses, scores = Losses(of_tokens, of_scores), jnp.zeros(rows.rationales.length.shape)
        grads, _ = gradients(context, losses, params, (), rows, scores)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), state, grads

    return step, optimizer


def measure(name: str, shape: Shape, rows: Rows, params: Params, counted: float, rounds: int) -> tuple[Line, Params]:
    config = run_config(shape)
    choice = choose_chunks(config, rows.batch, rows.rationales)
    context = UpdateContext(make_mesh(config.mesh), choice.model, choice.chunk_items)
    step, optimizer = update(shape, context)
    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step).lower(params, state, rows).compile()
    compile_s = time.perf_counter() - start
    times_s = seconds(lambda: compiled(params, state, rows), rounds)
    report(f"{name}, seconds", median(times_s))
    memory = compiled.memory_analysis()
    assert memory is not None
    line = Line(
        f"{name}, {min(choice.chunk_items, rows.batch.items.shape[1])} items at once",
        median(times_s),
        compile_s,
        shape.rows * shape.length,
        counted,
        memory.temp_size_in_bytes,
    )
    return line, compiled(params, state, rows)[2]


def main() -> None:
    shape, rounds, with_peers = parse(__doc__)
    params, batch, rationales = make(shape)
    weights = jax.random.normal(jax.random.key(1), rationales.length.shape)
    counted, rate = flops(shape), matmul_rate(shape.model.dtype)

    shared, shared_grads = measure(
        "shared prefix", shape, Rows(batch, rationales, weights), params, counted["update"], rounds
    )
    independent_batch, independent_rationales = independent(batch, rationales)
    rows = Rows(independent_batch, independent_rationales, weights.reshape(-1, 1, 1))
    fitting_rows = rows_that_fit(shape, independent_batch, independent_rationales)
    part, name = jax.tree.map(lambda x: x[:fitting_rows], rows), "independent prompts"
    if fitting_rows < shape.rows:
        name += f", of {fitting_rows} in {shape.rows}, scaled,"
    independent_line, independent_grads = measure(name, shape, part, params, counted["update_independent"], rounds)
    independent_line = dataclasses.replace(
        independent_line, seconds=independent_line.seconds * shape.rows / fitting_rows
    )
    lines, figures = [shared, independent_line], {"update_vs_independent": independent_line.seconds / shared.seconds}
    if fitting_rows == shape.rows:
        pairs = zip(jax.tree.leaves(shared_grads), jax.tree.leaves(independent_grads))
        figures["grad_rel_err"] = max(
            float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30)) for a, b in pairs
        )

    missing = "skipped" if not with_peers else peers.peers_available("torch")
    if missing is None:
        import torch

        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        model = peers.to_torch(shape.model, params, shape.model.dtype, device)
        prompts = np.concatenate(
            [independent_batch.prefix, independent_batch.suffix[:, 0], independent_rationales.tokens[:, 0, 0]], axis=1
        )
        torch_s, peak = peers.update_seconds(model, prompts, shape.length, np.asarray(weights).ravel(), rounds)
        lines.append(
            Line("torch, independent", median(torch_s), None, shape.rows * shape.length, independent_line.flops, peak)
        )
        figures["update_vs_torch"] = median(torch_s) / shared.seconds
    else:
        print(f"torch: {missing}")

    print_table(lines, rate)
    assert shared.peak_bytes is not None and independent_line.peak_bytes is not None
    if fitting_rows == shape.rows:
        figures["peak_memory_ratio"] = shared.peak_bytes / independent_line.peak_bytes
    figures["of_matmul_rate"] = counted["update"] / shared.seconds / rate
    print(json.dumps({k: float(f"{v:.4g}") for k, v in figures.items()} | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
