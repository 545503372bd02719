"""What training validates on, and a validation that a stop interrupts."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import read, with_values
from r2rank_jax.errors import FAILED, STOPPED
from r2rank_jax.rollout.scoring import make_scorer
from r2rank_jax.runs.inputs import held_out_metrics, open_inputs, validation_metrics
from r2rank_jax.runs.session.log import is_due
from r2rank_jax.sharding import abstract_params, make_mesh
from tests.support.command_line import environment, succeed
from tests.support.runs.stops import differences


def test_what_is_due():
    assert [step for step in range(1, 8) if is_due(step, 3)] == [3, 6]
    assert not any(is_due(step, 0) for step in range(1, 8))


@pytest.mark.slow
def test_a_few_users_are_the_same_for_every_seed(rl_run):
    config = read(rl_run / "config.json")
    mesh, inputs = make_mesh(config.mesh), open_inputs(config, rl_run)
    params = load_policy(rl_run / "checkpoints/sft", abstract_params(mesh, config.model), config).params
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)

    def validate(**values):
        changed = dataclasses.replace(inputs, config=with_values(config, values))
        return validation_metrics(changed, scorer, mesh, params)["ndcg@10"]

    whole = held_out_metrics(inputs, scorer, mesh, params, "valid")[0]["ndcg@10"]
    np.testing.assert_array_equal(validate(), whole)
    some = validate(**{"evaluation.validation_users": 7})
    assert len(some) == 7 < len(whole) and set(some.tolist()) <= set(whole.tolist())
    np.testing.assert_array_equal(validate(**{"evaluation.validation_users": 7, "seed": 5}), some)
    np.testing.assert_array_equal(validate(**{"evaluation.validation_users": 10**6}), whole)


STOPPED_IN_VALIDATION = """
def stop(*_): raise Stopped("as told")
sft.validation_metrics = stop
"""
FAILING_IN_ITS_FIRST_STEP = """
def fail(*_): raise RuntimeError("out of luck")
release = stopping.release
sft.make_sft_step = lambda *_: fail
stopping.release = lambda: (print("released", flush=True), release())
"""


def patched(patch, *arguments):
    code = "import sys; from r2rank_jax import stopping; from r2rank_jax.cli import main; "
    code += f"from r2rank_jax.errors import Stopped; from r2rank_jax.runs import sft\n{patch}\nsys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.slow
def test_a_validation_that_was_owed_is_committed_before_the_next_step_compiles(tiny, sft_run, tmp_path):
    command = ("sft", "--config", tiny.config, "--run-dir", tmp_path / "run")
    record = tmp_path / "run/checkpoints/sft/5/extras/metadata"
    assert patched(STOPPED_IN_VALIDATION, *command).returncode == STOPPED
    assert not json.loads(record.read_bytes())["validated"]
    failed = patched(FAILING_IN_ITS_FIRST_STEP, *command)
    assert failed.returncode == FAILED and "validation/ndcg@1" in failed.stdout and "released" in failed.stdout
    assert json.loads(record.read_bytes()).get("validated", True)  # the usual value is not written
    succeed(*command)
    assert differences(sft_run, tmp_path / "run", "sft") == []
