"""What an experiment may be."""

import runpy
from pathlib import Path

import pytest

from r2rank_jax.config import RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.experiments.design import Arm, Experiment, Protocol


def arm(name="sft", phase="sft", **values):
    return Arm(name=name, phase=phase, asks="nothing", **values)


def designed(*arms, **values):
    return Experiment(
        **{"name": "x", "title": "x", "config": RunConfig(name="x"), "seeds": (0,), "arms": arms, **values}
    )


@pytest.mark.parametrize("path", sorted(Path("configs/experiments").glob("*.py")), ids=lambda path: path.stem)
def test_every_experiment_in_configs_can_be(path):
    assert runpy.run_path(str(path))["experiment"]().name == path.stem


def test_the_example_of_the_documentation_can_be(tmp_path):
    example = Path("docs/experiments.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(example, encoding="utf-8")
    assert runpy.run_path(str(tmp_path / "mine.py"))["experiment"]().name == "mine"


def test_an_impossible_design_is_refused():
    with pytest.raises(ConfigError, match="different names"):
        designed(arm(), arm())
    with pytest.raises(ConfigError, match="must start from an earlier sft arm, got start='sft'"):
        designed(arm("rl", "rl", start="sft"), arm())
    with pytest.raises(ConfigError, match="must start from none"):
        designed(arm(), arm("other", start="sft"))
    with pytest.raises(ConfigError, match="unknown field"):
        designed(arm(values={"rl.weight": 1}))
    with pytest.raises(ConfigError, match=r"model.critic is trained by sft and needs sft.critic_users of at least 1"):
        designed(arm(values={"model.critic": True}))
    with pytest.raises(ConfigError, match="must not set seed"):
        designed(arm(values={"seed": 7}))
    with pytest.raises(ConfigError, match="comparisons must name"):
        designed(arm(), comparisons=(("sft", "ease"),))
    with pytest.raises(ConfigError, match="probes must name arms"):
        designed(arm(), probes=("rl",))
    with pytest.raises(ConfigError, match=r"got \['sft'\] twice"):
        designed(arm(), baselines=("sft",))
    for name in ("../x", "", "a b"):
        with pytest.raises(ConfigError, match="must be letters"):
            designed(arm(), name=name)
        with pytest.raises(ConfigError, match="must be letters"):
            designed(arm(name))
    protocol = Protocol(name="p", title="p", directory="d")
    with pytest.raises(ConfigError, match="protocols must have different names"):
        designed(arm(), also=(protocol, protocol))


def test_an_arm_inherits_the_settings_of_the_arm_that_it_starts_from():
    design = designed(
        arm(),
        arm("direct", values={"data.rationale_tokens": 0, "sft.steps": 7, "rl.steps": 2}),
        arm("rl", "rl", start="sft", values={"rl.steps": 3}),
        arm("direct_rl", "rl", start="direct", values={"rl.steps": 4}),
        arm("control", "sft_continued", start="direct_rl", values={"sft.batch_users": 5}),
    )
    config = {each.name: design.config_of(each, 9) for each in design.arms}
    assert {each.seed for each in config.values()} == {9}
    default = RunConfig(name="x")
    assert config["rl"].data == default.data and config["rl"].rl.steps == 3
    assert config["direct_rl"].data.rationale_tokens == 0 == config["control"].data.rationale_tokens
    assert config["direct"].rl.steps == 2 and config["direct_rl"].rl.steps == 4 == config["control"].rl.steps
    assert config["control"].sft.steps == 7 and config["control"].sft.batch_users == 5
    assert config["direct_rl"].sft.batch_users == default.sft.batch_users
    assert [each.name for each in design.lineage(design.arm("control"))] == ["direct", "direct_rl", "control"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data.rationale_tokens": 5}, "data.rationale_tokens: 0 -> 5"),
        ({"model.width": 48}, "model.width: 96 -> 48"),
        ({"data.split": "global_time"}, "data.split: leave_one_out -> global_time"),
    ],
)
def test_an_arm_that_is_trained_further_must_stay_the_same_model(values, named):
    start = arm("direct", values={"data.rationale_tokens": 0})
    with pytest.raises(ConfigError, match=f"arm rl must have the model, prompts and data of direct.*{named}"):
        designed(start, arm("rl", "rl", start="direct", values=values))
    designed(start, arm("rl", "rl", start="direct", values={"data.train_positives": 2, "model.remat": "none"}))
