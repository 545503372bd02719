"""What training validates on: all users, or a few that do not depend on the run's seed."""

import dataclasses

import numpy as np
import pytest

from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import read, with_values
from r2rank_jax.rollout.scoring import make_scorer
from r2rank_jax.runs.inputs import held_out_metrics, open_inputs, validation_metrics
from r2rank_jax.runs.session.log import is_due
from r2rank_jax.sharding import abstract_params, make_mesh


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
