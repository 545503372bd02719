"""One object per line: JSON, or Python literals in older sources. Literals are parsed, never evaluated."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from r2rank_jax.data.sources.rows.reading import chunks, first_line, numbered_lines
from r2rank_jax.data.sources.schema import OnError

Parser = Callable[[str], Any]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ParsedObject:
    """One object and its location."""

    line: int
    text: str
    fields: dict[str, Any]


class _Repeated(dict[str, Any]):
    """An object that has a name twice."""


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError, RecursionError: the text is something else.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _Repeated(record)


def parse_literal(text: str) -> Any:
    """Parse a Python literal, including Python 2's u''.

    Raises:
        ValueError, SyntaxError and others: the text is not a literal.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a text with "\\/" has an invalid but harmless escape
        return ast.literal_eval(text)


def parser_of(path: Path) -> Parser:
    """Return the parser for a file's lines. Python literals begin with {' or {u'."""
    return parse_literal if re.match(r"\s*\{\s*u?'", first_line(path)) else parse_json


def parse_object(text: str, parse: Parser) -> dict[str, Any]:
    """Parse one line as a dictionary.

    Raises:
        ValueError: the line is something else.
    """
    try:
        record = parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"expected a complete object, got: {error or type(error).__name__}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with named fields, got {type(record).__name__}")
    if isinstance(record, _Repeated):  # only of the whole line: what nested objects hold is not joined on
        raise ValueError("expected each field once, got an object that has a name twice")
    return record


def objects(
    path: Path, on_error: OnError, *, key: str | None = None, parse: Parser = parse_json
) -> Iterator[ParsedObject]:
    """Iterate over the objects of a file. Malformed ones go to `on_error`.

    Args:
        path: the file.
        on_error: handler of malformed lines.
        key: name of the id, a field that must have a single value.
        parse: parses a line.
    """
    for line, text in numbered_lines(path, on_error):
        if not text.strip():
            continue
        try:
            parsed = ParsedObject(line, text, parse_object(text, parse))
            if key is not None and not as_value(parsed.fields, key):
                raise ValueError(f"{key} must not be missing or empty")
        except ValueError as error:
            on_error(path, line, str(error), text)
        else:
            yield parsed


def keys_of(path: Path, wanted: Collection[str]) -> tuple[str, ...]:
    """Return the names of the fields in a file of JSON objects; any line may be the first that has one.

    Args:
        path: the file.
        wanted: names after which reading stops. Chunks that mention none of the missing names are skipped.
    """
    keys: dict[str, None] = {}
    for chunk in chunks(path):
        missing = {name for name in wanted if name not in keys}
        if not missing:
            break
        escaped = b"\\u" in chunk.data
        if keys and not escaped and not any(json.dumps(n, ensure_ascii=False).encode() in chunk.data for n in missing):
            continue
        for data in chunk.texts():
            try:
                record = parse_object(data.decode("utf-8"), parse_json)
            except ValueError:
                continue
            keys |= dict.fromkeys(record)
            missing -= record.keys()
            if not missing:
                break
    return tuple(keys)


def as_value(record: dict[str, Any], name: str) -> str | None:
    """Return a field's value as text; None if it is missing or null.

    Raises:
        ValueError: the value is a list or an object, or NaN or infinite.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{name} must be one value, got {value!r:.80}")
    if isinstance(value, str):
        return joined_surrogates(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return format(Decimal(repr(value)), "f")  # without an exponent, as polars writes it
    return json.dumps(value)


def as_list(value: Any) -> list[Any]:
    """Return the elements of a list without its nulls; a single value counts as a list of one, and null as none.

    >>> as_list(["Action", None]), as_list("Action"), as_list(None), as_list(float("nan"))
    (['Action'], ['Action'], [], [])
    """
    if isinstance(value, (list, tuple)):
        return [one for one in value if one is not None]
    return [] if value is None or value == "" or value != value else [value]


def joined_surrogates(text: str) -> str:
    """Join surrogate pairs, as written by Python 2 and some JSON; an unpaired surrogate becomes U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
