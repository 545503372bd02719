"""Run a function over all buckets: in this process, in worker processes, or with Ray Data on many machines."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
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
        """Return the results in the order of the buckets.

        Args:
            name: name of the work, for its progress.
            work: function of a bucket's number; it and its result can be pickled.
        """


@dataclass(frozen=True)
class InThisProcess:
    """One bucket after the other, in this process."""

    buckets: int
    rows: int  # in all buckets; for the displayed rate

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        return _in_order(name, self.buckets, self.rows, ((bucket, work(bucket)) for bucket in range(self.buckets)))


@dataclass(frozen=True)
class InProcesses:
    """Several buckets at a time, each in a process of its own."""

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
                "a worker process must finish its bucket, but one was killed, perhaps for lack of memory; run the same "
                "command again with fewer --workers to resume"
            ) from error
        finally:
            for future in futures:
                future.cancel()


@dataclass(frozen=True)
class OnRay:
    """With Ray Data, on the cluster that `ray.init` finds. All its machines must see the same output folder."""

    buckets: int
    rows: int

    def __call__(self, name: str, work: Callable[[int], Any]) -> list[Any]:
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False  # `Progress` shows one
        numbers = ray.data.from_items([{"bucket": bucket} for bucket in range(self.buckets)])
        answers = numbers.repartition(self.buckets).map(_RunBucket(work)).iter_rows()
        done = ((row["bucket"], pickle.loads(row["answer"])) for row in answers)
        results = _in_order(name, self.buckets, self.rows, done)
        # Raise only after all tasks have ended: a task that is still writing would undo the cleanup after the error.
        for result in results:
            if isinstance(result, DataError):
                raise result
        return results


@contextmanager
def workers_for(buckets: int, rows: int, workers: int, ray: bool) -> Iterator[OverBuckets]:
    """Yield a callable that runs a function for every bucket.

    Args:
        buckets: number of buckets.
        rows: number of interactions in all buckets.
        workers: maximum number of processes; with one worker or one bucket, no process is started.
        ray: use Ray Data.

    Raises:
        DataError: Ray is requested but not installed.
    """
    if ray:
        _require_ray()
        yield OnRay(buckets, rows)
    elif min(workers, buckets) <= 1:
        yield InThisProcess(buckets, rows)
    else:
        # "spawn", because polars has threads and forking a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, buckets), mp_context=context, initializer=_end_with_parent) as pool:
            try:
                yield InProcesses(pool, buckets, rows)
            except KeyboardInterrupt:  # do not wait for the buckets in work; the next run does them again
                for worker in multiprocessing.active_children():
                    worker.kill()
                raise


def _in_order(name: str, buckets: int, rows: int, done: Iterator[tuple[int, Any]]) -> list[Any]:
    results: list[Any] = [None] * buckets
    with Progress(name, rows, "interactions") as progress:
        for finished, (bucket, result) in enumerate(done, start=1):
            results[bucket] = result
            progress.update(rows * finished // buckets)
    return results


class _RunBucket:
    """Maps a row with a bucket's number to a row with the function's result, or with its `DataError`."""

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
            f"--ray needs Ray Data, which cannot be imported ({error}); pip install 'r2rank-jax[data-ray]', or omit "
            f"--ray"
        ) from error


def _end_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would wait for work forever. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
