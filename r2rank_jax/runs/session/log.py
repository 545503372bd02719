"""The log of a run: `metrics.jsonl`, TensorBoard events, and lines or a progress bar on the screen."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import jax
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.phases import Phase
from r2rank_jax.report.records import LoggedStep

if TYPE_CHECKING:
    from r2rank_jax.runs.session.resuming import Resumption  # which prints with `say`


class RunLog:
    """Metrics of one phase. Only process 0 writes and prints.

    Args:
        run_dir: holds `metrics.jsonl`, which the phases share; each object names its phase.
        phase: the phase that is logged.
        resumption: where the phase continues. Later lines are dropped, because they will be written again.
        steps: of the whole phase, for the progress bar.
    """

    def __init__(self, run_dir: Path, phase: Phase, resumption: Resumption, *, steps: int):
        self._active = jax.process_index() == 0
        self._phase = phase
        self._start = time.monotonic() - resumption.wall_s
        self._progress: Progress | None = None
        if not self._active:
            return
        from tensorboardX import SummaryWriter  # imports PyTorch where that is installed, which takes seconds

        path = run_dir / "metrics.jsonl"
        _drop_later(path, phase, resumption)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir / "tensorboard" / phase), purge_step=resumption.step + 1)
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn(f"{phase:>13}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"),
            )  # fmt: skip
            self._progress.start()
            self._task: TaskID = self._progress.add_task(phase, total=steps, completed=resumption.step, metrics="")

    @property
    def wall_s(self) -> float:
        """Seconds of training in this phase, over all resumptions."""
        return time.monotonic() - self._start

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a step. Values that are not finite are left out; "skipped" says that there were some."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        record = LoggedStep(self._phase, step, self.wall_s, values)
        self._file.write(json.dumps(record.to_json()) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._progress is None:
            print(f"{self._phase} step {step:>5}  {self.wall_s:6.0f} s  {shown}", flush=True)
        else:
            brief = "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:3])
            self._progress.update(self._task, completed=step, metrics=brief)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._file.close()
            self._events.close()
            if self._progress is not None:
                self._progress.stop()


def say(text: str) -> None:
    """Print from process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _drop_later(path: Path, phase: Phase, resumption: Resumption) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            logged = LoggedStep.from_json(json.loads(line))
        except ValueError:
            continue  # a line that was cut off when the process was killed
        if logged is not None and (logged.phase != phase or not _is_later(logged, resumption)):
            kept.append(line)
    with replacing_file(path) as partial:
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _is_later(logged: LoggedStep, resumption: Resumption) -> bool:
    """Whether a line will be written again."""
    is_validation = any(name.startswith("validation/") for name in logged.values)
    return logged.step > resumption.step or (logged.step >= resumption.first_step and is_validation)


def is_due(step: int, every: int) -> bool:
    """Whether what happens every so many steps happens at this one; `every` 0 means never."""
    return every > 0 and step % every == 0
