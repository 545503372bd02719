"""The processes of a job talking to each other with time limits, without devices.

They exchange small JSON values through the coordination service of `jax.distributed`. A collective would hang if a
process were missing, and could not say which.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from r2rank_jax.cluster import messages
from r2rank_jax.errors import R2RankError

T = TypeVar("T")
LEAST_WAIT_S = 0.5
"""Even behind the deadline, an answer that is there already is read."""


class LostProcessError(R2RankError, RuntimeError):
    """Another process of the job did not answer in time."""


class Processes:
    """This process among those of the job.

    Attributes:
        index: of this process.
        count: of all processes.
        limit_s: seconds that an answer of another process may take.
    """

    def __init__(self, client: Any, index: int, count: int, limit_s: float):
        """Use `of_this_job` outside of tests; `client` is None in a job of one process."""
        self._client = client
        self.index = index
        self.count = count
        self.limit_s = limit_s

    @classmethod
    def of_this_job(cls, limit_s: float) -> Processes:
        """The processes that `jax.distributed` has joined, or this one alone. Starts no device."""
        return cls(messages.client(), messages.process(), messages.processes(), limit_s)

    def gather(self, name: str, value: Any) -> dict[int, Any]:
        """Bring a JSON value of every process to process 0; all processes must call this.

        Args:
            name: unique among all calls.
            value: of this process.

        Returns:
            On process 0: process -> value, without processes that did not answer within the limit. Elsewhere: only the
            own value.
        """
        answers = {self.index: value}
        if self._client is None:
            return answers
        if self.index != 0:
            self._set(_key(name, self.index), json.dumps(value))
            return answers
        deadline = time.monotonic() + self.limit_s
        for process in range(1, self.count):
            answer = self._get(_key(name, process), deadline - time.monotonic())
            if answer is not None:
                answers[process] = json.loads(answer)
        return answers

    def share(self, name: str, value: Any = None) -> Any:
        """Give a JSON value of process 0 to every process; all processes must call this.

        Raises:
            LostProcessError: process 0 did not give it within twice the limit, as it may wait for others before.
        """
        if self._client is None:
            return value
        if self.index == 0:
            self._set(_key(name, 0), json.dumps(value))
            return value
        answer = self._get(_key(name, 0), 2 * self.limit_s)
        if answer is None:
            raise LostProcessError(
                f"process 0 must answer within {2 * self.limit_s:g} s, process {self.index} got no answer about "
                f"{name!r}; look at what process 0 printed, or raise --limit-s"
            )
        return json.loads(answer)

    def meet(self, name: str) -> None:
        """Wait until every process is here.

        Raises:
            LostProcessError: one did not come within the limit.
        """
        if self._client is None:
            return
        try:
            self._client.wait_at_barrier(_key(name, 0), int(1000 * self.limit_s))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise LostProcessError(
                f"every process must come to {name!r} within {self.limit_s:g} s, got {reason:.200}; look at the "
                "processes that are missing, or raise --limit-s"
            ) from error

    def _set(self, key: str, value: str) -> None:
        try:
            within(self.limit_s, lambda: self._client.key_value_set(key, value))
        except TimeoutError as error:
            raise LostProcessError(
                f"process 0, which holds the coordination service, must take a message within {self.limit_s:g} s, "
                f"process {self.index} got no answer; look at what process 0 printed"
            ) from error

    def _get(self, key: str, wait_s: float) -> str | None:
        wait_s = max(wait_s, LEAST_WAIT_S)
        try:
            # The service keeps the time limit, and a service whose process is stopped keeps none.
            return within(wait_s + LEAST_WAIT_S, lambda: self._client.blocking_key_value_get(key, int(1000 * wait_s)))
        except (RuntimeError, TimeoutError):  # JAX's for the time limit, and for a service that has ended
            return None


def within(limit_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own.

    Raises:
        TimeoutError: it takes longer; the thread goes on, because a wait inside a library cannot be interrupted.
        Exception: what `work` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def carry_out() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again below, where it can be caught
            errors.append(error)

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"took longer than {limit_s:.0f} s")
    return results[0]


def _key(name: str, process: int) -> str:
    return f"r2rank/doctor/{name}/{process}"
