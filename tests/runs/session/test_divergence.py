"""Skipped updates are counted, end a phase when there are too many, and leave the last good checkpoint."""

import json

import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import DivergenceError
from r2rank_jax.runs.session.divergence import MOST_IN_A_ROW, SkippedUpdates, has_diverged
from r2rank_jax.sharding import make_mesh


class Batch:
    """The only fields that are read."""

    def __init__(self, *users):
        self.user = np.array(users)
        self.position = self.user + 1


class FakeCheckpoints:
    """Steps of commits."""

    def __init__(self, run_dir, *steps):
        self.run_dir, self.steps, self.sent = run_dir, list(steps), []

    def set_aside(self, first, reason):
        assert reason == "diverged"
        self.steps = [step for step in self.steps if step < first]

    def latest(self):
        return max(self.steps, default=None)

    def send_files(self):
        self.sent.append(sorted(file.name for file in self.run_dir.iterdir()))


def counter(tmp_path, *steps, done=0, total=0):
    checkpoints = FakeCheckpoints(tmp_path, *steps)
    return checkpoints, SkippedUpdates(tmp_path, "sft", checkpoints, make_mesh(MeshConfig()), done=done, total=total)


def test_skipped_updates_are_counted_over_all_steps(tmp_path):
    _, skipped = counter(tmp_path, total=3)
    for step in range(1, 101):
        skipped.count(step, step % 2 == 0, Batch(step))
        assert skipped.suspicious == (step % 2 == 0)
    assert skipped.total == 53 and not has_diverged(tmp_path, "sft")


def test_many_in_a_row_end_the_phase_before_the_damaging_update(tmp_path):
    checkpoints, skipped = counter(tmp_path, 10, 20, 25)
    for step in range(11, 21):
        skipped.count(step, False, Batch(99))
    with pytest.raises(DivergenceError) as error:
        for step in range(21, 100):
            skipped.count(step, True, Batch(step, 7))
    assert checkpoints.steps == [10], "the update of step 20 may have caused it"
    assert checkpoints.sent == [["diverged.sft.json"]], "a mirror must have the mark before a process ends"
    message = str(error.value)
    assert (
        "sft diverged: 10 updates in a row, up to step 30, were not finite (lists, as user@position: 21@22" in message
    )
    assert "21@22, 7@8, 22@23" in message
    assert "the checkpoint of step 10 is kept; run again with a lower sft.optimizer.learning_rate" in message
    assert has_diverged(tmp_path, "sft") and not has_diverged(tmp_path, "rl")
    assert json.loads((tmp_path / "diverged.sft.json").read_text())["lists"][:3] == ["21@22", "7@8", "22@23"]


def test_nine_in_a_row_do_not(tmp_path):
    _, skipped = counter(tmp_path)
    for start in (0, 10, 20):
        for step in range(start + 1, start + MOST_IN_A_ROW):
            skipped.count(step, True, Batch(1))
        skipped.count(start + MOST_IN_A_ROW, False, Batch(1))
    assert skipped.total == 27


def test_a_phase_that_changed_nothing_does_not_finish(tmp_path):
    checkpoints, skipped = counter(tmp_path, 2, done=2, total=2)
    skipped.count(3, True, Batch(4))
    with pytest.raises(
        DivergenceError, match=r"all 3 updates were not finite .*there is no checkpoint from before that"
    ):
        skipped.require_an_update(3)
    assert checkpoints.steps == []
    _, skipped = counter(tmp_path, done=2, total=1)
    skipped.count(3, True, Batch(4))
    skipped.require_an_update(3)


def test_scores_that_are_not_finite_end_the_phase(tmp_path):
    checkpoints, skipped = counter(tmp_path, 5, 10, 15)
    with pytest.raises(DivergenceError, match="scores of the validation lists are not finite at step 15"):
        skipped.stop_at_scores(15, last_good=10)
    assert checkpoints.steps == [5, 10]


def test_the_mark_goes_with_the_next_commit(tmp_path):
    _, skipped = counter(tmp_path, 5)
    with pytest.raises(DivergenceError):
        skipped.stop_at_scores(10, last_good=5)
    _, again = counter(tmp_path, 5, done=5)
    again.count(6, True, Batch(1))
    again.recovered()
    assert has_diverged(tmp_path, "sft"), "it has not recovered yet"
    again.count(7, False, Batch(1))
    again.recovered()
    assert not has_diverged(tmp_path, "sft")
