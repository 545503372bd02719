"""The same function over all buckets: here, in worker processes, or by Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from r2rank_jax.data.sealing import WorkersDied

OverBuckets = Callable[[Callable[[int], Any]], list[Any]]  # results in the order of the buckets


@contextmanager
def processes(workers: int, buckets: int) -> Iterator[OverBuckets]:
    """Yield a function that calls another one for every bucket, in at most `workers` processes.

    One process, or one bucket, needs no other process than this one.

    Args:
        workers: at least 1.
        buckets: how many there are.
    """
    if min(workers, buckets) == 1:
        yield lambda work: [work(bucket) for bucket in range(buckets)]
        return
    # "spawn": polars has threads, and a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, buckets), mp_context=context, initializer=_end_with_parent) as pool:

        def over_buckets(work: Callable[[int], Any]) -> list[Any]:
            futures = [pool.submit(work, bucket) for bucket in range(buckets)]
            try:
                return [future.result() for future in futures]
            except BrokenProcessPool as error:
                raise WorkersDied(
                    "a worker process must live to the end of its bucket, and one was killed, perhaps for memory; run "
                    "the same command again to go on, with fewer --workers or a smaller --bucket-rows"
                ) from error
            finally:
                for future in futures:
                    future.cancel()

        yield over_buckets


def _end_with_parent() -> None:
    """A killed parent cannot end its workers; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
