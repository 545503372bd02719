"""Names of objectives in a config: weighted sums of names, and a user's own functions as "module:function"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any


def weighted_names(text: str, subject: str, example: str) -> list[tuple[float, str, int | None]]:
    """Parses a sum [factor*]NAME[@k] + ... into the factor, name and cut-off of each part.

    Args:
      text: the sum.
      subject: what the sum describes, for the error message.
      example: a valid NAME[@k], for the error message.

    Returns:
      One (factor, name, k) for each part; factor 1 and k None where the text gives none.

    Raises:
      ValueError: if the text has another form or a cut-off is 0.
    """
    number, name = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+", r"[A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?"
    part = rf"(?:({number})\*)?({name})(?:@([1-9]\d*))?"
    compact = re.sub(r"\s+", "", text)
    if not re.fullmatch(rf"[+-]?{part}(?:[+-]{part})*", compact):
        raise ValueError(
            f"{subject} must be a sum of [factor*]NAME[@k]; got {text!r}; write for instance "
            f'"{example}" or "0.5*{example}+0.5*module:function"'
        )
    return [
        (float(sign + (factor or "1")), name, int(k) if k else None)
        for sign, factor, name, k in re.findall(rf"([+-]?){part}", compact)
    ]


def function_named(name: str, functions: Mapping[str, Any], subject: str) -> Any:
    """Returns `functions[name]`, or imports the function that "module:function" names.

    Args:
      name: a key of `functions`, or "module:function".
      functions: the package's own functions by name.
      subject: what the name describes, for the error message.

    Raises:
      ValueError: if the name is neither, or the module or the function cannot be imported.
    """
    if name in functions:
        return functions[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"{subject} must be one of {', '.join(functions)} or module:function; got {name!r}; correct the name, or "
            "put the module of your own function before it"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{subject} {name!r} must name a function that can be imported; got {type(error).__name__}: {error}; "
            "correct the name, or put the module's folder on PYTHONPATH"
        ) from error
