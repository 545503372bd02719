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
    def from_json(cls, row: Mapping[str, Any]) -> LoggedStep | None:
        """Inverse of `to_json`; None if the object has no phase or step. Values that are not numbers are dropped.

        Numbers are kept as they were logged and may be NaN or infinite.
        """
        phase, step, wall_s = (row.get(name) for name in _OWN)
        if not isinstance(phase, str) or not isinstance(step, int):
            return None
        values = {name: float(x) for name, x in row.items() if name not in _OWN and isinstance(x, int | float)}
        return cls(phase, step, float(wall_s) if isinstance(wall_s, int | float) else 0.0, values)

    def finite(self, name: str) -> float | None:
        """A metric, or None if it was not logged or is not finite."""
        value = self.values.get(name, math.nan)
        return value if math.isfinite(value) else None

    def updated(self, later: LoggedStep) -> LoggedStep:
        """This step with the values that were logged for it later."""
        return LoggedStep(self.phase, self.step, later.wall_s, {**self.values, **later.values})
