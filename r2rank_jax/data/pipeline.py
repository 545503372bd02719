"""Grain iterators over batches of lists: infinite, shuffled, the same on every machine, resumable at any
step.

Every process walks the same sequence of global batches, takes its own contiguous rows of each and encodes
only those. So the number of processes changes who does the work and never what is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from r2rank_jax.data.dataset import Dataset
from r2rank_jax.data.errors import DataError
from r2rank_jax.data.splits import NONE
from r2rank_jax.data.tables import Array
from r2rank_jax.data.tokens import Encoder
from r2rank_jax.data.traces import Traces
from r2rank_jax.types import ListBatch, Rationales

# One thread reads ahead; more than one only takes the interpreter's lock from the training loop.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def trace_batches(
    traces: Traces,
    encoder: Encoder,
    *,
    batch_users: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Lists with the teacher's rationales, for SFT.

    Args:
        traces: as `read_traces` returns them.
        encoder: of the same data set.
        batch_users: U of the global batch.
        seed: of the order.
        process_index: which contiguous rows of every batch this process takes.
        process_count: processes; must divide `batch_users`.

    Returns:
        An infinite iterator of (ListBatch, Rationales with G = 1) of numpy arrays; `get_state()` is a JSON
        object, and after `set_state` the next batch is exactly the one that was due.
    """
    tokens, length, stopped = encoder.encode_rationales(traces.rationales)

    def encode(rows: Array, _: Array) -> tuple[ListBatch, Rationales]:
        said = Rationales(tokens=tokens[rows], length=length[rows], stopped=stopped[rows])
        return encoder.encode_lists(traces.lists.take(rows)), said

    return _iterator(len(traces), encode, batch_users, seed, process_index, process_count)


def list_batches(
    dataset: Dataset,
    encoder: Encoder,
    *,
    batch_users: int,
    candidate_items: int,
    seed: int,
    positives: int = 1,
    min_history: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """All training lists, with fresh negatives every epoch, for RL.

    Args:
        dataset: to draw lists from.
        encoder: of the same data set.
        batch_users: U of the global batch. A user may appear more than once, at different positions.
        candidate_items: N.
        seed: of the order and of the negatives.
        positives: relevant items of a list, the user's next ones; the rest are negatives.
        min_history: interactions before a positive; the encoder's `min_history` by default.
        process_index: which contiguous rows of every batch this process takes.
        process_count: processes; must divide `batch_users`.

    Returns:
        An infinite iterator of ListBatch of numpy arrays, resumable like `trace_batches`.
    """
    pairs = dataset.train_lists(encoder.config.min_history if min_history is None else min_history)

    def encode(rows: Array, epochs: Array) -> ListBatch:
        keys = [(seed << 32) | int(epoch) for epoch in epochs]
        lists = dataset.training_lists(pairs[rows], key=keys, n=candidate_items, positives=positives)
        return encoder.encode_lists(lists)

    return _iterator(len(pairs), encode, batch_users, seed, process_index, process_count)


def evaluation_batches(
    dataset: Dataset,
    encoder: Encoder,
    name: str,
    *,
    batch_users: int,
    users: Sequence[int] | None = None,
    process_index: int = 0,
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
        process_index: which contiguous rows of every batch this process takes.
        process_count: processes; must divide `batch_users`.

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


def _iterator(
    size: int,
    encode: Callable[[Array, Array], Any],
    batch_users: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """Shuffled, repeated and batched as global indices first; only then sliced and encoded."""
    mine = _rows_of(batch_users, process_index, process_count)

    def batch(index: int, rows: Array) -> Any:
        # Rows of batch b are places b·U ... of the endless sequence, and `size` places make an epoch.
        places = index * batch_users + np.arange(batch_users)
        return encode(np.asarray(rows)[mine], places[mine] // size)

    # drop_remainder: an endless sequence has none, and counting one overflows grain's length for batches of
    # 1.
    indices = grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch_users, drop_remainder=True)
    return iter(indices.map_with_index(batch).to_iter_dataset(_READ))


def _rows_of(batch_users: int, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count or batch_users < 1 or batch_users % process_count:
        raise DataError(
            f"batch_users={batch_users} must be a positive multiple of process_count={process_count}, and "
            f"process_index in [0, {process_count}), got {process_index}; set batch_users to a multiple of "
            f"{process_count}"
        )
    share = batch_users // process_count
    return slice(process_index * share, (process_index + 1) * share)
