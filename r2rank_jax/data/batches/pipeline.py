"""Grain iterators over batches of lists: infinite, shuffled, the same on every machine, and resumable at any step.

Every process iterates over the same sequence of global batches, takes its own contiguous rows of each batch and encodes
only those. The number of processes therefore does not affect what is learned. A list is never split. A batch depends
only on its number: worker processes divide the numbers among themselves, and the state is the next number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from r2rank_jax import stopping
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.batches.length_buckets import Bucketed, Lengths, narrowed
from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prepared.splits import NONE
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prepared.traces import Traces
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch, Rationales

# One thread reads ahead. More threads would only compete with the training loop for the interpreter's lock.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
_BATCHES = 1 << 40  # stands for an infinite number of batches, because Grain needs a length

T = TypeVar("T")


class Batches(Generic[T]):
    """An infinite iterator over numbered batches. Its state is the number of the next batch.

    Args:
        batch: maps a batch's number to the batch; must not depend on anything else.
        workers: number of processes that prepare batches ahead; 0 = one thread of this process. The batches are the
            same for any number.
    """

    def __init__(self, batch: Callable[[int], T], workers: int = 0):
        if workers < 0:
            raise DataError(f"workers must be at least 0 (one thread), got {workers}; set compute.data_workers to 0")
        self._batch, self._workers = batch, workers
        self._next = 0
        self._running: grain.DatasetIterator | None = None  # starts at the first batch, once the state is known

    def __iter__(self) -> Batches[T]:
        return self

    def __next__(self) -> T:
        if self._running is None:
            self._running = self._start()
        batch = next(self._running)
        self._next += 1
        # Workers pass arrays in shared memory. Copy them, or a batch that is kept would keep that memory allocated.
        return jax.tree.map(np.array, batch) if self._workers else batch

    def get_state(self) -> dict[str, int]:
        """The state as a JSON object. It does not depend on the number of workers."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with the batch that was next when `get_state` returned `state`."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """Stop the workers; requesting another batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> grain.DatasetIterator:
        numbers = grain.MapDataset.range(self._next, self._next + _BATCHES)
        batches = numbers.map(self._batch).to_iter_dataset(_READ)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which only `absl.app` parses
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(options, stopping.leave_signals_to_parent if stopping.is_asked() else None)
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
        traces: as returned by `read_traces`.
        encoder: encoder for the same dataset.
        batch_users: U of the global batch.
        seed: seed of the order.
        process_index: the contiguous part of every batch that this process takes, or several parts in ascending order.
        process_count: number of parts; must divide `batch_users`.
        workers: number of processes that encode ahead; 0 = a thread.

    Returns:
        An infinite iterator of (ListBatch, Rationales with G = 1) of NumPy arrays. `get_state()` returns a JSON
        object, and `set_state` continues with the batch that was next when the state was taken.
    """
    tokens, length, stopped = encoder.encode_rationales(traces.rationales)

    def draw(rows: Array, _: Array) -> CandidateLists:
        return traces.lists.take(rows)

    def encode(lists: CandidateLists, rows: Array) -> tuple[ListBatch, Rationales]:
        rationales = Rationales(tokens=tokens[rows], length=length[rows], stopped=stopped[rows])
        return encoder.encode_lists(lists), rationales

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
        dataset: dataset to draw lists from.
        encoder: encoder for the same dataset.
        batch_users: U of the global batch. A user may appear more than once, at different positions.
        candidate_items: N.
        seed: seed of the order and of the negatives.
        positives: number of relevant items in a list: the user's next positives. The rest are negatives.
        min_history: minimum number of interactions before a positive; the encoder's `min_history` by default.
        process_index: the contiguous part of every batch that this process takes, or several parts in ascending order.
        process_count: number of parts; must divide `batch_users`.
        workers: number of processes that draw and encode ahead; 0 = a thread.

    Returns:
        An infinite iterator of ListBatch of NumPy arrays, resumable like `trace_batches`.

    Raises:
        DataError: a user leaves too few items to draw the negatives of a list from.
    """
    pairs = dataset.train_lists(encoder.config.min_history if min_history is None else min_history)
    # The last list of a user has one positive. Checked here, as it may be drawn only after hours.
    fewest = len(dataset.items) - int(dataset.train_end[pairs[:, 0]].max())
    if fewest < candidate_items - 1:
        raise DataError(
            f"data.candidate_items={candidate_items} needs as many items less one outside every user's training "
            f"interactions, got {fewest} of {len(dataset.items)}; lower data.candidate_items to at most {fewest + 1}"
        )

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
    """The frozen lists sorted by user, each exactly once.

    Args:
        dataset: dataset with the frozen lists.
        encoder: encoder for the same dataset.
        name: "valid" or "test".
        batch_users: U of every global batch. The last batch is filled with rows whose user is -1 and whose mask is
            False.
        users: only these users; all by default.
        process_index: the contiguous part of every batch that this process takes, or several parts in ascending order.
        process_count: number of parts; must divide `batch_users`.

    Yields:
        ListBatch of NumPy arrays.
    """
    mine = _rows_of(batch_users, process_index, process_count)
    lists = dataset.candidate_lists(name)
    chosen = np.arange(len(lists)) if users is None else np.flatnonzero(np.isin(lists.user, np.asarray(users)))
    for start in range(0, len(chosen), batch_users):
        rows = chosen[start : start + batch_users]
        missing = batch_users - len(rows)
        # Padding rows repeat a real list, so that no row is degenerate. Their user and mask mark them as padding.
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
    """Shuffle, repeat and batch global indices first; then slice, draw and encode only this process's rows."""
    mine = _rows_of(batch_users, process_index, process_count)
    # drop_remainder: an infinite sequence has no remainder, and counting one overflows Grain's length for batches of 1.
    indices = grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch_users, drop_remainder=True)

    def plain(number: int) -> tuple[Array, Array]:
        # Batch b has elements b·U ... (b+1)·U - 1 of the infinite sequence, and `size` elements make an epoch.
        return np.asarray(indices[number]), (number * batch_users + np.arange(batch_users)) // size

    def batch(number: int) -> T:
        rows, epochs = (each[mine] for each in plain(number))
        return encode(draw(rows, epochs), rows)

    bucketed = Bucketed(plain, draw, lengths, seed)

    def bucketed_batch(number: int) -> T:
        (rows, epochs), widths = bucketed(number)
        return narrowed(encode(draw(rows[mine], epochs[mine]), rows[mine]), widths)

    return Batches(bucketed_batch if lengths.buckets > 1 else batch, workers)


def _rows_of(batch_users: int, process_index: int | Sequence[int], process_count: int) -> Array:
    mine = [process_index] if isinstance(process_index, int) else list(process_index)
    if not all(0 <= part < process_count for part in mine) or batch_users < 1 or batch_users % process_count:
        raise DataError(
            f"batch_users={batch_users} must be a positive multiple of process_count={process_count}, and "
            f"process_index in [0, {process_count}), got {process_index}; set batch_users to a multiple of "
            f"{process_count}"
        )
    return np.arange(batch_users).reshape(process_count, -1)[mine].ravel()
