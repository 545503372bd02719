"""Grain iterators over batches of lists: infinite, shuffled, the same on every machine, resumable at any
step.

Every process walks the same sequence of global batches, takes its own contiguous rows of each and encodes
only those. So the number of processes changes who does the work and never what is learned. A list is never split, and a
batch is a function of its number alone: worker processes share the numbers out, and the state is the next number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.batches.length_buckets import Bucketed, Lengths, narrowed
from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prepared.splits import NONE
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prepared.traces import Traces
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch, Rationales

# One thread reads ahead; more than one only takes the interpreter's lock from the training loop.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
_BATCHES = 1 << 40  # of an endless sequence; grain counts them

T = TypeVar("T")


class Batches(Generic[T]):
    """An endless iterator over numbered batches whose state is the number of the next one.

    Args:
        batch: from a batch's number to the batch; must not depend on anything else.
        workers: processes that work ahead; 0 = one thread of this process. The batches are the same.
    """

    def __init__(self, batch: Callable[[int], T], workers: int = 0):
        if workers < 0:
            raise DataError(f"workers must be at least 0 (a thread), got {workers}; set compute.data_workers to 0")
        self._batch, self._workers = batch, workers
        self._next = 0
        self._running: grain.DatasetIterator | None = None  # starts at the first batch, once the state is known

    def __iter__(self) -> Batches[T]:
        return self

    def __next__(self) -> T:
        if self._running is None:
            self._running = self._start()
        found = next(self._running)
        self._next += 1
        # Workers hand arrays over in shared memory, which whoever keeps a batch would hold.
        return jax.tree.map(np.array, found) if self._workers else found

    def get_state(self) -> dict[str, int]:
        """A JSON object, the same for any number of workers."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on with exactly the batch that was due when `get_state` returned this."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """End the workers; the next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> grain.DatasetIterator:
        numbers = grain.MapDataset.range(self._next, self._next + _BATCHES)
        batches = numbers.map(self._batch).to_iter_dataset(_READ)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags, which only absl's own `app` parses
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(batches)


def trace_batches(
    traces: Traces,
    encoder: Encoder,
    *,
    batch_users: int,
    seed: int,
    process_index: int | Sequence[int] = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches[tuple[ListBatch, Rationales]]:
    """Lists with the teacher's rationales, for SFT.

    Args:
        traces: as `read_traces` returns them.
        encoder: of the same data set.
        batch_users: U of the global batch.
        seed: of the order.
        process_index: which contiguous part of every batch this process takes, or which parts, ascending.
        process_count: parts; must divide `batch_users`.
        workers: processes that encode ahead; 0 = a thread.

    Returns:
        An infinite iterator of (ListBatch, Rationales with G = 1) of numpy arrays; `get_state()` is a JSON
        object, and after `set_state` the next batch is exactly the one that was due.
    """
    tokens, length, stopped = encoder.encode_rationales(traces.rationales)

    def draw(rows: Array, _: Array) -> CandidateLists:
        return traces.lists.take(rows)

    def encode(lists: CandidateLists, rows: Array) -> tuple[ListBatch, Rationales]:
        said = Rationales(tokens=tokens[rows], length=length[rows], stopped=stopped[rows])
        return encoder.encode_lists(lists), said

    lengths = Lengths(encoder, length[..., 0].max(axis=1))
    return _batches(len(traces), draw, encode, lengths, batch_users, seed, process_index, process_count, workers)


def list_batches(
    dataset: Dataset,
    encoder: Encoder,
    *,
    batch_users: int,
    candidate_items: int,
    seed: int,
    positives: int = 1,
    min_history: int | None = None,
    process_index: int | Sequence[int] = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches[ListBatch]:
    """All training lists, with fresh negatives every epoch, for RL.

    Args:
        dataset: to draw lists from.
        encoder: of the same data set.
        batch_users: U of the global batch. A user may appear more than once, at different positions.
        candidate_items: N.
        seed: of the order and of the negatives.
        positives: relevant items of a list, the user's next ones; the rest are negatives.
        min_history: interactions before a positive; the encoder's `min_history` by default.
        process_index: which contiguous part of every batch this process takes, or which parts, ascending.
        process_count: parts; must divide `batch_users`.
        workers: processes that draw and encode ahead; 0 = a thread.

    Returns:
        An infinite iterator of ListBatch of numpy arrays, resumable like `trace_batches`.
    """
    pairs = dataset.train_lists(encoder.config.min_history if min_history is None else min_history)

    def draw(rows: Array, epochs: Array) -> CandidateLists:
        keys = [(seed << 32) | int(epoch) for epoch in epochs]
        return dataset.training_lists(pairs[rows], key=keys, n=candidate_items, positives=positives)

    def encode(lists: CandidateLists, _: Array) -> ListBatch:
        return encoder.encode_lists(lists)

    lengths = Lengths(encoder)
    return _batches(len(pairs), draw, encode, lengths, batch_users, seed, process_index, process_count, workers)


def evaluation_batches(
    dataset: Dataset,
    encoder: Encoder,
    name: str,
    *,
    batch_users: int,
    users: Sequence[int] | None = None,
    process_index: int | Sequence[int] = 0,
    process_count: int = 1,
) -> Iterator[ListBatch]:
    """The frozen lists in order of user, each exactly once.

    Args:
        dataset: whose frozen lists.
        encoder: of the same data set.
        name: "valid" or "test".
        batch_users: U of every global batch. The last is filled with rows whose user is -1 and whose mask is
            False.
        users: only these users; all by default.
        process_index: which contiguous part of every batch this process takes, or which parts, ascending.
        process_count: parts; must divide `batch_users`.

    Yields:
        ListBatch of numpy arrays.
    """
    mine = _rows_of(batch_users, process_index, process_count)
    lists = dataset.candidate_lists(name)
    chosen = np.arange(len(lists)) if users is None else np.flatnonzero(np.isin(lists.user, np.asarray(users)))
    for start in range(0, len(chosen), batch_users):
        rows = chosen[start : start + batch_users]
        missing = batch_users - len(rows)
        # Padding rows repeat a real list, so that no row is degenerate; user and mask say that it does not
        # count.
        padded = np.concatenate([rows, np.full(missing, rows[-1])])
        real = (np.arange(batch_users) < len(rows))[mine]
        batch = encoder.encode_lists(lists.take(padded[mine]))
        changed: dict[str, Any] = dict(
            user=np.where(real, batch.user, NONE).astype(np.int32),
            labels=np.where(real[:, None], batch.labels, 0).astype(np.float32),
            mask=np.asarray(batch.mask) & real[:, None],
        )
        yield dataclasses.replace(batch, **changed)


def _batches(
    size: int,
    draw: Callable[[Array, Array], CandidateLists],
    encode: Callable[[CandidateLists, Array], T],
    lengths: Lengths,
    batch_users: int,
    seed: int,
    process_index: int | Sequence[int],
    process_count: int,
    workers: int,
) -> Batches[T]:
    """Shuffled, repeated and batched as global indices first; only then sliced, drawn and encoded."""
    mine = _rows_of(batch_users, process_index, process_count)
    # drop_remainder: an endless sequence has none, and counting one overflows grain's length for batches of
    # 1.
    indices = grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch_users, drop_remainder=True)

    def plain(number: int) -> tuple[Array, Array]:
        # Rows of batch b are places b·U ... of the endless sequence, and `size` places make an epoch.
        return np.asarray(indices[number]), (number * batch_users + np.arange(batch_users)) // size

    def batch(number: int) -> T:
        rows, epochs = (each[mine] for each in plain(number))
        return encode(draw(rows, epochs), rows)

    bucketed = Bucketed(plain, draw, lengths, seed)

    def batch_of_alike(number: int) -> T:
        (rows, epochs), widths = bucketed(number)
        return narrowed(encode(draw(rows[mine], epochs[mine]), rows[mine]), widths)

    return Batches(batch_of_alike if lengths.buckets > 1 else batch, workers)


def _rows_of(batch_users: int, process_index: int | Sequence[int], process_count: int) -> Array:
    mine = [process_index] if isinstance(process_index, int) else list(process_index)
    if not all(0 <= part < process_count for part in mine) or batch_users < 1 or batch_users % process_count:
        raise DataError(
            f"batch_users={batch_users} must be a positive multiple of process_count={process_count}, and "
            f"process_index in [0, {process_count}), got {process_index}; set batch_users to a multiple of "
            f"{process_count}"
        )
    return np.arange(batch_users).reshape(process_count, -1)[mine].ravel()
