"""Frozen candidate lists of one bucket: a protocol's held-out positives, and negatives that are drawn once.

A negative is never an item that the user interacted with, before or after. Every draw has its own generator, seeded by
(seed, protocol, part, user), so adding or reordering users does not change another user's list.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.prepare.retrieved import Retrieved, read_retrieved
from r2rank_jax.data.prepare.user_buckets import step_folder
from r2rank_jax.data.prepared.missing import TEXTS, count_missing, missing_texts
from r2rank_jax.data.prepared.negatives import Draw, sample_by_weight, sample_outside
from r2rank_jax.data.prepared.settings import PROTOCOLS, Array, Settings
from r2rank_jax.data.prepared.splits import HELD_OUT, NONE, Split, split
from r2rank_jax.files.seals import Facts, sealed

Cuts = tuple[int, int] | None  # of global_time


@dataclass(frozen=True)
class Sequences:
    """Interactions of one bucket's users. Rows offsets[u]:offsets[u + 1] belong to the u-th user, oldest first."""

    first_user: int
    offsets: Array  # int64 [users + 1]
    item: Array  # int32 [n]
    rating: Array  # float32 [n]  NaN where missing
    timestamp: Array  # int64 [n]

    def split(self, protocol: str, settings: Settings, cuts: Cuts) -> Split:
        """Split these interactions into training and held-out ones."""
        positive = settings.positive(self.rating)
        return split(protocol, self.offsets, self.timestamp, positive, settings, cuts=cuts, first_user=self.first_user)


def read_sequences(work: Path, first_user: int, bucket: int) -> Sequences:
    """Read the file of `user_buckets.write_interactions`."""
    rows = pl.read_parquet(step_folder(work, "interactions", bucket) / "interactions.parquet")
    counts = np.bincount(rows["user"].to_numpy() - first_user) if rows.height else np.zeros(0, np.int64)
    item, rating, timestamp = (rows[name].to_numpy() for name in ("item", "rating", "timestamp"))
    return Sequences(first_user, np.append(0, np.cumsum(counts)), item, rating, timestamp)


def count_training_items(
    work: Path,
    protocol: str,
    settings: Settings,
    cuts: Cuts,
    items: int,
    first_user: int,
    bucket: int,
) -> Array:
    """Count the bucket's training interactions of each item; int64 [items]."""
    sequences = read_sequences(work, first_user, bucket)
    train_end = sequences.split(protocol, settings, cuts).train_end
    lengths = np.diff(sequences.offsets)
    position = np.arange(len(sequences.item)) - np.repeat(sequences.offsets[:-1], lengths)
    return np.bincount(sequences.item[position < np.repeat(train_end, lengths)], minlength=items)


def write_lists(
    work: Path,
    protocol: str,
    settings: Settings,
    cuts: Cuts,
    items: int,
    first_user: int,
    bucket: int,
) -> Facts:
    """Write a protocol's lists of one bucket, one per line: all validation lists by user, then all test lists.

    Returns:
        lists, left_out_without_history and positives_tied_in_time_with_the_interaction_before, each by part;
        train_interactions; `lacking`, see `count_missing`; with a run file also `run`, see `Retrieved.counts`.
    """
    write = partial(_write_lists, work, protocol, settings, cuts, items, first_user, bucket)
    return sealed(step_folder(work, f"candidates/{protocol}", bucket), write)


def _write_lists(
    work: Path,
    protocol: str,
    settings: Settings,
    cuts: Cuts,
    items: int,
    first_user: int,
    bucket: int,
    folder: Path,
) -> Facts:
    sequences = read_sequences(work, first_user, bucket)
    parts = sequences.split(protocol, settings, cuts)
    retrieved = read_retrieved(work, items, bucket) if settings.negatives == "run" else None
    draw = _draw(work, protocol, settings, items, retrieved)
    missing, lacking = missing_texts(pl.read_parquet(work / "table/items.parquet", columns=list(TEXTS))), Counter[str]()
    with (folder / "lists.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for held_out in HELD_OUT:
            for record in _lists(sequences, parts, held_out, protocol, settings, draw):
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
                lacking.update(count_missing(missing, np.array(record["items"]), np.array(record["labels"])))
                if retrieved is not None:
                    retrieved.look_for(record["user"] - first_user, record["items"], record["labels"])
    position = {name: parts.position(name) for name in HELD_OUT}
    facts: Facts = {
        "train_interactions": int(parts.train_end.sum()),
        "lists": {name: int(np.sum(position[name] != NONE)) for name in HELD_OUT},
        "left_out_without_history": parts.without_history,
        "positives_tied_in_time_with_the_interaction_before": {
            name: _ties(sequences, position[name]) for name in HELD_OUT
        },
        "lacking": dict(lacking),
    }
    return facts | ({} if retrieved is None else {"run": retrieved.counts})


def _lists(
    sequences: Sequences, parts: Split, held_out: str, protocol: str, settings: Settings, draw: Draw
) -> Iterator[Facts]:
    seed = [settings.seed, PROTOCOLS.index(protocol), HELD_OUT.index(held_out)]
    positive = settings.positive(sequences.rating)
    labels = np.zeros(len(positive), int)
    labels[positive] = settings.label(sequences.rating[positive])
    for index, position in enumerate(parts.position(held_out).tolist()):
        if position == NONE:
            continue
        start, end = int(sequences.offsets[index]), int(sequences.offsets[index + 1])
        rows = start + position + np.flatnonzero(positive[start + position : end])[: parts.positives]
        user = sequences.first_user + index
        rng = np.random.default_rng([*seed, user])
        # Negatives lie outside the whole history, future included: an item that the user chose later is no negative.
        negatives = draw(rng, sequences.item[start:end], index, settings.candidates - len(rows))
        chosen = np.append(negatives, sequences.item[rows])
        by_id = np.argsort(chosen)  # so that a positive's position reveals nothing
        relevance = np.append(np.zeros(len(negatives), int), labels[rows])
        yield {
            "split": held_out,
            "user": user,
            "position": position,
            "items": chosen[by_id].tolist(),
            "labels": relevance[by_id].tolist(),
        }


def _draw(work: Path, protocol: str, settings: Settings, items: int, retrieved: Retrieved | None) -> Draw:
    if settings.negatives == "popularity":
        cumulative = np.cumsum(1.0 + np.load(work / f"popularity-{protocol}.npy"))
        return lambda rng, history, _, count: sample_by_weight(rng, history, cumulative, count)
    if retrieved is not None:
        return retrieved.best
    return lambda rng, history, _, count: sample_outside(rng, history, items, count)


def _ties(sequences: Sequences, position: Array) -> int:
    row = (sequences.offsets[:-1] + position)[position != NONE]
    return int(np.sum(sequences.timestamp[row] == sequences.timestamp[row - 1]))
