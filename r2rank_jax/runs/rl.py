"""`r2rank rl`: train the head and the reasoning on the reward of rankings, NDCG by default.

In each step, the policy writes G rationales for every item of every user, and the head turns each rationale into a
score. A Plackett-Luce model turns the scores of a list into a distribution over rankings, whose expected reward is the
list's value V(s). The gradient of V trains the head and the backbone behind it. The effect of a rationale on V becomes
its advantage, from which PPO trains the reasoning; a KL term keeps the policy near the SFT policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from r2rank_jax import stopping
from r2rank_jax.checkpoint.commits import Checkpoints, Mirror
from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import RunConfig, to_json
from r2rank_jax.errors import ScoresError, Stopped
from r2rank_jax.lineage import require_same_inputs
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.rollout.generate import make_rollout
from r2rank_jax.rollout.scoring import make_scorer
from r2rank_jax.runs.inputs import deepest_ndcg, open_inputs, record_config, training_batches, validation_metrics
from r2rank_jax.runs.session.best import BestSoFar
from r2rank_jax.runs.session.divergence import SkippedUpdates
from r2rank_jax.runs.session.log import RunLog, is_due, say
from r2rank_jax.runs.session.resuming import resume, stopped_in
from r2rank_jax.sharding import abstract_lists, abstract_params, gather, make_mesh, part_of_batch, to_mesh
from r2rank_jax.train.advantages.agreement import make_agreement
from r2rank_jax.train.calibration import best_scale
from r2rank_jax.train.objectives import check
from r2rank_jax.train.rl_step import CALIBRATION, ROLLOUT, make_rl_steps
from r2rank_jax.train.state import abstract_state, fresh_state, learning_rate, start_from
from r2rank_jax.types import Array, ListBatch, Params

CALIBRATION_BATCHES = 16


def run(config: RunConfig, run_dir: Path, *, mirror: Mirror | None = None) -> None:
    """Train the phase "rl" in `run_dir` from its finished "sft". If it has a checkpoint of "rl", resume.

    Args:
        config: of the run.
        run_dir: of the run.
        mirror: see `Checkpoints`.
    """
    check(config)
    rl = config.rl
    mesh = make_mesh(config.mesh)

    # -- the SFT policy: RL starts from it, and the KL term keeps the policy near it --------------------------------
    sft = load_policy(run_dir / "checkpoints/sft", abstract_params(mesh, config.model), config)
    reference = sft.params

    # -- data: every training list, with fresh negatives in each epoch; no traces -----------------------------------
    inputs, part = open_inputs(config, run_dir), part_of_batch(mesh)
    require_same_inputs(sft.record, config, inputs.hashes)
    iterator = training_batches(inputs, part, rl.batch_users, config.seed)

    # -- the compiled functions -------------------------------------------------------------------------------------
    rollout_fn = make_rollout(mesh, config, inputs.tokenizer.stop)  # prompts -> sampled rationales
    assess, update = make_rl_steps(mesh, config)  # rationales -> advantages; advantages -> new parameters
    agreement = make_agreement(mesh, config)  # of two halves of a batch on the gradient, for the log
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)  # rationales -> scores, for validation
    rate = learning_rate(rl.optimizer, rl.steps * rl.updates)

    # -- state: from the latest checkpoint, or the SFT policy with its head calibrated ------------------------------
    checkpoints = Checkpoints(run_dir / "checkpoints/rl", mirror=mirror)
    resumption = resume(run_dir, "rl", checkpoints, config, inputs.hashes, reference=sft.identity)
    done = resumption.step
    gap = resumption.logp_gap  # largest |log-probability of the trainer - of the sampler| since the last log
    if done:
        like = abstract_state(mesh, config.model, rl.optimizer, rl.steps * rl.updates, config.trained)
        state, saved = checkpoints.restore(done, like)
        iterator.set_state(saved.iterator)
    best = BestSoFar("rl", rl.patience, resumption.best)
    if done < rl.steps and not best.exhausted:
        start = time.monotonic()
        programs = rollout_fn.warm_up(reference, abstract_lists(mesh, config, rl.batch_users), sampled=True)
        say(f"rl: compiled {programs} rollout programs in {time.monotonic() - start:.1f} s")
    if not done:
        state = fresh_state(mesh, config.model, rl.optimizer, rl.steps * rl.updates, config.seed, config.trained)
        scale = _calibrate(mesh, rollout_fn, reference, state.key(), iterator)
        state = start_from(state, {**reference, "score_head": reference["score_head"] * scale})
        say(f"rl: scores scaled by {scale:.3f} before the first step; {rl.steps} steps of {rl.batch_users} lists")

    record_config(run_dir, config)  # only now: a refused command must not change a run's record

    # -- learn ------------------------------------------------------------------------------------------------------
    skipped = SkippedUpdates(run_dir, "rl", checkpoints, mesh, done=done, total=resumption.skipped)
    finite_at = resumption.finite_at  # step of the last validation whose scores were finite
    with RunLog(run_dir, "rl", resumption, steps=rl.steps) as log:

        def commit(step: int, *, finished: bool, validated: bool = True) -> None:
            record = PhaseRecord(
                phase="rl",
                config=to_json(config),
                iterator=following,
                reference=sft.identity,
                inputs=asdict(inputs.hashes),
                changes=resumption.changes,
                steps=rl.steps,
                wall_s=log.wall_s,
                logp_gap=gap,
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
            for step in range(resumption.first_step, done + 1 if best.exhausted else rl.steps + 1):
                owed = step == done  # the commit was made before its validation, and is replaced after it
                last, improved = step == rl.steps, False
                if step > trained:  # or it was trained before a stop, which came before its validation
                    stopping.check()
                    batch = to_mesh(mesh, next(iterator))

                    # 1. reason: sample G rationales for each item, with the log-probabilities of their tokens
                    rollout = rollout_fn(state.params, batch, jax.random.fold_in(state.key(), ROLLOUT))

                    # 2. judge: list values, each rationale's advantage, the SFT policy on the same tokens
                    assessment = assess(state.params, reference, batch, rollout)
                    if rl.gradients_every and (step == 1 or is_due(step, rl.gradients_every)):
                        parts = agreement(state, reference, batch, rollout, assessment)
                        log.write(step, {name: float(value) for name, value in parts.items()})

                    # 3. learn: ∇V through the scores, PPO on the tokens, KL to the SFT policy
                    for _ in range(rl.updates):
                        state, metrics = update(state, reference, batch, rollout, assessment)
                        gap = float(np.maximum(gap, metrics["logp_gap"]))  # of unlogged steps too; keeps a NaN
                        skipped.count(step, bool(metrics["skipped"]), batch)
                    jax.block_until_ready(metrics)  # queued collectives of several processes can deadlock on CPU
                    trained, validated, following = step, True, iterator.get_state()
                    stopping.hold()

                    # 4. log
                    if last:
                        skipped.require_an_update(rl.steps * rl.updates)
                    if step % rl.log_every == 0 or last:
                        values = {name: float(value) for name, value in metrics.items()}
                        values |= {
                            "logp_gap": gap,
                            "skipped": skipped.total,
                            "learning_rate": float(rate(step * rl.updates - 1)),
                        }
                        log.write(step, values)
                        gap = 0.0

                # 5. validate, commit
                if is_due(step, rl.validate_every) or last:
                    validated = False
                    try:
                        validation = validation_metrics(inputs, scorer, mesh, state.policy)  # of the average
                    except ScoresError:
                        skipped.stop_at_scores(step, finite_at)
                    validated, finite_at = True, step
                    log.write(step, {f"validation/{metric}": float(v.mean()) for metric, v in validation.items()})
                    if not skipped.suspicious:
                        improved = best.is_best(step, float(validation[deepest_ndcg(config)].mean()))
                    last |= best.exhausted
                due = is_due(step, rl.checkpoint_every) or improved
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
            raise stopped_in("rl", checkpoints, rl.steps) from stopped
        finally:
            checkpoints.finish_save()
            iterator.close()
    checkpoints.close()


def _calibrate(
    mesh: Mesh,
    rollout_fn: Callable[[Params, ListBatch, Array], Rollout],
    reference: Params,
    root: Array,
    batches: Iterator[ListBatch],
) -> float:
    """The scale of the head at which scores of the SFT policy's own rationales fit training lists best."""
    scores, labels = [], []
    for i in range(CALIBRATION_BATCHES):
        batch = to_mesh(mesh, next(batches))
        rollout = rollout_fn(reference, batch, jax.random.fold_in(root, CALIBRATION + i))
        batch_scores, batch_labels = gather(mesh, (rollout.scores, batch.labels))  # [U, N, G], [U, N]
        rationales = batch_scores.shape[2]
        scores += [batch_scores[:, :, g] for g in range(rationales)]
        labels += [batch_labels] * rationales
    return best_scale(np.concatenate(scores), np.concatenate(labels))
