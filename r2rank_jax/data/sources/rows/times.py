"""Times as numbers or dates: how one is parsed, which are absurd, and how the unit of a column is detected.

The unit is read off many rows. Zeros and negative numbers do not decide; among the others, the median does, so a few
wrong rows change nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median_low

import polars as pl

from r2rank_jax.errors import DataError

UNITS = {"s": 1, "ms": 1000}  # name -> how many are a second
LATEST_S = 4_102_444_800  # the year 2100: a later interaction is a mistake, most often of the unit
EARLIEST_USUAL_S = 315_532_800  # the year 1980: if most interactions are earlier, the unit is probably another
# Times in milliseconds passed 10^11 in 1973; times in seconds reach it in the year 5138. Likewise for microseconds.
MILLISECONDS_FROM, MICROSECONDS_FROM = 10**11, 10**14
SAMPLED = 10_000  # times that decide on the unit
_NUMBER = 0.5  # share of numbers from which a column holds numbers instead of dates
_DATE = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2})?)(?:[.,](\d{1,9}))?"
    r" ?(Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)
DATE_FORMS = "a date as 2024-05-31 or 2024-05-31T12:59:00.5Z"


@dataclass(frozen=True)
class TimeFormat:
    """How a column writes its times."""

    unit: str = "s"  # of the result, "s" or "ms"
    dates: bool = False  # dates in UTC unless they name a zone; otherwise whole numbers, also as 881250949.0 or 8.8e8
    after: int = 0  # numbers between 0 and this one are of another unit; 0 is accepted, as for a source without times

    def parsed(self, text: pl.Series) -> pl.Series:
        """Int64 in `unit`; null for anything but a time from 1970 to 2100."""
        value = milliseconds_of_dates(text) if self.dates else whole_numbers(text)
        if self.dates and self.unit == "s":  # cutting fractions off would make times tie
            value = (value // 1000).set(value % 1000 != 0, None)
        usual = (value >= 0) & (value < LATEST_S * UNITS[self.unit]) & ((value == 0) | (value >= self.after))
        return value.set(~usual, None)

    def fault(self, text: str | None) -> str:
        """Say what is required of a time, for one that `parsed` refuses."""
        if self.dates:
            if text is not None and (milliseconds_of_dates(pl.Series([text])) % 1000 > 0).any():
                return "must have no fraction of a second where the unit is s (--time-unit ms keeps fractions)"
            return f"must be {DATE_FORMS}, from 1970 to 2100"
        try:
            whole = float(text or "").is_integer()
        except ValueError:
            whole = False
        if not whole:
            return "must be a whole number"
        name = {"s": "seconds", "ms": "milliseconds"}[self.unit]
        return f"must be a time in {name} from 1970 to 2100 (--time-unit sets another unit)"


SECONDS = TimeFormat()


def whole_numbers(text: pl.Series) -> pl.Series:
    """Parse whole numbers as Int64; null for anything else."""
    text = text.str.strip_chars()
    integer = text.cast(pl.Int64, strict=False)
    if integer.null_count() == text.null_count():
        return integer
    real = text.cast(pl.Float64, strict=False)
    return integer.fill_null(real.set((real != real.floor()).fill_null(True), None).cast(pl.Int64, strict=False))


def milliseconds_of_dates(text: pl.Series) -> pl.Series:
    """Parse dates with or without a time, a fraction of a second and a zone as Int64; null for anything else."""
    parts = text.str.strip_chars().str.extract_groups(_DATE).struct.unnest()
    day, clock, fraction, zone = (parts[str(number)] for number in range(1, 5))
    seconds = pl.select(pl.when(clock.str.len_chars() == 5).then(clock + ":00").otherwise(clock)).to_series()
    moment = day + " " + seconds.fill_null("00:00:00")
    value = moment.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="ms").dt.epoch("ms")
    if fraction.null_count() < len(fraction):
        value += fraction.fill_null("0").str.pad_end(3, "0").str.slice(0, 3).cast(pl.Int64)
    offset = zone.str.replace_all(r"[^0-9]", "").fill_null("")
    if (offset != "").any():
        digits = offset.str.pad_end(4, "0")
        minutes = digits.str.slice(0, 2).cast(pl.Int64) * 60 + digits.str.slice(2, 2).cast(pl.Int64)
        value -= minutes * 60_000 * (1 - 2 * zone.str.starts_with("-").fill_null(False).cast(pl.Int64))
    return value


def detect(path: Path, name: str, texts: Iterable[str | None], unit: str | None) -> TimeFormat:
    """Read the format of a column of times off its rows.

    Args:
        path: the file.
        name: the column.
        texts: the times in the order of the file; only as many as are needed are taken.
        unit: "s" or "ms", if it is given; None to detect it.

    Raises:
        DataError: most times have another unit, or none of them is a time.
    """
    deciding = (text for text in texts if text and text.strip() and text.strip("0.") != "")
    sample = pl.Series(list(islice(deciding, SAMPLED)), dtype=pl.String)
    numbers = whole_numbers(sample).drop_nulls().to_list()
    dates = milliseconds_of_dates(sample).drop_nulls() if len(numbers) < len(sample) else sample.clear().cast(pl.Int64)
    if len(dates) > _NUMBER * (len(dates) + len(numbers)):
        return TimeFormat(unit or ("ms" if (dates % 1000 > 0).any() else "s"), dates=True)
    usual = [number for number in numbers if number > 0]
    size = median_low(usual) if usual else 0
    real = sample.cast(pl.Float64, strict=False)
    if (unit is None and size >= MICROSECONDS_FROM) or (len(sample) and (real.is_null() | real.is_nan()).all()):
        raise DataError(
            f"{path}: {name} must be whole seconds, whole milliseconds or {DATE_FORMS}, got {sample[0]!r:.80} in "
            f"the first row with a time; convert the times"
        )
    if unit is None and _are_dates_in_digits(numbers):
        raise DataError(
            f"{path}: {name} must be whole seconds, whole milliseconds or {DATE_FORMS}, got {numbers[0]}, a date "
            f"without dashes; write the dates with dashes, or give --time-unit if these are numbers"
        )
    if unit in (None, "ms") and size >= MILLISECONDS_FROM:
        return TimeFormat("ms", after=MILLISECONDS_FROM)
    found = TimeFormat(unit or "s")
    if 0 < size < EARLIEST_USUAL_S * UNITS[found.unit]:
        day = datetime.fromtimestamp(size / UNITS[found.unit], UTC).date()
        print(
            f"{path}: {name} is read in {'seconds' if found.unit == 's' else 'milliseconds'}, so half of the times are "
            f"before {day}; if they have another unit, convert them: order and splits stay the same, but times in "
            f"prompts are wrong",
            file=sys.stderr,
        )
    return found


def _are_dates_in_digits(numbers: list[int]) -> bool:
    """Whether most numbers read as YYYYMMDD, as 20240531, which in seconds is a day of 1970."""
    dates = sum(1970 <= n // 10_000 < 2100 and 1 <= n // 100 % 100 <= 12 and 1 <= n % 100 <= 31 for n in numbers)
    return dates > _NUMBER * len(numbers)
