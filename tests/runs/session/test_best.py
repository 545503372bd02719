"""`patience`: the policy of the best validation is kept and used, and a phase without a better one ends early."""

import shutil

import numpy as np
import pytest

from r2rank_jax.checkpoint.folders import policy_identity, sealed_steps
from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.cli.configuration import load_config
from r2rank_jax.config import with_values
from r2rank_jax.errors import ConfigError
from r2rank_jax.phases import Best
from r2rank_jax.runs import rl, sft
from r2rank_jax.runs.session.best import BestSoFar
from r2rank_jax.sharding import abstract_params, make_mesh

SETTINGS = {
    f"{phase}.{name}": value
    for phase in ("sft", "rl")
    for name, value in {"steps": 40, "patience": 3, "validate_every": 2, "checkpoint_every": 3}.items()
}


def test_the_first_of_equal_validations_is_the_best():
    best = BestSoFar("rl", 2, None)
    assert [best.is_best(step, value) for step, value in ((1, 0.5), (2, 0.6), (3, 0.6))] == [True, True, False]
    assert best.best == Best(step=2, value=0.6, later=1) and not best.exhausted
    assert not best.is_best(4, 0.1) and best.exhausted
    assert BestSoFar("rl", 2, best.best).exhausted, "as after a resumption"


def test_without_patience_nothing_is_kept():
    best = BestSoFar("rl", 0, None)
    assert not best.is_best(1, 0.9) and best.best is None and not best.exhausted


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_patience_needs_validations(tiny, phase):
    with pytest.raises(ConfigError, match=rf"{phase}\.patience=3 counts validations and needs {phase}\.validate_every"):
        with_values(load_config(tiny.config), SETTINGS | {f"{phase}.validate_every": 0})


@pytest.mark.slow
def test_phases_end_early_and_pass_on_their_best_policy(tiny, tmp_path, monkeypatch, capsys):
    config, run_dir = with_values(load_config(tiny.config), SETTINGS), tmp_path / "run"
    like = abstract_params(make_mesh(config.mesh), config.model)
    seen = {"sft": [], "rl": []}
    started_from = {}

    def scripted(module, values):
        """Validations that have these values, and note the parameters that they see."""

        def validate(inputs, scorer, mesh, params):
            phase = module.__name__.rsplit(".", 1)[1]
            seen[phase].append(np.asarray(params["score_head"]).copy())
            return {"ndcg@10": np.array([next(values)])}

        monkeypatch.setattr(module, "validation_metrics", validate)

    scripted(sft, iter([0.1, 0.4, 0.3, 0.4, 0.2, 0.9]))
    sft.run(config, run_dir)

    folder = run_dir / "checkpoints/sft"
    # Validations at 2, 4, 6, 8, 10; best at 4; commits at 2 and 4 (better), 3, 6, 9 (due) and 10 (the end).
    assert sealed_steps(folder) == [10, 9, 4]
    policy = load_policy(folder, like, config)
    assert policy.step == 4 and policy.record.finished and policy.record.done == 10
    assert policy.record.best == Best(step=4, value=0.4, later=3)
    np.testing.assert_array_equal(policy.params["score_head"], seen["sft"][1])
    assert policy.identity == policy_identity(folder)
    assert "sft: ends at step 10: no validation since step 4 was better" in capsys.readouterr().out

    sft.run(config, run_dir)
    assert len(seen["sft"]) == 5, "a finished phase goes no further"

    original = rl.start_from
    monkeypatch.setattr(rl, "start_from", lambda state, params: started_from.update(params) or original(state, params))
    scripted(rl, iter([0.5, 0.4, 0.4, 0.4]))
    rl.run(config, run_dir)
    np.testing.assert_array_equal(started_from["embedding"], policy.params["embedding"])
    assert load_policy(run_dir / "checkpoints/rl", like, config).step == 2
    assert load_policy(run_dir / "checkpoints/rl", like, config).record.done == 8

    with (folder / "4/state/_METADATA").open("ab") as file:
        file.write(b" ")
    assert load_policy(folder, like, config).step == 10
    assert "sft/4, of the best validation, is damaged (state/_METADATA does not match" in capsys.readouterr().out


@pytest.mark.slow
def test_the_control_does_all_of_its_work(tiny, rl_run, tmp_path, monkeypatch):
    """Ended early, it would not be as much work as RL."""
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    values = iter([0.5, *[0.4] * 100])
    monkeypatch.setattr(sft, "validation_metrics", lambda *_: {"ndcg@10": np.array([next(values)])})
    config = with_values(load_config(tiny.config), {"sft.patience": 1, "sft.validate_every": 1})

    sft.run(config, run_dir, continued=True)

    policy = load_policy(
        run_dir / "checkpoints/sft_continued", abstract_params(make_mesh(config.mesh), config.model), config
    )
    assert policy.step == 1 and policy.record.done == policy.record.steps > 2
