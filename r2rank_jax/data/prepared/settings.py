"""Every choice that preparation depends on; written into the manifest, and read back with the folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.errors import DataError

Array = np.ndarray

PROTOCOLS = ("leave_one_out", "global_time", "last_n", "cold_users")  # a protocol's place is part of its seeds
DEFAULT_PROTOCOLS = PROTOCOLS[:2]
LABELS = ("binary", "graded")
NEGATIVES = ("uniform", "popularity", "run")
ON_ERROR = ("fatal", "quarantine")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `data prepare` that change what is written. Defaults give the plain benchmark form."""

    seed: int = 0
    """Of the negatives and of the choice of cold users."""
    candidates: int = 20
    """Items of a list, the positives included."""
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    k_core: int = 0
    """Only users and items with at least so many interactions with each other stay; 0 or 1: all stay, and so do items
    of the catalogue that nobody touched."""
    positive_rating: float | None = None
    """Least rating of a positive, held out or trained on; None: every interaction is one. Histories show all."""
    labels: str = "binary"
    """"graded": a positive's label is 1 + floor(rating - positive_rating)."""
    negatives: str = "uniform"
    """"popularity": in proportion to 1 + training interactions. "run": the best of a retriever's run file."""
    run: str | None = None
    """The run file: TREC's six columns, or JSONL with user and items."""
    last_n: int = 3
    """Of protocol `last_n`: so many of a user's last positives make one test list, those before them one validation
    list."""
    cold_fraction: float = 0.1
    """Of protocol `cold_users`: this share of the users is held out for test, and as many for validation."""
    bucket_rows: int = 1_000_000
    """A bucket of users holds at most about so many interactions; memory grows with it. Dense ids depend on it."""
    kind: str | None = None
    """Form of the source; None: told by its files."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> the source's, for plain files."""
    on_error: str = "fatal"
    """"quarantine": malformed rows are set aside and counted."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("candidates", 2), ("k_core", 0), ("last_n", 1), ("bucket_rows", 1)):
            _require(getattr(self, name) >= least, f"{name} must be at least {least}, got {getattr(self, name)}")
        _require(
            self.positive_rating is None or math.isfinite(self.positive_rating),
            f"positive_rating must be a number, got {self.positive_rating}; leave it out to count every interaction",
        )
        for name, known in (("labels", LABELS), ("negatives", NEGATIVES), ("on_error", ON_ERROR)):
            _require(getattr(self, name) in known, f"{name} must be one of {known}, got {getattr(self, name)!r}")
        _require(
            0 < len(set(self.protocols)) == len(self.protocols) and set(self.protocols) <= set(PROTOCOLS),
            f"protocols must be some of {PROTOCOLS}, each once, got {self.protocols}",
        )
        object.__setattr__(self, "protocols", tuple(name for name in PROTOCOLS if name in self.protocols))
        _require(0 < self.cold_fraction <= 0.5, f"cold_fraction must lie in (0, 0.5], got {self.cold_fraction}")
        _require(
            self.labels == "binary" or self.positive_rating is not None,
            "graded labels count from positive_rating, got none; set --positive-rating",
        )
        _require(
            (self.negatives == "run") == (self.run is not None),
            f"negatives must be 'run' exactly if a run file is given, got negatives={self.negatives!r} and "
            f"run={self.run!r}; give both --negatives run and --run FILE, or neither",
        )
        _require(
            "last_n" not in self.protocols or self.last_n < self.candidates,
            f"last_n={self.last_n} must leave at least one of candidates={self.candidates} as a negative",
        )

    def positive(self, rating: Array) -> Array:
        """bool [n]: which interactions count as positives; one without a rating (NaN) does so without a threshold."""
        if self.positive_rating is None:
            return np.ones(len(rating), bool)
        return rating >= self.positive_rating

    def label(self, rating: Array) -> Array:
        """float32 [n]: labels of positives, at least 1."""
        if self.labels == "binary":
            return np.ones(len(rating), np.float32)
        return (1 + np.floor(rating - self.positive_rating)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """For the manifest: of the run file its name only, so that the folder does not depend on where it lay."""
        found = dataclasses.asdict(self) | {"protocols": list(self.protocols)}
        return found | {"run": None if self.run is None else Path(self.run).name}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)
