"""Concurrent requests: threads that ask, wait before retries, and stop together."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from r2rank_jax.data.teacher.language_model.answers import Answer
from r2rank_jax.data.teacher.language_model.endpoint import AskError
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import Ledger, Tokens
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings

MAX_BACKOFF_S = 60.0
MAX_WAIT_S = 600.0  # if the endpoint asks for a longer pause, the run stops
FAILURES_IN_A_ROW = 20  # requests given up without an answer in between; the cause probably affects all requests
PROGRESS_S = 5.0
INTERRUPTED = "interrupted"
"""Why an interrupted run stopped."""


@dataclass(frozen=True)
class ChatRequest:
    """One request to the teacher."""

    key: str  # hash of everything that the answer depends on
    body: dict[str, Any]
    ceiling: Tokens  # the most it can cost


class Asks(Protocol):
    """An endpoint, or a stub in its place."""

    def ask(self, body: dict[str, Any]) -> Answer:
        """The answer to one body; raises AskError."""


@dataclass
class Outcome:
    """The results of some requests."""

    answered: int = 0
    retries: int = 0
    given_up: dict[str, str] = field(default_factory=dict)  # key -> reason, after all attempts
    stopped: str | None = None  # why some requests were not sent; None if all were


class Asker:
    """Sends requests to one endpoint, within one budget, and records them in one journal.

    Args:
        endpoint: to ask.
        journal: records every request, failure and answer.
        ledger: the journal's costs.
        settings: concurrency, attempts, back-off.
    """

    def __init__(self, endpoint: Asks, journal: Journal, ledger: Ledger, settings: TeacherSettings):
        self.endpoint, self.journal, self.ledger, self.settings = endpoint, journal, ledger, settings
        self.outcome = Outcome()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._error: BaseException | None = None

    def ask_all(self, requests: Sequence[ChatRequest], progress: Callable[[], None] = lambda: None) -> Outcome:
        """Ask until every request is answered or given up, or the run has to stop.

        Ctrl-C, or SIGTERM to the command, waits for the requests in flight.

        Args:
            requests: without an answer so far, each key once.
            progress: called a few times a second.

        Returns:
            The outcome of all calls so far.

        Raises:
            DataError: the journal could not be written.
            KeyboardInterrupt: Ctrl-C was pressed again during the wait.
        """
        waiting = iter(requests)
        count = min(self.settings.concurrency, len(requests))
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            self._wait(threads, progress)
        except KeyboardInterrupt:
            self._halt(INTERRUPTED)
            print("teacher: waiting for the requests in flight; press Ctrl-C again to abandon them", file=sys.stderr)
            self._wait(threads, progress)
        if self._error is not None:
            raise self._error
        return self.outcome

    def _wait(self, threads: Sequence[threading.Thread], progress: Callable[[], None]) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                progress()

    def _work(self, waiting: Iterator[ChatRequest]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    request = next(waiting, None)
                if request is None:
                    return
                self._ask(request)
        except BaseException as error:
            self._error = error
            self._halt("an error")

    def _ask(self, request: ChatRequest) -> None:
        """Make all attempts at one request."""
        for attempt in range(1, self.settings.attempts + 1):
            if not self.ledger.admit(request.ceiling, self._stop):
                if not self._stop.is_set():
                    self._halt("the budget is reached")
                return
            error = self._attempt(request)
            if error is None:
                return
            if error.remedy:
                self._halt(f"the endpoint answers {error}; check {error.remedy}")
                return
            if not error.retry or attempt == self.settings.attempts:
                self._give_up(request, error)
                return
            if error.after_s > MAX_WAIT_S:
                self._halt(f"the endpoint accepts no request for {error.after_s:.0f} s; try again after that")
                return
            with self._lock:
                self.outcome.retries += 1
            longest = min(MAX_BACKOFF_S, self.settings.backoff_s * 2 ** (attempt - 1))
            self._stop.wait(error.after_s + random.uniform(0, longest))

    def _attempt(self, request: ChatRequest) -> AskError | None:
        self.journal.asked(request.key, request.ceiling)
        try:
            answer = self.endpoint.ask(request.body)
        except AskError as error:
            self.journal.failed(request.key, error.reason, error.billed)
            self.ledger.settle(request.ceiling, billed=error.billed)
            return error
        self.journal.answered(request.key, answer)
        self.ledger.settle(request.ceiling, answer.usage)
        with self._lock:
            self.outcome.answered += 1
            self._failures_in_a_row = 0
        return None

    def _give_up(self, request: ChatRequest, error: AskError) -> None:
        with self._lock:
            self.outcome.given_up[request.key] = str(error)
            self._failures_in_a_row += 1
            too_many = self._failures_in_a_row >= FAILURES_IN_A_ROW
        if too_many:
            self._halt(f"{FAILURES_IN_A_ROW} requests in a row brought no answer, the last with {error}")

    def _halt(self, reason: str) -> None:
        with self._lock:
            if self.outcome.stopped is None:
                self.outcome.stopped = reason
        self._stop.set()


class ProgressLine:
    """A line on stderr every few seconds: answers, rate, retries, cost, and remaining time."""

    def __init__(self, asker: Asker):
        self._asker, self._total = asker, 0
        self._start = self._last = time.monotonic()

    def left(self, requests: int) -> None:
        """Set the number of remaining requests. It is an estimate: each refused answer adds a request."""
        self._total = self._done() + requests

    def _done(self) -> int:
        return self._asker.outcome.answered + len(self._asker.outcome.given_up)

    def __call__(self) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float | None = None) -> str:
        """The state in one line."""
        outcome, ledger = self._asker.outcome, self._asker.ledger
        rate = outcome.answered / max(1e-9, (time.monotonic() if now is None else now) - self._start)
        left = max(0, self._total - self._done())
        eta = f"{left / rate / 60:.0f} min" if rate else "unknown"
        spent = ledger.booked
        return (
            f"teacher: {outcome.answered:,} of {self._total:,} answers, {rate:.1f}/s, {outcome.retries:,} retries, "
            f"{spent.prompt:,} + {spent.completion:,} tokens, ${ledger.budget.cost(spent):.2f}, {eta} to go"
        )
