"""A language model as teacher: training lists in, worked rationales out, every request paid for once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset, load
from r2rank_jax.data.prepared.traces import write_traces
from r2rank_jax.data.teacher.asking import Asker, Progress
from r2rank_jax.data.teacher.batch import read_batch, write_batch
from r2rank_jax.data.teacher.endpoint import Endpoint, open_endpoint
from r2rank_jax.data.teacher.filters import REASONS, Filters, open_filters
from r2rank_jax.data.teacher.instructions import VERSION
from r2rank_jax.data.teacher.journal import Journal
from r2rank_jax.data.teacher.ledger import Budget, Ledger
from r2rank_jax.data.teacher.settings import TeacherSettings
from r2rank_jax.data.teacher.survey import Lesson, Survey, survey
from r2rank_jax.errors import DataError

OFFLINE = "batch"
BLOCK_LISTS = 64  # brought to an end before the next ones begin, so that a budget buys whole lists


def synthesize(
    directory: Path,
    out: Path,
    settings: TeacherSettings,
    *,
    teacher: str,
    key: str = "",
    split: str = "leave_one_out",
    lists: int = 4000,
    seed: int = 0,
    history_items: int = 10,
    min_history: int = 5,
    candidate_items: int = 20,
    positives: int = 1,
) -> str | None:
    """Ask for rationales of training lists, filter them, and write the complete lists as traces.

    The choice of lists is nested: more `lists` with the same seed are the same ones and others, so that what a journal
    holds is never asked again.

    Args:
        directory: prepared folder.
        out: traces file.
        settings: of the teacher.
        teacher: address of the endpoint, or "batch".
        key: of the endpoint; "" for none.
        split: protocol; decides what is training.
        lists: how many are asked for; some may be dropped.
        seed: of the choice of lists and of their negatives.
        history_items: interactions the teacher sees, as in the pupil's prompt.
        min_history: interactions before a list's positive.
        candidate_items: items per list.
        positives: relevant items per list, the user's next ones.

    Returns:
        What is missing, in words, where not all lists were brought to an end or none is complete; else None.

    Raises:
        DataError: settings that cannot be, more lists than training positions, or a journal in use.
    """
    offline = teacher == OFFLINE
    if offline == (settings.batch_out is None and settings.batch_in is None):
        raise DataError(
            "--teacher batch needs --batch-out or --batch-in, and an address goes with neither, got "
            f"--teacher {OFFLINE if offline else 'ADDRESS'}, --batch-out {settings.batch_out}, --batch-in "
            f"{settings.batch_in}"
        )
    endpoint = None if offline else open_endpoint(teacher, key, settings)
    filters = open_filters(settings)
    dataset = load(directory, split)
    drawn = _draw(dataset, lists, seed, min_history, candidate_items, positives)
    lesson = Lesson(dataset, drawn, settings, history_items)
    with Journal(settings.journal or out.with_name(out.name.removesuffix(".jsonl") + ".journal.jsonl")) as journal:
        ledger = Ledger(Budget.of(settings), journal.past.known, journal.past.unknown)
        _say_past(journal)
        if settings.batch_in is not None:
            counts = read_batch(settings.batch_in, lesson.ceilings(), journal, ledger)
            print(f"{settings.batch_in}: {_listed(counts)}")
        if settings.batch_out is not None and _offer(settings.batch_out, lesson, journal, filters, ledger):
            return None
        stopped = None if endpoint is None else _ask(endpoint, lesson, journal, filters, ledger)
        found = survey(lesson, range(len(drawn)), journal.answers, filters)
    header = {"teacher": settings.model, "data_hash": dataset.data_hash, "split": split, "seed": seed}
    header |= {"positives": positives, "prompts": VERSION, "settings": settings.told()}
    return _finish(out, header | _accounts(found, ledger), lesson, found, stopped)


def _draw(
    dataset: Dataset, lists: int, seed: int, min_history: int, candidate_items: int, positives: int
) -> CandidateLists:
    pairs = dataset.train_lists(min_history)
    if not 1 <= lists <= len(pairs):
        raise DataError(f"lists must lie between 1 and the {len(pairs)} training lists, got {lists}; lower --lists")
    chosen = np.random.default_rng([dataset.seed, seed, 2]).permutation(len(pairs))[:lists]
    return dataset.training_lists(pairs[chosen], key=seed, n=candidate_items, positives=positives)


def _offer(path: Path, lesson: Lesson, journal: Journal, filters: Filters, ledger: Ledger) -> bool:
    """Write the open requests for a batch; False where there are none."""
    found = survey(lesson, range(len(lesson.lists)), journal.answers, filters.branch())
    if not found.open:
        return False
    written = write_batch(path, found.open, ledger)
    left = f"; the budget holds no more: {len(found.open) - written:,} are left out" * (written < len(found.open))
    print(f"{path}: {written:,} requests for {found.unfinished:,} lists{left}")
    return True


def _ask(endpoint: Endpoint, lesson: Lesson, journal: Journal, filters: Filters, ledger: Ledger) -> str | None:
    """Ask block by block, and within a block again where an answer was refused; returns what stopped it."""
    asker = Asker(endpoint, journal, ledger, lesson.settings)
    count = len(lesson.lists)
    blocks = [range(start, min(start + BLOCK_LISTS, count)) for start in range(0, count, BLOCK_LISTS)]
    preview = filters.branch()
    to_come = [len(survey(lesson, rows, journal.answers, preview).open) for rows in blocks]
    print(f"teacher: {sum(to_come):,} requests to ask", file=sys.stderr, flush=True)
    progress = Progress(asker)
    for index, rows in enumerate(blocks):
        while True:
            trial = filters.branch()
            opened = survey(lesson, rows, journal.answers, trial).open
            waiting = [request for request in opened if request.key not in asker.outcome.given_up]
            if not waiting:
                break
            progress.left(len(waiting) + sum(to_come[index + 1 :]))
            if asker.ask_all(waiting, progress).stopped is not None:
                break
        filters = trial
        if asker.outcome.stopped is not None:
            break
    print(progress.line(), file=sys.stderr, flush=True)
    given_up = asker.outcome.given_up
    if asker.outcome.stopped is None and given_up:
        return (
            f"{len(given_up):,} requests brought no answer ({_listed(dict(Counter(given_up.values()).most_common(3)))})"
        )
    return asker.outcome.stopped


def _finish(out: Path, header: dict[str, Any], lesson: Lesson, found: Survey, stopped: str | None) -> str | None:
    """Write what is complete; say what is not."""
    rows = sorted(found.rationales)
    refused = _listed({reason: found.refused[reason] for reason in REASONS})
    print(f"teacher: {found.judged:,} answers judged; refused: {refused}")
    dropped = f"{found.dropped.total():,} dropped ({_listed(found.dropped)})"
    if rows:
        write_traces(out, header, lesson.lists.take(np.array(rows)), [found.rationales[row] for row in rows])
        print(
            f"{out}: {len(rows):,} lists of {lesson.lists.items.shape[1]} rationales by {header['teacher']}; {dropped}"
        )
    if found.unfinished:
        return (
            f"{stopped or 'answers are missing'}; {found.unfinished:,} of {len(lesson.lists):,} lists are unfinished, "
            f"{len(found.open):,} requests are open; {len(rows):,} complete lists are in {out if rows else 'no file'}; "
            "go on with the same command, or with --batch-out for the next batch"
        )
    return None if rows else f"no list is complete, {dropped}; no traces were written"


def _accounts(found: Survey, ledger: Ledger) -> dict[str, Any]:
    """What became of lists and answers, and what they cost, for the header."""
    return {
        "lists_dropped": dict(found.dropped),
        "lists_unfinished": found.unfinished,
        "answers": found.judged,
        "answers_refused": {reason: found.refused[reason] for reason in REASONS},
        "tokens": {"prompt": ledger.known.prompt, "completion": ledger.known.completion},
        "tokens_unreported_at_most": {"prompt": ledger.unknown.prompt, "completion": ledger.unknown.completion},
        "usd_at_most": round(ledger.budget.cost(ledger.booked), 6),
    }


def _say_past(journal: Journal) -> None:
    if journal.repaired_bytes:
        print(f"{journal.path}: a torn last line of {journal.repaired_bytes} bytes was cut off", file=sys.stderr)
    if journal.past.counts:
        print(f"{journal.path}: so far {_listed(journal.past.counts)}", file=sys.stderr, flush=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
