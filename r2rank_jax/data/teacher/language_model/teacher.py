"""The language model as teacher: asks for rationales, keeps every answer in a journal, and pays for each once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.data.teacher.language_model.asking import INTERRUPTED, Asker, ProgressLine
from r2rank_jax.data.teacher.language_model.batch import read_batch, write_batch
from r2rank_jax.data.teacher.language_model.endpoint import Endpoint, open_endpoint
from r2rank_jax.data.teacher.language_model.filters import REASONS, Filters, open_filters
from r2rank_jax.data.teacher.language_model.instructions import VERSION
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import Budget, Ledger
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.data.teacher.language_model.survey import Questions, Survey, survey
from r2rank_jax.data.teacher.protocol import Lesson, TeacherOutput
from r2rank_jax.errors import DataError

OFFLINE = "batch"
BLOCK_LISTS = 64  # a block is finished before the next one starts, so that a budget buys complete lists


class LanguageModel:
    """A language model behind an endpoint or a batch service; implements `Teacher`.

    Lists are drawn nested: a run with more lists asks again about those of a smaller run, whose answers are already in
    the journal.

    Args:
        settings: of the teacher.
        address: of the endpoint, or "batch".
        out: trace file; the journal is next to it unless `settings.journal` names another file.
        key: of the endpoint; "" for none.

    Raises:
        DataError: settings that contradict each other, or an address or key that cannot be used.
    """

    draws_nested_lists = True

    def __init__(self, settings: TeacherSettings, *, address: str, out: Path, key: str = ""):
        offline = address == OFFLINE
        if offline == (settings.batch_out is None and settings.batch_in is None):
            raise DataError(
                "--teacher batch needs --batch-out or --batch-in, and an address takes neither, got "
                f"--teacher {OFFLINE if offline else 'ADDRESS'}, --batch-out {settings.batch_out}, --batch-in "
                f"{settings.batch_in}; change --teacher, or add or remove these flags"
            )
        self._settings = settings
        self._endpoint = None if offline else open_endpoint(address, key, settings)
        self._filters = open_filters(settings)
        self._journal_path = settings.journal or out.with_name(out.name.removesuffix(".jsonl") + ".journal.jsonl")

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self._settings.model

    def rationales(self, lesson: Lesson) -> TeacherOutput:
        """Answer a lesson from the journal, and ask for what it lacks.

        Raises:
            DataError: a journal in use or damaged, or a batch file that cannot be read.
        """
        settings = self._settings
        questions, filters = Questions(lesson, settings), self._filters.branch()
        with Journal(self._journal_path) as journal:
            ledger = Ledger(Budget.of(settings), journal.past.reported, journal.past.unreported)
            _print_past(journal)
            if settings.batch_in is not None:
                counts = read_batch(settings.batch_in, questions.ceilings(), journal, ledger)
                print(f"{settings.batch_in}: {_listed(counts)}")
            if settings.batch_out is not None and _write_open(settings.batch_out, questions, journal, filters, ledger):
                return TeacherOutput()
            stopped = None if self._endpoint is None else _ask(self._endpoint, questions, journal, filters, ledger)
            result = survey(questions, range(len(lesson.lists)), journal.answers, filters)
        refused = _listed({reason: result.refused[reason] for reason in REASONS})
        print(f"teacher: {result.judged:,} answers judged; refused: {refused}")
        header = {"prompts": VERSION, "settings": settings.recorded(lesson.template.name)}
        dropped = f"{result.dropped.total():,} dropped ({_listed(result.dropped)})"
        return TeacherOutput(
            rationales=result.rationales,
            header=header | _accounts(result, ledger),
            remark=dropped,
            missing=_missing(result, len(lesson.lists), dropped, stopped),
            interrupted=stopped == INTERRUPTED,
        )


def _write_open(path: Path, questions: Questions, journal: Journal, filters: Filters, ledger: Ledger) -> bool:
    """Write the open requests for a batch; False if there are none."""
    result = survey(questions, range(len(questions.lists)), journal.answers, filters.branch())
    if not result.open:
        return False
    written = write_batch(path, result.open, ledger)
    left = len(result.open) - written
    limit = f"; the budget does not cover the other {left:,} requests" if left else ""
    print(f"{path}: {written:,} requests for {result.unfinished:,} lists{limit}")
    return True


def _ask(endpoint: Endpoint, questions: Questions, journal: Journal, filters: Filters, ledger: Ledger) -> str | None:
    """Ask block by block, and within a block again after each refused answer.

    Returns:
        What stopped the run early; None if every list is complete or dropped.
    """
    asker = Asker(endpoint, journal, ledger, questions.settings)
    count = len(questions.lists)
    blocks = [range(start, min(start + BLOCK_LISTS, count)) for start in range(0, count, BLOCK_LISTS)]
    preview = filters.branch()
    open_by_block = [len(survey(questions, rows, journal.answers, preview).open) for rows in blocks]
    print(f"teacher: {sum(open_by_block):,} requests to ask", file=sys.stderr, flush=True)
    progress = ProgressLine(asker)
    for index, rows in enumerate(blocks):
        while True:
            trial = filters.branch()
            open_requests = survey(questions, rows, journal.answers, trial).open
            waiting = [request for request in open_requests if request.key not in asker.outcome.given_up]
            if not waiting:
                break
            progress.left(len(waiting) + sum(open_by_block[index + 1 :]))
            if asker.ask_all(waiting, progress).stopped is not None:
                break
        filters = trial
        if asker.outcome.stopped is not None:
            break
    print(progress.line(), file=sys.stderr, flush=True)
    given_up = asker.outcome.given_up
    if asker.outcome.stopped is None and given_up:
        reasons = _listed(dict(Counter(given_up.values()).most_common(3)))
        return f"{len(given_up):,} requests brought no answer ({reasons})"
    return asker.outcome.stopped


def _missing(result: Survey, lists: int, dropped: str, stopped: str | None) -> str | None:
    if result.unfinished:
        return (
            f"{stopped or 'answers are missing'}; {result.unfinished:,} of {lists:,} lists are unfinished and "
            f"{len(result.open):,} requests are open; run the same command again to continue, or write the next batch "
            "with --batch-out"
        )
    return None if result.rationales else f"no list is complete, {dropped}"


def _accounts(result: Survey, ledger: Ledger) -> dict[str, Any]:
    """Counts of lists and answers, and their cost, for the header."""
    return {
        "lists_dropped": dict(result.dropped),
        "lists_unfinished": result.unfinished,
        "answers": result.judged,
        "answers_refused": {reason: result.refused[reason] for reason in REASONS},
        "tokens": {"prompt": ledger.reported.prompt, "completion": ledger.reported.completion},
        "tokens_unreported_at_most": {"prompt": ledger.unreported.prompt, "completion": ledger.unreported.completion},
        "usd_at_most": round(ledger.budget.cost(ledger.booked), 6),
    }


def _print_past(journal: Journal) -> None:
    if journal.repaired_bytes:
        print(
            f"{journal.path}: removed an incomplete last line of {journal.repaired_bytes} bytes",
            file=sys.stderr,
        )
    if journal.past.counts:
        print(f"{journal.path}: so far {_listed(journal.past.counts)}", file=sys.stderr, flush=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
