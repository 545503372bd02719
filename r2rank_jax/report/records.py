"""One line of `metrics.jsonl`, as `runs.session.log` writes it and `report.reading` reads it.

A line is a JSON object with `phase`, `step`, `wall_s`, and one number for each metric name. The code that measures a
number documents it: `train` for the metrics of a step, `evaluation.metrics` for those of validation, which are named
"validation/NAME".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OWN = ("phase", "step", "wall_s")
_HUGE = 1 << 1023  # integers from here on overflow a float


@dataclass(frozen=True)
class LoggedStep:
    """Metrics of one phase at one step."""

    phase: str  # a `phases.Phase` if this package wrote the line
    step: int
    wall_s: float  # seconds since the phase began, over all resumptions
    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that one line holds."""
        return {"phase": self.phase, "step": self.step, "wall_s": round(self.wall_s, 3), **self.values}

    @classmethod
    def from_json(cls, row: Any) -> LoggedStep | None:
        """Inverse of `to_json`; None for anything but an object with a phase and a step. Other values than numbers are
        dropped.

        Numbers are kept as they were logged and may be NaN or infinite.
        """
        if not isinstance(row, Mapping):
            return None
        phase, step = row.get("phase"), row.get("step")
        if not isinstance(phase, str) or not isinstance(step, int):
            return None
        numbers = {name: float(x) for name, x in row.items() if _is_number(x)}
        wall_s = numbers.get("wall_s", 0.0)
        return cls(phase, step, wall_s, {name: x for name, x in numbers.items() if name not in _OWN})

    def finite(self, name: str) -> float | None:
        """A metric, or None if it was not logged or is not finite."""
        value = self.values.get(name, math.nan)
        return value if math.isfinite(value) else None

    def updated(self, later: LoggedStep) -> LoggedStep:
        """This step with the values that were logged for it later."""
        return LoggedStep(self.phase, self.step, later.wall_s, {**self.values, **later.values})


def _is_number(x: Any) -> bool:
    return isinstance(x, float) or (isinstance(x, int) and abs(x) < _HUGE)
