"""The same function over all buckets: here, in worker processes, or by Ray Data on many machines."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from r2rank_jax.errors import DataError
from r2rank_jax.files.progress import Progress
from r2rank_jax.files.seals import WorkersDied


class OverBuckets(Protocol):
    """Calls a function for every bucket."""

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        """The results, in the order of the buckets.

        Args:
            name: of the work, for its progress.
            work: takes a bucket's number; can be pickled, as its result can.
        """


@dataclass(frozen=True)
class Here:
    """One bucket after the other, in this process."""

    buckets: int
    rows: int  # of all buckets; for the rate shown

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        return _in_order(name, self.buckets, self.rows, ((bucket, work(bucket)) for bucket in range(self.buckets)))


@dataclass(frozen=True)
class InProcesses:
    """Several buckets at a time, each in a process."""

    pool: ProcessPoolExecutor
    buckets: int
    rows: int

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        futures = {self.pool.submit(work, bucket): bucket for bucket in range(self.buckets)}
        try:
            done = ((futures[future], future.result()) for future in as_completed(futures))
            return _in_order(name, self.buckets, self.rows, done)
        except BrokenProcessPool as error:
            raise WorkersDied(
                "a worker process must live to the end of its bucket, and one was killed, perhaps for memory; run the "
                "same command again to go on, with fewer --workers"
            ) from error
        finally:
            for future in futures:
                future.cancel()


@dataclass(frozen=True)
class OnRay:
    """By Ray Data, on whatever cluster `ray.init` finds; the output folder must be the same on all its machines."""

    buckets: int
    rows: int

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False  # there is our own
        numbers = ray.data.from_items([{"bucket": bucket} for bucket in range(self.buckets)])
        answers = numbers.repartition(self.buckets).map(_Answer(work)).iter_rows()
        done = ((row["bucket"], pickle.loads(row["answer"])) for row in answers)
        results = _in_order(name, self.buckets, self.rows, done)
        # Not before all have ended: a task that still writes would undo the clearing up after the error.
        for result in results:
            if isinstance(result, DataError):
                raise result
        return results


@contextmanager
def workers_for(buckets: int, rows: int, workers: int, ray: bool) -> Iterator[OverBuckets]:
    """Yield what calls a function for every bucket.

    Args:
        buckets: how many there are.
        rows: interactions in all of them.
        workers: most processes to start; with one of them, or one bucket, none is started.
        ray: leave it to Ray.

    Raises:
        DataError: Ray is asked for and not installed.
    """
    if ray:
        _require_ray()
        yield OnRay(buckets, rows)
    elif min(workers, buckets) <= 1:
        yield Here(buckets, rows)
    else:
        # "spawn": polars has threads, and a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, buckets), mp_context=context, initializer=_end_with_parent) as pool:
            yield InProcesses(pool, buckets, rows)


def _in_order(name: str, buckets: int, rows: int, done: Iterator[tuple[int, Any]]) -> list[Any]:
    results: list[Any] = [None] * buckets
    with Progress(name, rows, "interactions") as progress:
        for finished, (bucket, result) in enumerate(done, start=1):
            results[bucket] = result
            progress.update(rows * finished // buckets)
    return results


class _Answer:
    """A bucket's row -> its row with what the function returned, or the error that explains itself."""

    def __init__(self, work: Callable[[int], Any]):
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self._work(int(row["bucket"]))
        except DataError as error:
            result = error
        return {"bucket": row["bucket"], "answer": pickle.dumps(result)}


def _require_ray() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"--ray needs Ray Data, and it cannot be imported ({error}); pip install 'r2rank-jax[data-ray]', or leave "
            f"--ray out"
        ) from error


def _end_with_parent() -> None:
    """A killed parent cannot end its workers; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
