"""A prepared folder in memory: histories, training positions, frozen candidate lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.prepare import FORMAT, candidate_file, user_offsets
from r2rank_jax.data.splits import HELD_OUT, PROTOCOLS, sample_outside, split
from r2rank_jax.data.tables import Array, Interactions, Items


@dataclass(frozen=True)
class Lists:
    """L lists to rank. A list's history is everything of its user before `position`."""

    user: Array  # int32 [L]
    position: Array  # int32 [L]     of the positive in the user's sorted sequence
    items: Array  # int32 [L, N]  ascending within a list
    labels: Array  # float32 [L, N]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Array) -> Lists:
        """The lists at these rows, in this order."""
        return Lists(self.user[rows], self.position[rows], self.items[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """One protocol's view of a prepared folder. User u's rows are offsets[u]:offsets[u + 1], oldest first."""

    split: str
    items: Items
    offsets: Array  # int64 [users + 1]
    item: Array  # int32 [n]
    rating: Array  # float32 [n]
    timestamp: Array  # int64 [n]  in `time_unit`
    train_end: Array  # int32 [users]  number of leading interactions that train
    seed: int
    data_hash: str  # of the interactions
    candidate_hash: str  # of the frozen candidate file
    held_out: dict[str, Lists]
    time_unit: str = "s"  # of the timestamps: "s" or "ms"

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    def history(self, user: int, position: int, limit: int | None = None) -> slice:
        """Rows strictly before `position` of a user's sequence, the last `limit` of them."""
        start = int(self.offsets[user])
        first = start if limit is None else max(start, start + position - limit)
        return slice(first, start + position)

    def train_rows(self, user: int) -> slice:
        """Rows of a user's training interactions."""
        return self.history(user, int(self.train_end[user]))

    def train_lists(self, min_history: int) -> Array:
        """Every training positive with at least `min_history` interactions before it.

        Returns:
            int32 [n, 2] of (user, position), by user, then position.

        Raises:
            DataError: `min_history` < 1, or no user has that many training interactions.
        """
        if min_history < 1:
            raise DataError(f"min_history must be at least 1 (a list needs a history), got {min_history}")
        found = [
            np.stack([np.full(end - min_history, user), np.arange(min_history, end)], axis=1)
            for user, end in enumerate(self.train_end.tolist())
            if end > min_history
        ]
        if not found:
            raise DataError(
                f"training lists need a user with more than data.min_history={min_history} training "
                f"interactions, the longest has {int(self.train_end.max(initial=0))}; lower data.min_history"
            )
        return np.concatenate(found).astype(np.int32)

    def candidate_lists(self, name: str) -> Lists:
        """The frozen lists of "valid" or "test", by user.

        Raises:
            DataError: another name.
        """
        if name not in self.held_out:
            raise DataError(f"candidate lists must be one of {HELD_OUT}, got {name!r}")
        return self.held_out[name]

    def training_list(self, user: int, position: int, *, key: int, n: int, positives: int = 1) -> tuple[Array, Array]:
        """The next interactions from a training position on, and uniform negatives, by id.

        Negatives lie outside the user's TRAINING interactions, not outside the whole history: keeping out
        what the user chooses later would tell the model, by its absence, which items those are. Now and then
        a held-out positive is therefore a training negative, as it would be in production.

        Args:
            user: dense id.
            position: of the first positive; 1 <= position < train_end[user].
            key: another key, other negatives; the draw depends on (dataset seed, key, user, position) only.
            n: items of the list.
            positives: at most so many are relevant; where training ends sooner, negatives take their places.

        Returns:
            items int32 [n] ascending, labels float32 [n].

        Raises:
            DataError: the position is not a training one with a history, a list without positives or without
                negatives, or too few items are left.
        """
        if not 1 <= positives < n:
            raise DataError(
                f"positives must leave at least one of the list's {n} items as a negative, got {positives}; take 1 .. "
                f"{n - 1}"
            )
        if not 1 <= position < self.train_end[user]:
            raise DataError(
                f"a training list needs 1 <= position < {int(self.train_end[user])} (user {user}'s training "
                f"interactions, at least one before the positive), got {position}; take positions from "
                f"train_lists()"
            )
        known = self.item[self.train_rows(user)]
        rng = np.random.default_rng([self.seed, key, user, position])
        relevant = np.unique(known[position : position + positives])
        items = np.append(sample_outside(rng, known, len(self.items), n - len(relevant)), relevant)
        items.sort()
        return items, np.isin(items, relevant).astype(np.float32)

    def training_lists(self, pairs: Array, *, key: int | Sequence[int], n: int, positives: int = 1) -> Lists:
        """`training_list` for every (user, position) of `pairs` [L, 2], with one key for all or one each."""
        keys = [key] * len(pairs) if isinstance(key, int) else key
        drawn = [
            self.training_list(u, p, key=k, n=n, positives=positives)
            for (u, p), k in zip(pairs.tolist(), keys, strict=True)
        ]
        return Lists(
            np.asarray(pairs[:, 0], np.int32),
            np.asarray(pairs[:, 1], np.int32),
            np.stack([items for items, _ in drawn]),
            np.stack([labels for _, labels in drawn]),
        )

    @cached_property
    def train_counts(self) -> Array:
        """int64 [items]: training interactions of each item; the popularity baseline."""
        rows = np.concatenate([np.arange(*self.train_rows(u).indices(len(self.item))) for u in range(self.users)])
        return np.bincount(self.item[rows], minlength=len(self.items))


def load(directory: Path, split_name: str) -> Dataset:
    """Read a prepared folder and verify its hashes.

    Args:
        directory: folder that `r2rank data prepare` wrote.
        split_name: "leave_one_out" or "global_time".

    Raises:
        DataError: not a prepared folder, an unknown split, or a file whose hash does not match the manifest.
    """
    if split_name not in PROTOCOLS:
        raise DataError(f"split must be one of {PROTOCOLS}, got {split_name!r}; set data.split")
    manifest = read_manifest(directory)
    interactions = Interactions.read(directory / "interactions.parquet")
    items = Items.read(directory / "items.parquet")
    _require_hash(directory / "interactions.parquet", manifest["interactions_sha256"], interactions.sha256())
    _require_hash(directory / "items.parquet", manifest["items_sha256"], items.sha256())
    path = directory / candidate_file(split_name)
    content = path.read_bytes() if path.is_file() else b""
    candidate_hash = hashlib.sha256(content).hexdigest()
    _require_hash(path, manifest["protocols"][split_name]["sha256"], candidate_hash)
    offsets = user_offsets(interactions.user)
    return Dataset(
        split=split_name,
        items=items,
        offsets=offsets,
        item=interactions.item,
        rating=interactions.rating,
        timestamp=interactions.timestamp,
        train_end=split(split_name, offsets, interactions.timestamp).train_end,
        seed=manifest["seed"],
        data_hash=manifest["interactions_sha256"],
        candidate_hash=candidate_hash,
        held_out=_read_candidates(content, manifest["candidates"]),
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The folder's `manifest.json`.

    Raises:
        DataError: there is none, or it is of another format.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{directory} must be a folder that `r2rank data prepare` wrote, but has no manifest.json; run "
            f"`r2rank data prepare --source SOURCE --out {directory}` or set data.directory"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} must be JSON, and is not ({error}); run `r2rank data prepare` into a new folder"
        ) from error
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: format must be {FORMAT}, got {manifest.get('format')}; run `r2rank data prepare` again"
        )
    return manifest


def _require_hash(path: Path, expected: str, found: str) -> None:
    if found != expected:
        kind = "candidate file" if path.suffix == ".jsonl" else "data file"
        raise DataError(
            f"{kind} whose hash does not match its manifest: {path} must have SHA-256 {expected}, got "
            f"{found}; results on other lists cannot be compared: restore the file, or prepare the data "
            f"again in a new folder"
        )


def _read_candidates(content: bytes, candidates: int) -> dict[str, Lists]:
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in HELD_OUT}
    for line in content.splitlines():
        record = json.loads(line)
        records[record["split"]].append(record)
    return {
        name: Lists(
            np.array([r["user"] for r in found], np.int32),
            np.array([r["position"] for r in found], np.int32),
            np.array([r["items"] for r in found], np.int32).reshape(len(found), candidates),
            np.array([r["labels"] for r in found], np.float32).reshape(len(found), candidates),
        )
        for name, found in records.items()
    }
