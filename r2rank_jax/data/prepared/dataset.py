"""A prepared folder in memory: histories, training positions, frozen candidate lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.folder import candidate_file, hash_of_files, interactions_file, manifest_of
from r2rank_jax.data.prepared.negatives import sample_outside
from r2rank_jax.data.prepared.settings import PROTOCOLS, Array, Settings
from r2rank_jax.data.prepared.splits import HELD_OUT, split
from r2rank_jax.data.prepared.tables import Interactions, Items, hash_of_interactions, hash_of_items
from r2rank_jax.data.sources.rows.times import LATEST_S
from r2rank_jax.errors import DataError

_NEEDED = (
    "settings", "time_unit", "users", "items", "buckets", "protocols", "interactions_sha256", "items_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class CandidateLists:
    """L lists of candidates to rank. A list's history is all of its user's interactions before `position`."""

    user: Array  # int32 [L]
    position: Array  # int32 [L]  position of the first positive in the user's sorted sequence
    items: Array  # int32 [L, N]  ascending within a list
    labels: Array  # float32 [L, N]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Array) -> CandidateLists:
        """Return the lists at these rows, in this order."""
        return CandidateLists(self.user[rows], self.position[rows], self.items[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """One protocol's view of a prepared folder. User u's rows are offsets[u]:offsets[u + 1], oldest first."""

    split: str
    items: Items
    offsets: Array  # int64 [users + 1]
    item: Array  # int32 [n]
    rating: Array  # float32 [n]
    timestamp: Array  # int64 [n]  in `time_unit`
    train_end: Array  # int32 [users]  a user's first `train_end` interactions are the training data
    settings: Settings  # with which the folder was prepared
    data_hash: str  # hash of the interactions
    candidate_hash: str  # hash of the frozen candidate files
    held_out: dict[str, CandidateLists]
    time_unit: str = "s"  # unit of the timestamps: "s" or "ms"
    items_hash: str = ""  # hash of the item table

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def seed(self) -> int:
        """Seed with which the folder was prepared."""
        return self.settings.seed

    def history(self, user: int, position: int, limit: int | None = None) -> slice:
        """Rows strictly before `position` in a user's sequence; only the last `limit` of them if `limit` is given."""
        start = int(self.offsets[user])
        first = start if limit is None else max(start, start + position - limit)
        return slice(first, start + position)

    def train_rows(self, user: int) -> slice:
        """Rows of a user's training interactions."""
        return self.history(user, int(self.train_end[user]))

    def train_lists(self, min_history: int) -> Array:
        """Every training positive that has at least `min_history` interactions, of any rating, before it.

        Returns:
            int32 [n, 2] of (user, position), sorted by user, then by position.

        Raises:
            DataError: `min_history` < 1, or no user has that many training interactions.
        """
        if min_history < 1:
            raise DataError(f"min_history must be at least 1 (a list needs a history), got {min_history}")
        lengths = np.diff(self.offsets)
        user = np.repeat(np.arange(self.users), lengths)
        position = np.arange(len(self.item)) - self.offsets[user]
        eligible = self.positive & (position >= min_history) & (position < self.train_end[user])
        if not eligible.any():
            raise DataError(
                f"training lists need a user with more than data.min_history={min_history} training "
                f"interactions, the longest has {int(self.train_end.max(initial=0))}; lower data.min_history"
            )
        return np.stack([user[eligible], position[eligible]], axis=1).astype(np.int32)

    def candidate_lists(self, name: str) -> CandidateLists:
        """The frozen lists of "valid" or "test", sorted by user.

        Raises:
            DataError: `name` is neither.
        """
        if name not in self.held_out:
            raise DataError(f"candidate lists must be one of {HELD_OUT}, got {name!r}")
        return self.held_out[name]

    def training_list(self, user: int, position: int, *, key: int, n: int, positives: int = 1) -> tuple[Array, Array]:
        """A training list: the positives from `position` on, and uniform negatives, sorted by item id.

        Negatives exclude only the user's training interactions, not the whole history. If items that the user chooses
        later were excluded as well, their absence would tell the model which items those are. Occasionally a held-out
        positive is therefore a training negative, as it would be in production.

        Args:
            user: dense id.
            position: position of the first positive; 1 <= position < train_end[user].
            key: varies the negatives; the draw depends only on (dataset seed, key, user, position).
            n: number of items in the list.
            positives: maximum number of relevant items. If the training data hold fewer from `position` on, negatives
                fill the list.

        Returns:
            items int32 [n] ascending, labels float32 [n].

        Raises:
            DataError: the position is not a training position with a history, the list would have no positives or no
                negatives, or too few items are left to draw from.
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
        rows = self.train_rows(user)
        if not self.positive[rows.start + position]:
            raise DataError(
                f"a training list needs a positive, rated {self.settings.positive_rating} or more, got user {user}, "
                f"position {position}; take positions from train_lists()"
            )
        rng = np.random.default_rng([self.settings.seed, key, user, position])
        later = slice(rows.start + position, rows.stop)
        relevant = later.start + np.flatnonzero(self.positive[later])[:positives]
        negatives = sample_outside(rng, self.item[rows], len(self.items), n - len(relevant))
        items = np.append(negatives, self.item[relevant])
        labels = np.append(np.zeros(len(negatives), np.float32), self.settings.label(self.rating[relevant]))
        by_id = np.argsort(items)
        return items[by_id], labels[by_id]

    def training_lists(self, pairs: Array, *, key: int | Sequence[int], n: int, positives: int = 1) -> CandidateLists:
        """`training_list` for every (user, position) of `pairs` [L, 2], with one key for all or one key each."""
        keys = [key] * len(pairs) if isinstance(key, int) else key
        drawn = [
            self.training_list(u, p, key=k, n=n, positives=positives)
            for (u, p), k in zip(pairs.tolist(), keys, strict=True)
        ]
        return CandidateLists(
            np.asarray(pairs[:, 0], np.int32),
            np.asarray(pairs[:, 1], np.int32),
            np.stack([items for items, _ in drawn]),
            np.stack([labels for _, labels in drawn]),
        )

    @cached_property
    def positive(self) -> Array:
        """bool [n]: interactions that count as positives; all of them unless a rating threshold was set."""
        return self.settings.positive(self.rating)

    @cached_property
    def train_counts(self) -> Array:
        """int64 [items]: number of training interactions of each item; used by the popularity baseline."""
        rows = np.concatenate([np.arange(*self.train_rows(u).indices(len(self.item))) for u in range(self.users)])
        return np.bincount(self.item[rows], minlength=len(self.items))


def load(directory: Path, split_name: str) -> Dataset:
    """Read a prepared folder and verify its hashes.

    Args:
        directory: folder that `r2rank data prepare` wrote.
        split_name: one of the protocols that the folder was prepared for.

    Raises:
        DataError: the directory is not a prepared folder, it was not prepared for this split, or a file's hash does not
            match the manifest.
    """
    if split_name not in PROTOCOLS:
        raise DataError(f"split must be one of {PROTOCOLS}, got {split_name!r}; set data.split")
    manifest = manifest_of(directory)
    absent = [name for name in _NEEDED if name not in manifest]
    if absent:
        raise DataError(
            f"{directory}/manifest.json must hold {', '.join(_NEEDED)}, but it lacks {', '.join(absent)}; restore the "
            "file, or prepare the data into a new folder"
        )
    if split_name not in manifest["protocols"]:
        raise DataError(
            f"split must be one that {directory} was prepared for, {', '.join(manifest['protocols'])}, got "
            f"{split_name!r}; set data.split, or run `r2rank data prepare --protocols {split_name}` into a new folder"
        )
    buckets = range(manifest["buckets"])
    interaction_paths = [directory / interactions_file(bucket) for bucket in buckets]
    candidate_paths = [directory / candidate_file(split_name, bucket) for bucket in buckets]
    _require_hash(
        "data file",
        interaction_paths[0].parent,
        manifest["interactions_sha256"],
        hash_of_interactions(interaction_paths),
    )
    items_path = directory / "items.parquet"
    _require_hash("data file", items_path, manifest["items_sha256"], hash_of_items(items_path))
    protocol = manifest["protocols"][split_name]
    candidate_hash = hash_of_files(candidate_paths)
    hashed_path = candidate_paths[0] if len(candidate_paths) == 1 else candidate_paths[0].parent
    _require_hash("candidate file", hashed_path, protocol["sha256"], candidate_hash)
    settings = Settings(**manifest["settings"])
    interactions = Interactions.read(interaction_paths)
    offsets = np.append(0, np.cumsum(np.bincount(interactions.user, minlength=manifest["users"])))
    positive = settings.positive(interactions.rating)
    parts = split(split_name, offsets, interactions.timestamp, positive, settings, cuts=protocol.get("cuts"))
    return Dataset(
        split=split_name,
        items=Items.read(items_path),
        offsets=offsets,
        item=interactions.item,
        rating=interactions.rating,
        timestamp=interactions.timestamp,
        train_end=parts.train_end,
        settings=settings,
        data_hash=manifest["interactions_sha256"],
        candidate_hash=candidate_hash,
        held_out=_read_candidates(candidate_paths, settings.candidates),
        time_unit=manifest["time_unit"],
        items_hash=manifest["items_sha256"],
    )


def load_for_prompts(directory: Path, split_name: str) -> Dataset:
    """`load`, but refuse a manifest whose unit is not that of the times: prompts would say wrong times.

    Raises:
        DataError: as `load`, or the unit is another.
    """
    dataset = load(directory, split_name)
    unit, latest = dataset.time_unit, int(dataset.timestamp.max(initial=0))
    # Seconds up to the year 2100 are milliseconds of January and February 1970.
    if (unit == "s" and latest >= LATEST_S) or (unit == "ms" and 10**8 < latest < LATEST_S):
        raise DataError(
            f"{directory}/manifest.json: time_unit must be the unit of the times, whose latest is {latest}, got "
            f"{unit!r}; restore the file, or prepare the data into a new folder"
        )
    return dataset


def _require_hash(kind: str, path: Path, expected: str, actual: str) -> None:
    if actual != expected:
        raise DataError(
            f"{kind} whose hash does not match its manifest: {path} must have SHA-256 {expected}, got "
            f"{actual}; results on different lists cannot be compared: restore the file, or prepare the data "
            f"again in a new folder"
        )


def _read_candidates(paths: Sequence[Path], candidates: int) -> dict[str, CandidateLists]:
    columns: dict[str, list[list[Any]]] = {name: [[], [], [], []] for name in HELD_OUT}
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                for column, name in zip(columns[record["split"]], ("user", "position", "items", "labels")):
                    column.append(record[name])
    return {
        name: CandidateLists(
            np.array(user, np.int32),
            np.array(position, np.int32),
            np.array(items, np.int32).reshape(len(user), candidates),
            np.array(labels, np.float32).reshape(len(user), candidates),
        )
        for name, (user, position, items, labels) in columns.items()
    }
