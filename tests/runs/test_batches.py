"""Data workers do not change a run; length buckets only change which lists share a batch."""

import math

import numpy as np
import pytest

from r2rank_jax.config import read
from r2rank_jax.runs.inputs import critic_batches, open_inputs, training_batches
from r2rank_jax.sharding import Part
from tests.support.command_line import STEPS, metrics, succeed


@pytest.mark.slow
def test_workers_do_not_change_a_run(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    args = ("sft", "--config", tiny.config, "--run-dir", run_dir)
    succeed(*args, "--compute.data-workers", "2", "--sft.checkpoint-every", "3")
    assert metrics(run_dir, "sft") == metrics(sft_run, "sft")
    assert "finished at step 10" in succeed(*args), "a thread resumes what workers committed"


@pytest.mark.slow
def test_a_run_in_buckets_with_times_and_without_reasoning_learns(tiny, tmp_path):
    run_dir = tmp_path / "run"
    traces = tmp_path / "traces.jsonl"
    written = ("--lists", "50", "--template", "films-2")
    succeed("data", "synthesize", "--data", tiny.data, "--out", traces, *written)
    args = ("--config", tiny.config, "--run-dir", run_dir, "--data.length-buckets", "3", "--data.template", "films-2")
    args += (  # type: ignore[assignment]
        "--data.traces",
        traces,
        "--data.rationale-tokens",
        "0",
        "--data.prefix-tokens",
        "160",
        "--data.suffix-tokens",
        "24",
    )
    for phase in ("sft", "rl"):
        succeed(phase, *args)
        lines = metrics(run_dir, phase)
        assert lines[-1]["step"] == STEPS and all(math.isfinite(line["loss"]) for line in lines if "loss" in line)


@pytest.mark.slow
def test_the_critics_lists_go_on_where_they_stopped_and_have_an_order_of_their_own(sft_run):
    inputs, whole = open_inputs(read(sft_run / "config.json"), sft_run), Part((0,), 1)
    drawn = critic_batches(inputs, whole, 4, 7, first=0)
    first, second, third = (next(drawn) for _ in range(3))
    resumed = next(critic_batches(inputs, whole, 4, 7, first=2))
    for name in ("user", "position", "items", "labels"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(third, name))
    of_policy = next(training_batches(inputs, whole, 4, 7))
    assert not np.array_equal(of_policy.position, first.position)
    assert not np.array_equal(first.position, second.position)
    assert critic_batches(inputs, whole, 0, 7, first=0) is None
