"""`--config` and `--run-dir` take a Python file or a run's config.json; anything else is one line with exit code 2."""

import json

import pytest

from r2rank_jax.cli import main
from r2rank_jax.config import RLConfig, RunConfig, from_json, to_json
from r2rank_jax.errors import ConfigError


def stored(**changes):
    values = to_json(RunConfig(name="x"))
    for name, value in changes.items():
        *sections, field = name.split("__")
        place = values
        for section in sections:
            place = place[section]
        place[field] = value
    return json.dumps(values)


def rl_with(**fields):
    values = to_json(RunConfig(name="x"))
    values["rl"] = {name: value for name, value in values["rl"].items() if name != "reward"} | fields
    return values


PYTHON = "from r2rank_jax.config import *\ndef config():\n    return "


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "a configuration must be a JSON object, got []"),
        ("config.json", "{", "must be the config.json of a run, but is not: Expecting property name"),
        ("config.json", b"\xff\xfe{\x00", "must be the config.json of a run, but is not: 'utf-8' codec"),
        ("config.json", "[" * 100_000, "must be the config.json of a run, but is not: "),
        ("config.json", f'{{"seed": {"9" * 5000}}}', "must be the config.json of a run, but is not: "),
        ("config.json", "{}", "name must be given"),
        ("config.json", '{"name": "x", "name": "y"}', "every field must be given once, got 'name' several times"),
        ("config.json", stored(format=9), "unknown field format; this version has "),
        ("config.json", stored(rl__optimizer__beta1=0.9), "unknown field rl.optimizer.beta1"),
        ("config.json", stored(rl=None), "rl must be a JSON object, got None"),
        ("config.json", stored(rl__optimizer=[]), "rl.optimizer must be a JSON object, got []"),
        ("config.json", stored(rl__steps="40"), "rl.steps must be a whole number, got '40'"),
        ("config.json", stored(rl__joint=1), "rl.joint must be true or false, got 1"),
        ("config.json", stored(seed=True), "seed must be a whole number, got True"),
        (
            "config.json",
            stored(rl__optimizer__learning_rate=float("nan")),
            "rl.optimizer.learning_rate must be a",
        ),
        (
            "config.json",
            json.dumps(rl_with(metric_k=5, reward="mrr")),
            "rl.metric_k=5 is the old spelling of",
        ),
        ("config.json", json.dumps(rl_with(metric_k=0)), "rl.metric_k must be at least 1, got 0"),
        ("run.yaml", "name: x", "--config must name a .py or .json file"),
        ("run.py", "", "must define `config() -> RunConfig`"),
        ("run.py", "config = 3", "must define `config() -> RunConfig`"),
        ("run.py", f"{PYTHON}None", "must return a RunConfig, got NoneType"),
        (
            "run.py",
            f"{PYTHON}1 / 0",
            "line 3 must return a RunConfig from config(), but raised ZeroDivisionError",
        ),
        ("run.py", "def config(:", "run.py, line 1 must return a RunConfig from config(), but raised SyntaxError"),
        (
            "run.py",
            "import absent_module",
            "must return a RunConfig from config(), but raised ModuleNotFoundError",
        ),
        ("run.py", f"{PYTHON}RunConfig(name='x', seed='1')", "seed must be a whole number, got '1'"),
        ("run.py", f"{PYTHON}RunConfig(name='x', rl=RLConfig(metric_k=5))", "use rl.reward, as in --rl.reward ndcg@10"),
    ],
)
def test_a_file_that_holds_no_configuration(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["plan", "--config", str(path), "--topology", "cpu:1"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and str(path) in printed and printed.count("\n") == 1


def test_a_folder_and_a_missing_file(tmp_path, capsys):
    for path, message in ((tmp_path, "which is a folder"), (tmp_path / "none.py", "which does not exist")):
        assert main(["plan", "--config", str(path), "--topology", "cpu:1"]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


def test_help_does_not_need_a_readable_file(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        main(["sft", "--run-dir", str(tmp_path), "--help"])
    assert end.value.code == 0 and "--sft.steps" in capsys.readouterr().out
    assert main(["sft", "--run-dir", str(tmp_path)]) == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err


def test_the_former_cut_off_and_an_equal_reward_agree():
    assert from_json(rl_with(metric_k=5)).rl == RLConfig(reward="ndcg@5")
    assert from_json(rl_with(metric_k=5, reward=" 1*ndcg@5")).rl == RLConfig(reward="ndcg@5")
    with pytest.raises(ConfigError, match=r"remove rl\.metric_k"):
        from_json(rl_with(metric_k=5, reward="ndcg@10"))
