"""What a field of the configuration may hold. The range stands in the field's type; one function checks every field.

    steps: Count = 1000                              a whole number of at least 1
    beta2: Annotated[float, Range(0, below=1)]       a number

All numbers must be finite and fit the 32 bits that they have on a device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from r2rank_jax.errors import ConfigError

LARGEST_WHOLE = 2**31 - 1
LARGEST = 3.4e38
LONGEST_TEXT = 1000
SHOWN = 60
"""Characters of a refused value that a message shows."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold.

    Attributes:
        least: smallest number; None: no limit.
        most: largest number; None: what 32 bits hold.
        above: the number must be greater than this.
        below: the number must be less than this.
        note: why, in parentheses behind the limits.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether the number lies within the limits."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        text = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
        return f"{text} ({self.note})" if self.note else text


Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(above=0)]
Weight = Annotated[float, Range(0)]
Text = Annotated[str, Range(1)]  # the number of its characters


class Checked:
    """Base of the configuration's dataclasses: checks every field at construction.

    Whole numbers are converted where a float is due, lists where a tuple is due, and NumPy's numbers to Python's.
    """

    SECTION: ClassVar[str] = ""
    """Dotted name of this part of the configuration, for messages; empty at the top."""

    def __post_init__(self) -> None:
        section: Any = type(self)
        for name, kind in field_kinds(section).items():
            object.__setattr__(self, name, checked(self.dotted(name), getattr(self, name), kind))

    def dotted(self, name: str) -> str:
        """The name of a field as the command line spells it, `rl.steps`."""
        return f"{self.SECTION}.{name}" if self.SECTION else name


@functools.cache
def field_kinds(section: Any) -> dict[str, Any]:
    """The type of each field of a dataclass, with its range."""
    hints = get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value as its field keeps it.

    Args:
        name: dotted name of the field.
        value: anything.
        kind: type of the field, from `field_kinds`.

    Raises:
        ConfigError: the value has another type or lies outside the range.
    """
    kind, limits = (kind.__origin__, kind.__metadata__[0]) if get_origin(kind) is Annotated else (kind, Range())
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):  # X | None
        kind = next(part for part in get_args(kind) if part is not type(None))
        return None if value is None else checked(name, value, kind)
    if origin is Literal:
        choices = get_args(kind)
        require_value(isinstance(value, str) and value in choices, name, f"one of {', '.join(choices)}", value)
        return value
    if origin is tuple:
        return _distinct(name, value, get_args(kind)[0])
    if kind is bool:
        require_value(isinstance(value, bool), name, "true or false", value)
        return value
    if kind is int:
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require_value(is_whole, name, "a whole number", value)
        require_value(limits.holds(value), name, str(limits), value)
        most = LARGEST_WHOLE if limits.most is None else limits.most
        require_value(abs(value) <= most, name, f"at most {most}", value)
        return int(value)
    if kind is float:
        require_value(isinstance(value, numbers.Real) and not isinstance(value, bool), name, "a number", value)
        require_value(abs(value) <= LARGEST, name, f"a finite number of at most {LARGEST}", value)  # NaN fails too
        require_value(limits.holds(value), name, str(limits), value)
        return float(value)
    if kind is str:
        require_value(isinstance(value, str), name, "text", value)
        is_line = len(value.strip()) >= (limits.least or 0) and value.isprintable()
        require_value(is_line, name, "text of one line that is not empty", value)
        require_value(len(value) <= LONGEST_TEXT, name, f"text of at most {LONGEST_TEXT} characters", value)
        return value
    require_value(isinstance(value, kind), name, f"of type {kind.__name__}", value)
    return value


def _distinct(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    require_value(isinstance(value, list | tuple) and len(value) > 0, name, "a list with at least one number", value)
    items = tuple(checked(name, item, kind) for item in value)
    require_value(len(set(items)) == len(items), name, "a list without repetitions", value)
    return items


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_value(condition: bool, name: str, requirement: str, value: Any) -> None:
    """Raise `ConfigError` unless the condition holds.

    Args:
        condition: whether the value may be used.
        name: dotted name of the field.
        requirement: what the field must be, as in "at least 1".
        value: what came.
    """
    if not condition:
        raise ConfigError(f"{name} must be {requirement}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in a message: on one line, and short. Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return f"an integer of about {math.floor(value.bit_length() * math.log10(2)) + 1} digits"
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
