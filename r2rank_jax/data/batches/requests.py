"""Read and encode a user's own lists: histories and candidates as JSON lines, for any template.

    {"id": "ada",
     "history": [{"title": "Alien", "year": "1979", "rating": 5}, ...],          oldest first
     "candidates": [{"id": "m1", "title": "Heat", "year": "1995", "genres": ["Action"]}, ...]}

`year`, `genres` and the ids are optional, and a rating may be null. A candidate may have `details`
({"brand": "LEGO", "price": "12.99"}), of which the template shows those it knows. For templates that show times, each
interaction and the list itself may have a `timestamp` in seconds; the list's defaults to the latest interaction's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import padded
from r2rank_jax.data.prompts.fitting import fit_prefix, fit_suffix
from r2rank_jax.data.prompts.item_text import whole_characters
from r2rank_jax.data.prompts.prompts import Shown, time_words
from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.data.prompts.tokenizer import TextTokenizer
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch


@dataclass(frozen=True)
class RankingCandidate:
    """One item to rank."""

    id: str
    title: str
    year: str
    genres: tuple[str, ...]
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RankingRequest:
    """One list to rank."""

    id: str
    history: tuple[Shown, ...]  # oldest first
    candidates: tuple[RankingCandidate, ...]


def read_requests(path: Path) -> list[RankingRequest]:
    """Read and check a JSONL file of requests.

    Raises:
        DataError: there is no such file, or a line is not a request; the message gives the line and the reason.
    """
    if not path.is_file():
        raise DataError(f"--input must name a JSONL file of lists to rank, got {path}, which does not exist")
    requests = []
    # Not splitlines(): a title may contain one of Unicode's other line ends.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                requests.append(_request(json.loads(line), str(number)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise DataError(
                    f'{path}, line {number}: expected {{"history": [{{"title", "rating"}}, ...], "candidates": '
                    f'[{{"title"}}, ...]}}, but it {reason}'
                ) from error
    if not requests:
        raise DataError(f"{path} must hold at least one list to rank, but it holds none")
    return requests


def request_batches(
    tokenizer: TextTokenizer, config: DataConfig, requests: list[RankingRequest], batch_users: int
) -> Iterator[ListBatch]:
    """Encode requests in order. N is the length of the longest list; shorter lists are masked.

    Args:
        tokenizer: tokenizer of the trained model.
        config: sets the template, and the number of interactions and tokens that each part may take.
        requests: at least one request.
        batch_users: U; the last batch is filled with rows whose user is -1.

    Yields:
        ListBatch of NumPy arrays with all labels 0. An item's id is its rank in the sorted order of the candidates'
        suffixes, so that ids do not depend on the order of the candidates.
    """
    width = max(len(request.candidates) for request in requests)
    for start in range(0, len(requests), batch_users):
        rows = requests[start : start + batch_users]
        encoded = [_encode(tokenizer, config, request, width) for request in rows]
        encoded += [{**encoded[-1], "user": -1}] * (batch_users - len(rows))
        arrays: dict[str, Any] = {
            name: np.stack([np.asarray(row[name]) for row in encoded]).astype(kind)
            for name, kind in (
                ("user", np.int32), ("items", np.int32), ("prefix", np.int32), ("prefix_length", np.int32),
                ("suffix", np.int32), ("suffix_length", np.int32), ("labels", np.float32), ("mask", bool),
            )
        }  # fmt: skip
        yield ListBatch(**arrays)


def _encode(tokenizer: TextTokenizer, config: DataConfig, request: RankingRequest, width: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    history, template = request.history[-config.history_items :], find_template(config.template)
    prefix, prefix_length = padded(
        [fit_prefix(tokenizer, history, config.prefix_tokens, counts, template)], config.prefix_tokens, tokenizer.pad
    )
    suffixes = [
        fit_suffix(
            tokenizer,
            c.title,
            c.year,
            c.genres,
            config.suffix_tokens,
            counts,
            details=c.details,
            template=template,
            reasoning=config.rationale_tokens > 0,
        )
        for c in request.candidates
    ]
    missing = width - len(suffixes)
    suffix, suffix_length = padded([*suffixes, *[(tokenizer.stop,)] * missing], config.suffix_tokens, tokenizer.pad)
    order = np.argsort(np.array([repr(ids) for ids in suffixes]), kind="stable")
    items = np.concatenate([np.argsort(order), np.arange(len(suffixes), width)])
    return {
        "user": 0,
        "items": items,
        "prefix": prefix[0],
        "prefix_length": prefix_length[0],
        "suffix": suffix,
        "suffix_length": suffix_length,
        "labels": np.zeros(width),
        "mask": np.arange(width) < len(suffixes),
    }


def _request(record: dict[str, Any], number: str) -> RankingRequest:
    candidates = tuple(
        RankingCandidate(
            _text(c.get("id", place)),
            _text(c["title"]),
            _text(c.get("year")),
            tuple(map(_text, c.get("genres") or ())),
            tuple((_text(name), _text(value)) for name, value in (c.get("details") or {}).items()),
        )
        for place, c in enumerate(record["candidates"])
    )
    if not record["history"]:
        raise ValueError("has an empty history: the model reasons from at least 1 interaction")
    if not candidates:
        raise ValueError("has no candidates")
    return RankingRequest(_text(record.get("id", number)), _history(record), candidates)


def _history(record: dict[str, Any]) -> tuple[Shown, ...]:
    times = [None if h.get("timestamp") is None else int(h["timestamp"]) for h in record["history"]]
    ordered = [time for time in [*times, record.get("timestamp")] if time is not None]
    if ordered != sorted(ordered):
        raise ValueError(f"has timestamps that are not in order, oldest first and the list's own last: {ordered[:8]}")
    before = ["" if time is None else time_words(int(ordered[-1]) - time) for time in times]
    return tuple(
        Shown(_text(h["title"]), _text(h.get("year")), _rating(h["rating"]), words)
        for h, words in zip(record["history"], before)
    )


def _rating(value: Any) -> float | None:
    if value is not None and not math.isfinite(float(value)):
        raise ValueError(f"has a rating that is not a number: {value}")
    return None if value is None else float(value)


def _text(value: Any) -> str:
    return "" if value is None else whole_characters(str(value))
