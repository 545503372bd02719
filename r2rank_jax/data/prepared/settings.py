"""All settings that the preparation of data depends on. They are stored in the manifest of the prepared folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.errors import DataError

Array = np.ndarray

PROTOCOLS = ("leave_one_out", "global_time", "last_n", "cold_users")  # a protocol's index is part of its seeds
DEFAULT_PROTOCOLS = PROTOCOLS[:2]
LABELS = ("binary", "graded")
NEGATIVES = ("uniform", "popularity", "run")
ON_ERROR = ("fatal", "quarantine")
TIME_UNITS = ("s", "ms")
QUOTES = ("double", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `data prepare` that affect its output. The defaults give the usual benchmark protocol."""

    seed: int = 0
    """Seed of the negatives and of the choice of cold users."""
    candidates: int = 20
    """Number of items in a list, positives included."""
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    k_core: int = 0
    """Keep only users and items that have at least this many interactions with each other. 0 or 1 keeps all of them,
    including catalog items without any interaction."""
    positive_rating: float | None = None
    """Lowest rating of a positive, in training and in held-out lists. None: every interaction is a positive. Histories
    show all interactions."""
    labels: str = "binary"
    """"graded": a positive's label is 1 + floor(rating - positive_rating)."""
    negatives: str = "uniform"
    """"popularity": in proportion to 1 + training interactions. "run": the top items of a retriever's run file."""
    run: str | None = None
    """The run file: TREC's six columns, or JSONL with user and items."""
    last_n: int = 3
    """For the protocol `last_n`: a user's last `last_n` positives form one test list, and the `last_n` before them one
    validation list."""
    cold_fraction: float = 0.1
    """For the protocol `cold_users`: the share of users held out for test; the same share is held out for
    validation."""
    bucket_rows: int = 1_000_000
    """Approximate maximum number of interactions in a bucket of users. Memory grows with it, and dense ids depend on
    it."""
    kind: str | None = None
    """Format of the source; None: detected from its files."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the source's column name, for plain files."""
    on_error: str = "fatal"
    """"quarantine": malformed rows are set aside and counted."""
    time_unit: str | None = None
    """Unit of the source's times; None: detected from its rows."""
    quote: str | None = None
    """"none": quotation marks have no meaning in plain files. None and "double": fields may be quoted."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("candidates", 2), ("k_core", 0), ("last_n", 1), ("bucket_rows", 1)):
            _require(getattr(self, name) >= least, f"{name} must be at least {least}, got {getattr(self, name)}")
        _require(
            self.positive_rating is None or math.isfinite(self.positive_rating),
            f"positive_rating must be a number, got {self.positive_rating}; leave it out to count every interaction",
        )
        for name, choices in (("labels", LABELS), ("negatives", NEGATIVES), ("on_error", ON_ERROR)):
            _require(getattr(self, name) in choices, f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name, choices in (("time_unit", TIME_UNITS), ("quote", QUOTES)):
            value = getattr(self, name)
            _require(value is None or value in choices, f"{name} must be one of {choices} or None, got {value!r}")
        _require(
            0 < len(set(self.protocols)) == len(self.protocols) and set(self.protocols) <= set(PROTOCOLS),
            f"protocols must be one or more of {PROTOCOLS}, each at most once, got {self.protocols}",
        )
        object.__setattr__(self, "protocols", tuple(name for name in PROTOCOLS if name in self.protocols))
        _require(0 < self.cold_fraction <= 0.5, f"cold_fraction must lie in (0, 0.5], got {self.cold_fraction}")
        _require(
            self.labels == "binary" or self.positive_rating is not None,
            "graded labels need a positive_rating to count from, got none; set --positive-rating",
        )
        _require(
            (self.negatives == "run") == (self.run is not None),
            f"negatives must be 'run' if and only if a run file is given, got negatives={self.negatives!r} and "
            f"run={self.run!r}; give both --negatives run and --run FILE, or neither",
        )
        _require(
            "last_n" not in self.protocols or self.last_n < self.candidates,
            f"last_n={self.last_n} must leave at least one of candidates={self.candidates} as a negative",
        )

    def positive(self, rating: Array) -> Array:
        """bool [n]: which interactions count as positives. Without a threshold, all do, even unrated ones (NaN)."""
        if self.positive_rating is None:
            return np.ones(len(rating), bool)
        return rating >= self.positive_rating

    def label(self, rating: Array) -> Array:
        """float32 [n]: labels of positives, at least 1."""
        if self.labels == "binary":
            return np.ones(len(rating), np.float32)
        return (1 + np.floor(rating - self.positive_rating)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Values for the manifest. Only the run file's name is kept, so that the folder does not depend on its path.

        `time_unit` and `quote` are left out unless they are set, so that older manifests remain equal.
        """
        values = dataclasses.asdict(self) | {"protocols": list(self.protocols)}
        values = {key: value for key, value in values.items() if value is not None or key not in ("time_unit", "quote")}
        return values | {"run": None if self.run is None else Path(self.run).name}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)
