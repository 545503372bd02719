"""Which requests the lists need, and what the answers so far are worth: a function of the journal alone.

A candidate has up to `draws` answers; the first that passes the filters is its rationale. Where a candidate's draws are
used up, its list is dropped, and nothing more is asked for it: a list with holes cannot be ranked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prompts.from_dataset import prefix_of, suffixes_of
from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.data.teacher.asking import Request
from r2rank_jax.data.teacher.filters import Filters
from r2rank_jax.data.teacher.instructions import Rationale, messages
from r2rank_jax.data.teacher.ledger import Tokens, prompt_ceiling
from r2rank_jax.data.teacher.settings import TeacherSettings


@dataclass(frozen=True)
class Candidate:
    """One item of one list, as the pupil reads it."""

    prefix: str
    suffix: str
    label: bool

    @property
    def shown(self) -> str:
        """All that both teacher and pupil see."""
        return f"{self.prefix}{self.suffix}"


@dataclass
class Survey:
    """The state of some lists."""

    rationales: dict[int, list[str]] = field(default_factory=dict)  # row -> [N], of complete lists
    open: list[Request] = field(default_factory=list)  # to be asked next, list by list, no key twice
    unfinished: int = 0  # lists that wait for an answer
    dropped: Counter[str] = field(default_factory=Counter)  # lists, by the reason against their first lost candidate
    refused: Counter[str] = field(default_factory=Counter)  # answers, by reason
    judged: int = 0  # answers


class Lesson:
    """Lists and the settings under which the teacher is asked about them.

    Args:
        dataset: whose items and histories are shown.
        lists: training lists.
        settings: of the teacher.
        history_items: interactions shown, as in the pupil's prompt.
    """

    def __init__(self, dataset: Dataset, lists: CandidateLists, settings: TeacherSettings, history_items: int):
        self.dataset, self.lists, self.settings, self.history_items = dataset, lists, settings, history_items
        self._template = find_template(settings.template)
        self._fields = settings.body_fields()
        self._limit = settings.token_limit()

    def candidates(self, row: int) -> list[Candidate]:
        """The N candidates of a list."""
        lists = self.lists
        user, position = int(lists.user[row]), int(lists.position[row])
        prefix = prefix_of(self.dataset, user, position, self.history_items, self._template)
        suffixes = suffixes_of(self.dataset, lists.items[row].tolist(), self._template)
        return [Candidate(prefix, suffix, label > 0) for suffix, label in zip(suffixes, lists.labels[row].tolist())]

    def request(self, candidate: Candidate, draw: int) -> Request:
        """What is asked about a candidate for the `draw`-th time, counted from 0."""
        show = self.settings.show_label == "always" or (self.settings.show_label == "retry" and draw > 0)
        said = messages(
            candidate.prefix,
            candidate.suffix,
            words=self.settings.rationale_words,
            label=candidate.label if show else None,
        )
        body = self._fields | {"messages": said}
        if "seed" in body:  # else all draws would be the same
            body["seed"] += draw
        identity = json.dumps({"body": body, "draw": draw}, sort_keys=True, separators=(",", ":"))
        ceiling = Tokens(prompt_ceiling(message["content"] for message in said), self._limit)
        return Request(hashlib.sha256(identity.encode("ascii")).hexdigest()[:32], body, ceiling)

    def ceilings(self) -> dict[str, Tokens]:
        """Key and ceiling of every request that this lesson may ever need."""
        requests = (
            self.request(candidate, draw)
            for row in range(len(self.lists))
            for candidate in self.candidates(row)
            for draw in range(self.settings.draws)
        )
        return {request.key: request.ceiling for request in requests}


def survey(lesson: Lesson, rows: Iterable[int], answers: Mapping[str, str], filters: Filters) -> Survey:
    """Judge the answers to some lists, in order.

    Args:
        lesson: the lists.
        rows: which of them.
        answers: request key -> content, of the journal.
        filters: judge the answers and remember what they kept.
    """
    found = Survey()
    keys: set[str] = set()
    for row in rows:
        texts: list[str] = []
        waiting: list[Request] = []
        lost = ""
        for candidate in lesson.candidates(row):
            verdict = _first_fit(lesson, candidate, answers, filters, found)
            if isinstance(verdict, Request):
                waiting.append(verdict)
            elif isinstance(verdict, Rationale):
                texts.append(verdict.text)
            else:
                lost = lost or verdict
        if lost:
            found.dropped[lost] += 1
        elif waiting:
            found.unfinished += 1
            found.open += [request for request in waiting if request.key not in keys]
            keys.update(request.key for request in waiting)
        else:
            found.rationales[row] = texts
    return found


def _first_fit(
    lesson: Lesson, candidate: Candidate, answers: Mapping[str, str], filters: Filters, found: Survey
) -> Rationale | Request | str:
    """The first answer that passes, the request that has none yet, or the reason against the last answer."""
    verdict: Rationale | str = ""
    for draw in range(lesson.settings.draws):
        request = lesson.request(candidate, draw)
        if request.key not in answers:
            return request
        verdict = filters.judge(answers[request.key], label=candidate.label, shown=candidate.shown)
        found.judged += 1
        if isinstance(verdict, Rationale):
            return verdict
        found.refused[verdict] += 1
    return verdict
