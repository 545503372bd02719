"""The end of a phase whose updates stop being finite, in a state from which a lower learning rate can go on.

An update whose gradient is not finite is skipped (`train.state.apply_gradients`). One now and then does no harm. Many
in a row mean that an update before them damaged the parameters. Its commit and all later ones are set aside, so that
the newest commit that remains is a good one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import jax
from jax.sharding import Mesh

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.errors import DivergenceError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.phases import Phase
from r2rank_jax.sharding import gather
from r2rank_jax.types import ListBatch

MOST_IN_A_ROW = 10
"""Skipped updates in a row after which a phase ends."""
_LISTS_NAMED = 20


class SkippedUpdates:
    """Counts the skipped updates of a phase.

    Args:
        run_dir: holds the marker of a phase that diverged.
        phase: that is trained.
        checkpoints: of the phase.
        mesh: of the phase.
        done: steps done before this process started.
        total: number of updates that were skipped in them.
    """

    def __init__(self, run_dir: Path, phase: Phase, checkpoints: Checkpoints, mesh: Mesh, *, done: int, total: int):
        self.total = total
        self._run_dir, self._phase, self._checkpoints, self._mesh = run_dir, phase, checkpoints, mesh
        self._in_a_row = 0
        self._last_applied = done
        self._lists: list[str] = []  # each as user@position

    @property
    def suspicious(self) -> bool:
        """Whether the newest update was skipped. Its parameters may be damaged and must not replace good commits."""
        return self._in_a_row > 0

    def count(self, step: int, skipped: bool, batch: ListBatch) -> None:
        """Count one update.

        Args:
            step: of the update.
            skipped: whether the update was skipped.
            batch: its lists.

        Raises:
            DivergenceError: it is one too many in a row.
        """
        if not skipped:
            self._in_a_row, self._last_applied, self._lists = 0, step, []
            return
        self.total += 1
        self._in_a_row += 1
        users, positions = gather(self._mesh, (batch.user, batch.position))
        names = [f"{user}@{position}" for user, position in zip(users.tolist(), positions.tolist())]
        self._lists += [name for name in dict.fromkeys(names) if name not in self._lists]
        if self._in_a_row >= MOST_IN_A_ROW:
            self._stop(self._last_applied, f"{self._in_a_row} updates in a row, up to step {step}, were not finite")

    def require_an_update(self, updates: int) -> None:
        """Refuse to finish a phase that changed nothing.

        Args:
            updates: of the whole phase.

        Raises:
            DivergenceError: all of them were skipped.
        """
        if self.total >= updates:
            self._stop(1, f"all {updates} updates were not finite")

    def stop_at_scores(self, step: int, last_good: int) -> NoReturn:
        """End the phase because the policy's scores of the validation lists are not finite.

        Args:
            step: of the validation.
            last_good: step of the last validation whose scores were finite, or of the start.

        Raises:
            DivergenceError: always.
        """
        self._stop(last_good + 1, f"scores of the validation lists are not finite at step {step}")

    def recovered(self) -> None:
        """Delete the marker after a commit that follows a divergence."""
        if jax.process_index() == 0 and not self._in_a_row:
            _marker(self._run_dir, self._phase).unlink(missing_ok=True)

    def _stop(self, first_bad: int, what: str) -> NoReturn:
        self._checkpoints.set_aside(max(first_bad, 1), "diverged")
        good = self._checkpoints.latest()
        if jax.process_index() == 0:
            with replacing_file(_marker(self._run_dir, self._phase)) as partial:
                partial.write_text(json.dumps({"what": what, "lists": self._lists}) + "\n", encoding="utf-8")
        self._checkpoints.send_files()  # and wait, as the first process that raises ends the others
        section = "rl" if self._phase == "rl" else "sft"
        named = ", ".join(self._lists[:_LISTS_NAMED]) + (", ..." if len(self._lists) > _LISTS_NAMED else "")
        raise DivergenceError(
            f"{self._phase} diverged: {what}"
            + (f" (lists, as user@position: {named})" if named else "")
            + (f"; the checkpoint of step {good} is kept" if good else "; there is no checkpoint from before that")
            + f"; run again with a lower {section}.optimizer.learning_rate"
        )


def has_diverged(run_dir: Path, phase: Phase) -> bool:
    """Whether the phase ended because it diverged and has not gone on since."""
    return _marker(run_dir, phase).is_file()


def _marker(run_dir: Path, phase: Phase) -> Path:
    return run_dir / f"diverged.{phase}.json"
