"""Which requests the lists still need, and which of the answers so far pass the filters.

Both depend on the journal alone. A candidate has up to `draws` answers; the first one that passes the filters becomes
its rationale. If all draws of a candidate are refused, its list is dropped and no more requests are made for it,
because a list with a missing rationale cannot be ranked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from r2rank_jax.data.prompts.from_dataset import prefix_of, suffixes_of
from r2rank_jax.data.teacher.language_model.asking import ChatRequest
from r2rank_jax.data.teacher.language_model.filters import Filters
from r2rank_jax.data.teacher.language_model.instructions import Rationale, messages
from r2rank_jax.data.teacher.language_model.ledger import Tokens, prompt_ceiling
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.data.teacher.protocol import Lesson


@dataclass(frozen=True)
class CandidatePrompt:
    """One item of one list, as the student reads it."""

    prefix: str
    suffix: str
    label: bool

    @property
    def shown(self) -> str:
        """The text that both teacher and student see."""
        return f"{self.prefix}{self.suffix}"


@dataclass
class Survey:
    """The state of some lists."""

    rationales: dict[int, list[str]] = field(default_factory=dict)  # row -> [N], of complete lists
    open: list[ChatRequest] = field(default_factory=list)  # to be asked next, list by list, each key once
    unfinished: int = 0  # lists that wait for an answer
    dropped: Counter[str] = field(default_factory=Counter)  # lists, by the refusal of their first failed candidate
    refused: Counter[str] = field(default_factory=Counter)  # answers, by reason
    judged: int = 0  # answers


class Questions:
    """The requests that a lesson needs under some settings.

    Args:
        lesson: lists, and how the student sees them.
        settings: of the teacher.
    """

    def __init__(self, lesson: Lesson, settings: TeacherSettings):
        self.lesson, self.lists, self.settings = lesson, lesson.lists, settings
        self._fields = settings.body_fields()
        self._limit = settings.token_limit()

    def candidates(self, row: int) -> list[CandidatePrompt]:
        """The N candidates of a list."""
        lesson, lists = self.lesson, self.lists
        user, position = int(lists.user[row]), int(lists.position[row])
        prefix = prefix_of(lesson.dataset, user, position, lesson.history_items, lesson.template)
        suffixes = suffixes_of(lesson.dataset, lists.items[row].tolist(), lesson.template)
        labels = lists.labels[row].tolist()
        return [CandidatePrompt(prefix, suffix, label > 0) for suffix, label in zip(suffixes, labels)]

    def request(self, candidate: CandidatePrompt, draw: int) -> ChatRequest:
        """The request for a candidate's answer number `draw`, counted from 0."""
        show = self.settings.show_label == "always" or (self.settings.show_label == "retry" and draw > 0)
        conversation = messages(
            candidate.prefix,
            candidate.suffix,
            words=self.settings.rationale_words,
            label=candidate.label if show else None,
        )
        body = self._fields | {"messages": conversation}
        if "seed" in body:  # with one seed all draws would be the same
            body["seed"] += draw
        identity = json.dumps({"body": body, "draw": draw}, sort_keys=True, separators=(",", ":"))
        ceiling = Tokens(prompt_ceiling(message["content"] for message in conversation), self._limit)
        return ChatRequest(hashlib.sha256(identity.encode("ascii")).hexdigest()[:32], body, ceiling)

    def ceilings(self) -> dict[str, Tokens]:
        """Key and ceiling of every request that this lesson may need."""
        requests = (
            self.request(candidate, draw)
            for row in range(len(self.lists))
            for candidate in self.candidates(row)
            for draw in range(self.settings.draws)
        )
        return {request.key: request.ceiling for request in requests}


def survey(questions: Questions, rows: Iterable[int], answers: Mapping[str, str], filters: Filters) -> Survey:
    """Judge the answers to some lists, in order.

    Args:
        questions: about the lists.
        rows: of the lists to judge.
        answers: request key -> content, from the journal.
        filters: judge the answers and remember those they accepted.
    """
    result = Survey()
    keys: set[str] = set()
    for row in rows:
        texts: list[str] = []
        waiting: list[ChatRequest] = []
        first_refusal = ""
        for candidate in questions.candidates(row):
            verdict = _first_accepted(questions, candidate, answers, filters, result)
            if isinstance(verdict, ChatRequest):
                waiting.append(verdict)
            elif isinstance(verdict, Rationale):
                texts.append(verdict.text)
            else:
                first_refusal = first_refusal or verdict
        if first_refusal:
            result.dropped[first_refusal] += 1
        elif waiting:
            result.unfinished += 1
            result.open += [request for request in waiting if request.key not in keys]
            keys.update(request.key for request in waiting)
        else:
            result.rationales[row] = texts
    return result


def _first_accepted(
    questions: Questions, candidate: CandidatePrompt, answers: Mapping[str, str], filters: Filters, result: Survey
) -> Rationale | ChatRequest | str:
    """The first answer that passes, the first request without an answer, or the reason the last answer was refused."""
    verdict: Rationale | str = ""
    for draw in range(questions.settings.draws):
        request = questions.request(candidate, draw)
        if request.key not in answers:
            return request
        verdict = filters.judge(answers[request.key], label=candidate.label, shown=candidate.shown)
        result.judged += 1
        if isinstance(verdict, Rationale):
            return verdict
        result.refused[verdict] += 1
    return verdict
