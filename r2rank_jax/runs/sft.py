"""`r2rank sft`: learn to reason and to score from worked rationales.

Reads the traces, trains, validates by greedily ranking held-out lists, and commits checkpoints from which training can
resume. With `continued` it is RL's control: the finished SFT policy trains on the same traces for RL's wall time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2rank_jax.checkpoint import Checkpoints, load_policy, require_same_configuration
from r2rank_jax.config import RunConfig, to_json
from r2rank_jax.data.batches.pipeline import trace_batches
from r2rank_jax.data.prepared.dataset import Dataset, load
from r2rank_jax.data.prepared.traces import Traces, read_traces
from r2rank_jax.data.prompts.from_dataset import corpus
from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.errors import CheckpointError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.phases import Phase, PhaseRecord
from r2rank_jax.rollout.scoring import make_scorer
from r2rank_jax.runs.inputs import held_out_metrics, open_inputs, record_config
from r2rank_jax.runs.log import RunLog, say
from r2rank_jax.runs.starting_model import adopt, read_run_tokenizer, starting_params
from r2rank_jax.sharding import abstract_params, make_mesh, part_of_batch, to_mesh
from r2rank_jax.train.objectives import check
from r2rank_jax.train.sft_step import make_sft_step
from r2rank_jax.train.state import abstract_state, fresh_state, learning_rate, start_from


def run(config: RunConfig, run_dir: Path, *, continued: bool = False) -> None:
    """Train the phase "sft" or "sft_continued" in `run_dir`. If the run directory has a checkpoint of it, resume."""
    check(config)
    phase: Phase = "sft_continued" if continued else "sft"
    mesh = make_mesh(config.mesh)

    # -- data: traces, and a tokenizer: the imported model's, or one trained on the traces on the first start -------
    dataset = load(Path(config.data.directory), config.data.split)
    traces = read_traces(Path(config.data.traces), dataset, config.data.template)
    if not continued and jax.process_index() == 0:
        _provide_tokenizer(config, run_dir, dataset, traces)
    _wait_for_everyone()
    inputs = open_inputs(config, read_run_tokenizer(run_dir))
    seed = config.seed + 1 if continued else config.seed

    # -- the control: as many further steps as fit into RL's wall time at SFT's own speed ---------------------------
    steps, start = config.sft.steps, None
    if continued:
        params, sft, _ = load_policy(run_dir / "checkpoints/sft", abstract_params(mesh, config.model), to_json(config))
        _, rl, _ = load_policy(run_dir / "checkpoints/rl", abstract_params(mesh, config.model), to_json(config))
        _require_same_traces(sft, traces, run_dir)
        steps = max(1, round(rl.wall_s / sft.wall_s * sft.steps))
        optimizer = config.sft.optimizer
        optimizer = replace(optimizer, warmup_steps=min(optimizer.warmup_steps, steps))
        config = replace(config, sft=replace(config.sft, steps=steps, optimizer=optimizer))
        start = params
        say(f"{phase}: {steps} further steps, which take RL's {rl.wall_s:.0f} s at SFT's speed")

    # -- state: from the latest checkpoint, or the starting parameters ----------------------------------------------
    part = part_of_batch(mesh)
    iterator = trace_batches(
        traces,
        inputs.encoder,
        batch_users=config.sft.batch_users,
        seed=seed,
        process_index=part.places,
        process_count=part.parts,
        workers=config.compute.data_workers,
    )
    checkpoints = Checkpoints(run_dir / "checkpoints" / phase)
    latest, wall_s = checkpoints.latest(), 0.0
    if latest is None:
        state = fresh_state(mesh, config.model, config.sft.optimizer, steps, seed, config.trained)
        if start is None and config.pretrained is not None:
            start = starting_params(mesh, config, state.params)
        if start is not None:
            state = start_from(state, start)
    else:
        like = abstract_state(mesh, config.model, config.sft.optimizer, steps, config.trained)
        saved = checkpoints.record(latest)
        parts = ("seed", "data", "model", "sft", "trained", "pretrained")
        require_same_configuration(saved.config, to_json(config), parts)
        _require_same_traces(saved, traces, run_dir)
        state, saved = checkpoints.restore(latest, like)
        iterator.set_state(saved.iterator)
        wall_s = saved.wall_s
        say(f"{phase}: {'finished' if saved.finished else 'resuming'} at step {latest} of {steps}")
    if not continued:
        record_config(run_dir, config)  # only now: a refused command must not change a run's record
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(f"{phase}: {size:,} parameters, {len(traces)} traced lists, {steps} steps of {config.sft.batch_users} lists")

    # -- train ------------------------------------------------------------------------------------------------------
    train_step = make_sft_step(mesh, config)
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)
    rate = learning_rate(config.sft.optimizer, steps)
    done = latest or 0
    with RunLog(run_dir, phase, resume_step=done, steps=steps, wall_s=wall_s) as log:
        for step in range(done + 1, steps + 1):
            batch, rationales = to_mesh(mesh, next(iterator))
            state, metrics = train_step(state, batch, rationales)
            jax.block_until_ready(metrics)  # queued collectives of several processes can deadlock on CPU
            last = step == steps

            if step % config.sft.log_every == 0 or last:
                values = {name: float(value) for name, value in metrics.items()}
                if not np.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"loss is {values['loss']} at step {step}; lower sft.optimizer.learning_rate"
                    )
                log.write(step, values | {"learning_rate": float(rate(step - 1))})
            if step % config.sft.validate_every == 0 or last:
                validation, _, _ = held_out_metrics(inputs, scorer, mesh, state.policy, "valid")
                log.write(step, {f"validation/{metric}": float(v.mean()) for metric, v in validation.items()})
            if step % config.sft.checkpoint_every == 0 or last:
                record = PhaseRecord(
                    phase=phase,
                    config=to_json(config),
                    iterator=iterator.get_state(),
                    traces=traces.digest,
                    steps=steps,
                    wall_s=log.wall_s,
                    finished=last,
                    has_average=state.average is not None,
                )
                checkpoints.save(step, state, record)
    checkpoints.close()
    iterator.close()


def _provide_tokenizer(config: RunConfig, run_dir: Path, dataset: Dataset, traces: Traces) -> None:
    """Write the tokenizer of a new run directory; keep the one of an existing run."""
    if config.pretrained is not None:
        adopt(Path(config.pretrained), run_dir)
    elif not (run_dir / "tokenizer.json").exists():
        with replacing_file(run_dir / "tokenizer.json") as partial:
            template, reasoning = find_template(config.data.template), config.data.rationale_tokens > 0
            texts = corpus(dataset, traces, config.data.history_items, template, reasoning=reasoning)
            train_tokenizer(texts, config.model.vocabulary).save(str(partial))


def _require_same_traces(record: PhaseRecord, traces: Traces, run_dir: Path) -> None:
    if record.traces != traces.digest:
        raise CheckpointError(
            f"the checkpoint in {run_dir} was trained on traces with SHA-256 {str(record.traces)[:12]}, the file now "
            f"has {traces.digest[:12]}; restore the file, or choose another --run-dir"
        )


def _wait_for_everyone() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
