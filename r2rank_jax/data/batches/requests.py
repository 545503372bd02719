"""Read and encode a user's own lists: histories and candidates as JSON lines, for any template.

    {"id": "ada",
     "history": [{"title": "Alien", "year": "1979", "rating": 5}, ...],          oldest first
     "candidates": [{"id": "m1", "title": "Heat", "year": "1995", "genres": ["Action"]}, ...]}

`year`, `rating`, `genres` and the ids are optional; null is the same as no value. `genres` may be a string, which is
split as `r2rank data prepare` splits it. A candidate may have `details` ({"brand": "LEGO", "price": "12.99"}), of which
the template shows those it knows. For templates that show times, each interaction and the list itself may have a
`timestamp` in seconds; the list's defaults to the latest interaction's. The history may be empty, but no template ranks
without one: see `without_history`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import padded
from r2rank_jax.data.batches.request_text import numbered_lines
from r2rank_jax.data.prompts.fitting import fit_prefix, fit_suffix
from r2rank_jax.data.prompts.item_text import whole_characters
from r2rank_jax.data.prompts.prompts import Shown, time_words
from r2rank_jax.data.prompts.templates import TEMPLATES, find_template
from r2rank_jax.data.prompts.tokenizer import TextTokenizer
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch

EXPECTED = 'expected {"history": [{"title", "rating"}, ...], "candidates": [{"title"}, ...]}'
LAST_S = 1 << 33  # the year 2242; larger times are milliseconds
_SHOWN_DETAILS = {name for template in TEMPLATES.values() for name, _ in template.details}


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
    """Read and check a JSONL file of requests, gzipped or not.

    Raises:
        DataError: the file cannot be read, or a line is not a request; the message gives the line and the reason.
    """
    requests = []
    for number, line in numbered_lines(path):
        try:
            requests.append(_request(json.loads(line, object_pairs_hook=_without_repeats), str(number)))
        except RecursionError as error:
            raise DataError(f"{path}, line {number}: {EXPECTED}, but it is nested too deeply") from error
        except ValueError as error:
            reason = f"is not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{path}, line {number}: {EXPECTED}, but it {reason}") from error
    if not requests:
        raise DataError(f"{path} must hold at least one list to rank, but it holds none; add one object per line")
    return requests


def without_history(requests: list[RankingRequest]) -> tuple[list[RankingRequest], list[RankingRequest]]:
    """Split requests into those that a model can rank and those of users without a history.

    Every template's first line announces items that the user has seen, and no model has been trained on it without any.
    Scores of such a prompt would look like all others and mean nothing.

    Returns:
        (requests with a history, requests without one), each in the order of the file.
    """
    return [r for r in requests if r.history], [r for r in requests if not r.history]


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
        ListBatch of NumPy arrays with all labels 0. User, position and items are hashes of the request's id, of its
        history and of each candidate's text, so that sampled rationales depend neither on the order of candidates nor
        on other requests.
    """
    width = max(len(request.candidates) for request in requests)
    for start in range(0, len(requests), batch_users):
        rows = requests[start : start + batch_users]
        encoded = [_encode(tokenizer, config, request, width) for request in rows]
        encoded += [{**encoded[-1], "user": -1}] * (batch_users - len(rows))
        arrays: dict[str, Any] = {
            name: np.stack([np.asarray(row[name]) for row in encoded]).astype(kind)
            for name, kind in (
                ("user", np.int32), ("position", np.int32), ("items", np.int32),
                ("prefix", np.int32), ("prefix_length", np.int32),
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
    return {
        "user": _hash(request.id),
        "position": _hash(prefix.tobytes()),
        "items": np.array([*(_hash(repr(ids)) for ids in suffixes), *[0] * missing]),
        "prefix": prefix[0],
        "prefix_length": prefix_length[0],
        "suffix": suffix,
        "suffix_length": suffix_length,
        "labels": np.zeros(width),
        "mask": np.arange(width) < len(suffixes),
    }


def _hash(content: str | bytes) -> int:
    """31 bits of a hash that is the same in every process."""
    return zlib.crc32(content.encode() if isinstance(content, str) else content) & 0x7FFFFFFF


def _request(record: Any, number: str) -> RankingRequest:
    if not isinstance(record, dict):
        raise ValueError(f"is {record!r:.80}")
    records = _list(_required(record, "candidates"), "candidates")
    candidates = [_candidate(candidate, place) for place, candidate in enumerate(records, start=1)]
    if not candidates:
        raise ValueError("has no candidates")
    _require_different([candidate.id for candidate in candidates], candidates)
    # Without ids, equal text shows a repeated candidate, unless it is only that both lack a title.
    unnamed = [c for c, given in zip(candidates, records) if given.get("id") is None and c.title.strip()]
    _require_different([replace(candidate, id="") for candidate in unnamed], unnamed)
    return RankingRequest(_id(record, number), _history(record), tuple(candidates))


def _candidate(value: Any, place: int) -> RankingCandidate:
    where = f"candidate {place}"
    record = _object(value, where)
    details = _object({} if record.get("details") is None else record["details"], f"details of {where}")
    return RankingCandidate(
        _id(record, str(place - 1)),
        _text(_required(record, "title", where), f"title of {where}"),
        _text(record.get("year"), f"year of {where}"),
        _genres(record.get("genres"), f"genres of {where}"),
        tuple((name, _text(details[name], f"{name} of {where}")) for name in details if name in _SHOWN_DETAILS),
    )


def _require_different(identities: Sequence[Any], candidates: Sequence[RankingCandidate]) -> None:
    """A ranking that holds an item twice has no order to give."""
    first: dict[Any, RankingCandidate] = {}
    for identity, candidate in zip(identities, candidates):
        other = first.setdefault(identity, candidate)
        if other is not candidate:
            raise ValueError(
                f"has a candidate twice: the id {other.id!r:.80} ({other.title!r:.80}) and the id {candidate.id!r:.80} "
                f"({candidate.title!r:.80}); leave one out, or give each its own id (one without an id has its place)"
            )


def _history(record: dict[str, Any]) -> tuple[Shown, ...]:
    value = _required(record, "history")
    entries = [] if value is None else _list(value, "history")
    shown = [(f"interaction {place}", _object(e, f"interaction {place}")) for place, e in enumerate(entries, start=1)]
    times = [_time(entry.get("timestamp"), where) for where, entry in shown]
    ordered = [time for time in [*times, _time(record.get("timestamp"), "the list")] if time is not None]
    if ordered != sorted(ordered):
        raise ValueError(f"has timestamps that are not in order, oldest first and the list's own last: {ordered[:8]}")
    before = ["" if time is None else time_words(ordered[-1] - time) for time in times]
    return tuple(
        Shown(
            _text(_required(entry, "title", where), f"title of {where}"),
            _text(entry.get("year"), f"year of {where}"),
            _rating(entry.get("rating"), where),
            words,
        )
        for (where, entry), words in zip(shown, before)
    )


def _genres(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):  # as in `data.sources`, so that a prompt is the same in training and here
        value = [part.strip() for part in value.split("|" if "|" in value else ",")]
    return tuple(_text(each, name) for each in ([] if value is None else _list(value, name)))


def _rating(value: Any, where: str) -> float | None:
    return None if value is None or value == "" else _number(value, f"rating of {where}")


def _time(value: Any, where: str) -> int | None:
    if value is None:
        return None
    seconds = _number(value, f"timestamp of {where}")
    if abs(seconds) > LAST_S:
        raise ValueError(f"has {value!r:.80} as timestamp of {where}, which is not in seconds")
    return int(seconds)


def _number(value: Any, name: str) -> float:
    """A finite number, or the text of one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"has {value!r:.80} as {name}, which is not a number")
    return number


def _id(record: dict[str, Any], default: str) -> str:
    return default if record.get("id") is None else _text(record["id"], "id")


def _text(value: Any, name: str) -> str:
    """Text, or a number as text; "" for null."""
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else str(value)  # 1995.0, where a table lacks some years
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError(f"has {value!r:.80} as {name}, which is neither text nor a number")
    return "" if value is None else whole_characters(str(value))


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"has {value!r:.80} as {name}, which must be a list")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"has {value!r:.80} as {name}, which must be an object")
    return value


def _required(record: dict[str, Any], key: str, where: str = "") -> Any:
    if key not in record:
        raise ValueError(f"lacks {key!r}{where and f' in {where}'}")
    return record[key]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"names {repeated!r:.80} twice in one object")
    return record
