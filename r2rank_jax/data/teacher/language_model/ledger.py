"""What requests cost: known, at most, and in flight; and the budget that none may exceed.

A request is admitted only if the budget holds even when every request in flight, this one included, costs the most
it can. What an answer reports replaces that ceiling. An attempt that broke after the endpoint began to answer may have
been billed, and nobody says how much: it stays in the books at its ceiling.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from r2rank_jax.data.teacher.language_model.settings import TeacherSettings

MESSAGE_OVERHEAD = 256  # tokens a chat template may add: roles, a default system prompt, the date


class Tokens(NamedTuple):
    """A number of tokens, by price."""

    prompt: int = 0
    completion: int = 0

    def plus(self, other: Tokens, sign: int = 1) -> Tokens:
        """The sum, or with sign -1 the difference."""
        return Tokens(self.prompt + sign * other.prompt, self.completion + sign * other.completion)

    @property
    def total(self) -> int:
        """Both kinds."""
        return self.prompt + self.completion


NOTHING = Tokens()


def prompt_ceiling(texts: Iterable[str]) -> int:
    """Most tokens that a prompt of these texts can have: a token of text is at least one byte of UTF-8."""
    return MESSAGE_OVERHEAD + sum(len(text.encode("utf-8", "replace")) for text in texts)


@dataclass(frozen=True)
class Budget:
    """Caps, and prices in US dollars per million tokens."""

    tokens: int | None = None
    usd: float | None = None
    prompt_usd: float = 0.0
    completion_usd: float = 0.0

    @classmethod
    def of(cls, settings: TeacherSettings) -> Budget:
        """The budget that the settings state."""
        prices = (settings.prompt_usd or 0.0, settings.completion_usd or 0.0)
        return cls(settings.budget_tokens, settings.budget_usd, *prices)

    def cost(self, tokens: Tokens) -> float:
        """US dollars."""
        return (tokens.prompt * self.prompt_usd + tokens.completion * self.completion_usd) / 1e6

    def holds(self, tokens: Tokens) -> bool:
        """Whether so much is within both caps."""
        return (self.tokens is None or tokens.total <= self.tokens) and (
            self.usd is None or self.cost(tokens) <= self.usd
        )


class Ledger:
    """Books of one journal; safe for many threads."""

    def __init__(self, budget: Budget, known: Tokens, unknown: Tokens):
        self.budget = budget
        self.known = known  # reported by answers
        self.unknown = unknown  # ceilings of attempts that may have been billed and reported nothing
        self.in_flight = NOTHING
        self._asking = 0
        self._changed = threading.Condition()

    @property
    def booked(self) -> Tokens:
        """Known and unknown, without what is in flight."""
        return self.known.plus(self.unknown)

    def admit(self, ceiling: Tokens, stop: threading.Event) -> bool:
        """Reserve a request's ceiling; waits while requests in flight may yet cost less than feared.

        Returns:
            False where the budget cannot hold this request, or `stop` was set.
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
        """Give a reservation back and, at the same moment, book what its attempt cost."""
        with self._changed:
            self.in_flight = self.in_flight.plus(ceiling, -1)
            self._asking -= 1
            if billed:
                self.book(ceiling, usage)
            self._changed.notify_all()

    def book(self, ceiling: Tokens, usage: Tokens | None) -> None:
        """Book what a request cost: what its answer reports, else its ceiling."""
        with self._changed:
            if usage is None:
                self.unknown = self.unknown.plus(ceiling)
            else:
                self.known = self.known.plus(usage)
