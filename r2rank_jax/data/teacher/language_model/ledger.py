"""What requests cost, and the budget that limits it.

The cost consists of reported usage, ceilings of unreported attempts, and reservations of requests in flight.

A request is admitted only if the budget covers it even when every request in flight, this one included, costs its
ceiling. The usage that an answer reports replaces the ceiling. An attempt that failed after the endpoint began to
answer may have been billed without a report, so it stays booked at its ceiling.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from r2rank_jax.data.teacher.language_model.settings import TeacherSettings

MESSAGE_OVERHEAD = 256  # tokens a chat template may add: roles, a default system prompt, the date


class Tokens(NamedTuple):
    """Numbers of prompt and completion tokens, which have different prices."""

    prompt: int = 0
    completion: int = 0

    def plus(self, other: Tokens, sign: int = 1) -> Tokens:
        """The sum, or the difference with sign -1."""
        return Tokens(self.prompt + sign * other.prompt, self.completion + sign * other.completion)

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion


NOTHING = Tokens()


def prompt_ceiling(texts: Iterable[str]) -> int:
    """Upper bound on the tokens of a prompt with these texts: each token is at least one byte of UTF-8."""
    return MESSAGE_OVERHEAD + sum(len(text.encode("utf-8", "replace")) for text in texts)


@dataclass(frozen=True)
class Budget:
    """Limits, and prices in US dollars per million tokens."""

    tokens: int | None = None
    usd: float | None = None
    prompt_usd: float = 0.0
    completion_usd: float = 0.0

    @classmethod
    def of(cls, settings: TeacherSettings) -> Budget:
        """The budget in the settings."""
        prices = (settings.prompt_usd or 0.0, settings.completion_usd or 0.0)
        return cls(settings.budget_tokens, settings.budget_usd, *prices)

    def cost(self, tokens: Tokens) -> float:
        """US dollars."""
        return (tokens.prompt * self.prompt_usd + tokens.completion * self.completion_usd) / 1e6

    def holds(self, tokens: Tokens) -> bool:
        """Whether this number of tokens is within both limits."""
        return (self.tokens is None or tokens.total <= self.tokens) and (
            self.usd is None or self.cost(tokens) <= self.usd
        )


class Ledger:
    """The costs of one journal; thread-safe."""

    def __init__(self, budget: Budget, reported: Tokens, unreported: Tokens):
        self.budget = budget
        self.reported = reported  # by answers
        self.unreported = unreported  # ceilings of attempts that may have been billed but reported no usage
        self.in_flight = NOTHING
        self._asking = 0
        self._changed = threading.Condition()

    @property
    def booked(self) -> Tokens:
        """Reported and unreported tokens, without those in flight."""
        return self.reported.plus(self.unreported)

    def admit(self, ceiling: Tokens, stop: threading.Event) -> bool:
        """Reserve a request's ceiling; waits while requests in flight may turn out cheaper than their ceilings.

        Returns:
            False if the budget cannot cover this request, or `stop` was set.
        """
        with self._changed:
            while not stop.is_set():
                if self.budget.holds(self.booked.plus(self.in_flight).plus(ceiling)):
                    self.in_flight = self.in_flight.plus(ceiling)
                    self._asking += 1
                    return True
                if not self._asking:
                    return False
                self._changed.wait(0.2)  # `stop` does not notify
            return False

    def settle(self, ceiling: Tokens, usage: Tokens | None = None, *, billed: bool = True) -> None:
        """Release a reservation and book the cost of its attempt, in one step."""
        with self._changed:
            self.in_flight = self.in_flight.plus(ceiling, -1)
            self._asking -= 1
            if billed:
                self.book(ceiling, usage)
            self._changed.notify_all()

    def book(self, ceiling: Tokens, usage: Tokens | None) -> None:
        """Book the usage that an answer reports, or the request's ceiling if it reports none."""
        with self._changed:
            if usage is None:
                self.unreported = self.unreported.plus(ceiling)
            else:
                self.reported = self.reported.plus(usage)
