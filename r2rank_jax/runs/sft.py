"""`r2rank sft`: learn to reason and to score from worked rationales.

Reads the traces, trains, validates by ranking held-out lists, and commits checkpoints from which training can
resume. With `continued` it is RL's control: the finished SFT policy trains on the same traces with as much work as RL.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import jax

from r2rank_jax import stopping
from r2rank_jax.checkpoint.commits import Checkpoints, Mirror, wait_for_everyone
from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import RunConfig, from_json, to_json
from r2rank_jax.data.batches.pipeline import trace_batches
from r2rank_jax.data.prepared.dataset import Dataset, load_for_prompts
from r2rank_jax.data.prepared.traces import Traces, read_traces
from r2rank_jax.data.prompts.from_dataset import corpus
from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.errors import CheckpointError, ScoresError, Stopped
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.lineage import require_same_inputs
from r2rank_jax.phases import Phase, PhaseRecord
from r2rank_jax.rollout.scoring import make_scorer
from r2rank_jax.runs.control import steps_of_same_work
from r2rank_jax.runs.inputs import critic_batches, deepest_ndcg, open_inputs, record_config, validation_metrics
from r2rank_jax.runs.session.best import BestSoFar
from r2rank_jax.runs.session.divergence import SkippedUpdates
from r2rank_jax.runs.session.log import RunLog, is_due, say
from r2rank_jax.runs.session.resuming import resume, stopped_in
from r2rank_jax.runs.starting_model import adopt, starting_params
from r2rank_jax.sharding import abstract_params, make_mesh, part_of_batch, to_mesh
from r2rank_jax.train.objectives import check
from r2rank_jax.train.sft_step import make_sft_step
from r2rank_jax.train.state import abstract_state, fresh_state, learning_rate, start_from


def run(config: RunConfig, run_dir: Path, *, continued: bool = False, mirror: Mirror | None = None) -> None:
    """Train the phase "sft" or "sft_continued" in `run_dir`. If the run directory has a checkpoint of it, resume.

    Args:
        config: of the run.
        run_dir: of the run.
        continued: train RL's control.
        mirror: see `Checkpoints`.
    """
    check(config)
    if not continued:
        config.require_critic_lists()
    phase: Phase = "sft_continued" if continued else "sft"
    mesh = make_mesh(config.mesh)

    # -- data: traces, and a tokenizer: the imported model's, or one trained on the traces on the first start -------
    dataset = load_for_prompts(Path(config.data.directory), config.data.split)
    started = bool(sealed_steps(run_dir / "checkpoints" / phase))
    # A commit holds its traces' digest. Their template, which old files do not name, matters on the first start only.
    traces = read_traces(Path(config.data.traces), dataset, None if started else config.data.template)
    if not continued and jax.process_index() == 0:
        _provide_tokenizer(config, run_dir, dataset, traces)
    wait_for_everyone("tokenizer")
    inputs = open_inputs(config, run_dir)
    seed = config.seed + 1 if continued else config.seed

    # -- the control: as many further steps as are RL's work --------------------------------------------------------
    steps, start, reference = config.sft.steps, None, None
    if continued:
        sft = load_policy(run_dir / "checkpoints/sft", abstract_params(mesh, config.model), config)
        rl = load_policy(run_dir / "checkpoints/rl", abstract_params(mesh, config.model), config).record
        require_same_inputs(sft.record, config, inputs.hashes)
        _require_same_traces(sft.record, traces)
        start, reference = sft.params, sft.identity
        of_rl = from_json(dict(rl.config))
        of_rl = replace(of_rl, rl=replace(of_rl.rl, steps=rl.done))  # fewer than planned if it ended early
        steps = steps_of_same_work(config, of_rl, traced_items=traces.lists.items.shape[1])
        config = replace(config, sft=replace(config.sft, steps=steps))
        say(f"{phase}: {steps} further steps have as many floating point operations as RL's {rl.done}")

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
    checkpoints = Checkpoints(run_dir / "checkpoints" / phase, mirror=mirror)
    resumption = resume(run_dir, phase, checkpoints, config, inputs.hashes, traces=traces.digest, reference=reference)
    done = resumption.step
    if resumption.record is None:
        state = fresh_state(mesh, config.model, config.sft.optimizer, steps, seed, config.trained)
        if start is None and config.pretrained is not None:
            start = starting_params(mesh, config, state.params)
        if start is not None:
            state = start_from(state, start)
    else:
        like = abstract_state(mesh, config.model, config.sft.optimizer, steps, config.trained)
        state, saved = checkpoints.restore(done, like)
        iterator.set_state(saved.iterator)
    critic_lists = critic_batches(inputs, part, config.sft.critic_users, seed, first=done)
    if not continued:
        record_config(run_dir, config)  # only now: a refused command must not change a run's record
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(f"{phase}: {size:,} parameters, {len(traces)} traced lists, {steps} steps of {config.sft.batch_users} lists")

    # -- train ------------------------------------------------------------------------------------------------------
    train_step = make_sft_step(mesh, config)
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)
    rate = learning_rate(config.sft.optimizer, steps)
    skipped = SkippedUpdates(run_dir, phase, checkpoints, mesh, done=done, total=resumption.skipped)
    finite_at = resumption.finite_at  # step of the last validation whose scores were finite
    best = BestSoFar(phase, config.sft.patience, resumption.best, whole=continued)
    with RunLog(run_dir, phase, resumption, steps=steps) as log:

        def commit(step: int, *, finished: bool, validated: bool = True) -> None:
            record = PhaseRecord(
                phase=phase,
                config=to_json(config),
                iterator=following,
                traces=traces.digest,
                reference=reference,
                inputs=asdict(inputs.hashes),
                changes=resumption.changes,
                steps=steps,
                wall_s=log.wall_s,
                skipped=skipped.total,
                finished=finished,
                validated=validated,
                finite_at=finite_at,
                has_average=state.average is not None,
                best=best.best,
            )
            checkpoints.save(step, state, record)
            skipped.recovered()

        trained, validated = committed = done, resumption.validated  # the newest step, and whether it is validated
        following = iterator.get_state()  # after the batch of that step
        if not validated:
            stopping.hold()  # this commit will be replaced
        try:
            for step in range(resumption.first_step, done + 1 if best.exhausted else steps + 1):
                owed = step == done  # the commit was made before its validation, and is replaced after it
                last, improved = step == steps, False
                if step > trained:  # or it was trained before a stop, which came before its validation
                    stopping.check()
                    batch, rationales = to_mesh(mesh, next(iterator))
                    lists = None if critic_lists is None else to_mesh(mesh, next(critic_lists))
                    state, metrics = train_step(state, batch, rationales, lists)
                    jax.block_until_ready(metrics)  # queued collectives of several processes can deadlock on CPU
                    trained, validated, following = step, True, iterator.get_state()
                    stopping.hold()
                    skipped.count(step, bool(metrics["skipped"]), batch)
                    if last:
                        skipped.require_an_update(steps)
                    if step % config.sft.log_every == 0 or last:
                        values = {name: float(value) for name, value in metrics.items()}
                        log.write(step, values | {"skipped": skipped.total, "learning_rate": float(rate(step - 1))})
                if is_due(step, config.sft.validate_every) or last:
                    validated = False
                    try:
                        validation = validation_metrics(inputs, scorer, mesh, state.policy)
                    except ScoresError:
                        skipped.stop_at_scores(step, finite_at)
                    validated, finite_at = True, step
                    log.write(step, {f"validation/{metric}": float(v.mean()) for metric, v in validation.items()})
                    if not skipped.suspicious:
                        improved = best.is_best(step, float(validation[deepest_ndcg(config)].mean()))
                    last |= best.exhausted
                due = is_due(step, config.sft.checkpoint_every) or improved
                if last or owed or (due and not skipped.suspicious):
                    commit(step, finished=last)
                    committed = step, True
                    if owed:  # what follows is compiled first, and nothing must be held meanwhile
                        checkpoints.wait()
                        stopping.release()
                if last:
                    break
        except Stopped as stopped:
            if (trained, validated) != committed and not skipped.suspicious:
                commit(trained, finished=False, validated=validated)
            checkpoints.close()
            raise stopped_in(phase, checkpoints, steps) from stopped
        finally:
            checkpoints.finish_save()
            iterator.close()
            if critic_lists is not None:
                critic_lists.close()
    checkpoints.close()


def _require_same_traces(sft: PhaseRecord, traces: Traces) -> None:
    if sft.traces != traces.digest:
        raise CheckpointError(
            f"sft --continued must train on the traces of sft, with SHA-256 {str(sft.traces)[:12]}, got "
            f"{traces.digest[:12]}; restore the file, or set data.traces"
        )


def _provide_tokenizer(config: RunConfig, run_dir: Path, dataset: Dataset, traces: Traces) -> None:
    """Write the tokenizer of a new run directory; keep the one of an existing run."""
    if config.pretrained is not None:
        adopt(Path(config.pretrained), run_dir)
    elif not (run_dir / "tokenizer.json").exists():
        with replacing_file(run_dir / "tokenizer.json") as partial:
            template, reasoning = find_template(config.data.template), config.data.rationale_tokens > 0
            texts = corpus(dataset, traces, config.data.history_items, template, reasoning=reasoning)
            train_tokenizer(texts, config.model.vocabulary).save(str(partial))
