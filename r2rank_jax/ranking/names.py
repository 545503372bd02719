"""Objectives by name: weighted sums of names, and functions of one's own as "module:function"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any


def weighted_names(text: str, what: str, example: str) -> list[tuple[float, str, int | None]]:
    """Factor, name and cut-off of each part of a sum [factor*]NAME[@k] + ...; `what` and `example` are for the error.

    Raises:
      ValueError: another form, or a cut-off of 0.
    """
    number, name = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+", r"[A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?"
    part = rf"(?:({number})\*)?({name})(?:@([1-9]\d*))?"
    compact = re.sub(r"\s+", "", text)
    if not re.fullmatch(rf"[+-]?{part}(?:[+-]{part})*", compact):
        raise ValueError(
            f"{what} must be a sum of [factor*]NAME[@k]; got {text!r}; write for instance "
            f'"{example}" or "0.5*{example}+0.5*module:function"'
        )
    return [
        (float(sign + (factor or "1")), name, int(k) if k else None)
        for sign, factor, name, k in re.findall(rf"([+-]?){part}", compact)
    ]


def function_named(name: str, known: Mapping[str, Any], what: str) -> Any:
    """`known[name]`, or what "module:function" names.

    Raises:
      ValueError: neither is there.
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"{what} must be one of {', '.join(known)} or module:function; got {name!r}; correct the name, or put the "
            "module of your own function before it"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} {name!r} must name a function that can be imported; got {type(error).__name__}: {error}; correct "
            "the name, or put the module's folder on PYTHONPATH"
        ) from error
