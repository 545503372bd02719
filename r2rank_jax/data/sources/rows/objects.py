"""One object per line: JSON, or Python literals in older sources. Literals are parsed, never evaluated."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rank_jax.data.sources.rows.reading import first_line, numbered_lines
from r2rank_jax.data.sources.schema import OnError

Parser = Callable[[str], Any]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ParsedObject:
    """One object and its location."""

    line: int
    text: str
    fields: dict[str, Any]


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
    return parse_literal if re.match(r"\s*\{\s*u?'", first_line(path)) else json.loads


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
    return record


def objects(
    path: Path, on_error: OnError, *, key: str | None = None, parse: Parser = json.loads
) -> Iterator[ParsedObject]:
    """Iterate over the objects of a file. Malformed ones go to `on_error`.

    Args:
        path: the file.
        on_error: handler of malformed lines.
        key: name of the id, a field that must have a single value.
        parse: parses a line.
    """
    for line, text in numbered_lines(path, on_error):
        try:
            parsed = ParsedObject(line, text, parse_object(text, parse))
            if key is not None and not as_value(parsed.fields, key):
                raise ValueError(f"{key} must not be missing or empty")
        except ValueError as error:
            on_error(path, line, str(error), text)
        else:
            yield parsed


def as_value(record: dict[str, Any], name: str) -> str | None:
    """Return a field's value as text; None if it is missing or null.

    Raises:
        ValueError: the value is a list or an object.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{name} must be one value, got {value!r:.80}")
    return joined_surrogates(value) if isinstance(value, str) else json.dumps(value)


def joined_surrogates(text: str) -> str:
    """Join surrogate pairs, as written by Python 2 and some JSON; an unpaired surrogate becomes U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
