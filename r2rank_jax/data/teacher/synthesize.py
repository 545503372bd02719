"""The driver that all teachers share: it draws training lists, asks a teacher for rationales, and writes the traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from r2rank_jax.data.prepared.dataset import Dataset, load_for_prompts
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prepared.traces import write_traces
from r2rank_jax.data.prompts.templates import FILMS_1, find_template
from r2rank_jax.data.teacher.protocol import Lesson, Teacher
from r2rank_jax.errors import DataError, Stopped


def synthesize(
    directory: Path,
    out: Path,
    teacher: Teacher,
    *,
    split: str = "leave_one_out",
    template: str = FILMS_1.name,
    lists: int = 4000,
    seed: int = 0,
    history_items: int = 10,
    min_history: int = 5,
    candidate_items: int = 20,
    positives: int = 1,
) -> str | None:
    """Write a teacher's rationales for training lists to a trace file.

    The same arguments draw the same lists, so a repeated call continues where a teacher that keeps a record of its
    work was stopped. The trace file is replaced as a whole by what is complete.

    Args:
        directory: prepared folder.
        out: trace file.
        teacher: writes the rationales.
        split: protocol that decides which interactions are for training.
        template: name of the student's `data.template`.
        lists: number of lists to draw; the teacher may drop some.
        seed: of the choice of lists and of their negatives.
        history_items: interactions the teacher sees, as in the student's prompt.
        min_history: least number of interactions before a list's first positive.
        candidate_items: items per list.
        positives: relevant items per list, the user's next ones.

    Returns:
        What the teacher left to do, in words; None if nothing.

    Raises:
        Stopped: the teacher was told to stop; what is complete is written.
        DataError: an unknown template, more lists than training positions, or whatever the teacher refuses.
    """
    student_template = find_template(template)
    dataset = load_for_prompts(directory, split)
    pairs = _draw(dataset, lists, seed, min_history, nested=teacher.draws_nested_lists)
    drawn = dataset.training_lists(pairs, key=seed, n=candidate_items, positives=positives)
    output = teacher.rationales(
        Lesson(dataset=dataset, lists=drawn, template=student_template, history_items=history_items, seed=seed)
    )
    rows = sorted(output.rationales)
    if output.interrupted and output.missing and not rows:
        raise Stopped(f"{output.missing}; no traces were written")
    if not rows:
        return None if output.missing is None else f"{output.missing}; no traces were written"
    header = {
        "teacher": teacher.name,
        "data_hash": dataset.data_hash,
        "split": split,
        "seed": seed,
        "positives": positives,
        "template": template,
    }
    write_traces(
        out, header | dict(output.header), drawn.take(np.array(rows)), [output.rationales[row] for row in rows]
    )
    print(f"{out}: {len(rows):,} lists of {candidate_items} rationales by {teacher.name}; {output.remark}")
    if output.interrupted and output.missing:
        raise Stopped(output.missing)
    return output.missing


def _draw(dataset: Dataset, lists: int, seed: int, min_history: int, *, nested: bool) -> Array:
    """int32 [lists, 2]: (user, position) of training lists, sampled without replacement."""
    pairs = dataset.train_lists(min_history)
    if not 1 <= lists <= len(pairs):
        raise DataError(f"lists must lie between 1 and the {len(pairs)} training lists, got {lists}; lower --lists")
    # Two streams of random numbers: existing trace files and journals depend on both.
    if nested:
        return pairs[np.random.default_rng([dataset.seed, seed, 2]).permutation(len(pairs))[:lists]]
    return pairs[np.sort(np.random.default_rng([dataset.seed, seed, 1]).choice(len(pairs), lists, replace=False))]
