"""What a reader must know before trusting a number of an evaluation: the `notes` of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from r2rank_jax.checkpoint.policy import LoadedPolicy
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.phases import Phase, PhaseRecord
from r2rank_jax.runs.inputs import Inputs


def notes_on(
    phase: Phase, policy: LoadedPolicy, differences: Sequence[str], settings: Sequence[str], leaked: int | None
) -> list[str]:
    """Notes on one policy.

    Args:
        phase: of the policy.
        policy: the policy.
        differences: from its training data to those of the evaluation, see `lineage.require_same_inputs`.
        settings: of its training that differ from the configuration of the evaluation, see `lineage.other_settings`.
        leaked: test positives that were training interactions of the policy; None: not known.
    """
    record, notes = policy.record, []
    if not record.finished:
        notes.append(f"{phase} has not finished: evaluated at step {policy.step} of {record.steps}.")
    if record.best is not None and policy.step != record.done:
        notes.append(
            f"{phase} ended at step {record.done} of {record.steps}; evaluated is its policy of step {policy.step}, "
            "whose validation was the best."
        )
    if differences:
        known = "" if leaked is None else f" {leaked} test positives were among the training interactions of {phase}."
        notes.append(f"{phase} was trained on other data (training -> evaluation): {'; '.join(differences)}.{known}")
    if settings:
        notes.append(f"{phase} was trained with other settings (training -> evaluation): {'; '.join(settings)}.")
    if record.changes:
        notes.append(f"Settings of {phase} were changed on the way: {'; '.join(record.changes)}.")
    if record.skipped:
        notes.append(f"{record.skipped} updates of {phase} were skipped, because their gradient was not finite.")
    return notes


def notes_on_references(policies: Mapping[Phase, LoadedPolicy]) -> list[str]:
    """Notes on phases that started from another SFT checkpoint than the one that is evaluated."""
    if "sft" not in policies:
        return []
    return [
        f"{phase} started from another SFT checkpoint than the one evaluated here (step {policies['sft'].step})."
        for phase, policy in policies.items()
        if policy.record.reference not in (None, policies["sft"].identity)
    ]


def leaked_positives(record: PhaseRecord, inputs: Inputs) -> int | None:
    """The number of test positives that were training interactions of a policy.

    It is known only if both splits are of the same prepared folder; else None.
    """
    split = record.config["data"]["split"]
    if record.inputs is None or record.inputs["interactions"] != inputs.hashes.interactions:
        return None
    if split == inputs.dataset.split:
        return 0
    train_end = load(Path(inputs.config.data.directory), split).train_end
    lists = inputs.dataset.candidate_lists("test")
    return sum(
        _count_before(inputs, int(user), int(position), items[labels > 0], int(train_end[user]))
        for user, position, items, labels in zip(lists.user, lists.position, lists.items, lists.labels)
    )


def _count_before(inputs: Inputs, user: int, position: int, positives: np.ndarray, end: int) -> int:
    """How many positives of a list lie in the user's sequence from `position` on, but before `end`."""
    start = int(inputs.dataset.offsets[user])
    return int(np.isin(positives, inputs.dataset.item[start + position : start + end]).sum())
