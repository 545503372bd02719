"""Configurations load, round-trip through JSON, and refuse invalid values."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from r2rank_jax.cli.configuration import configuration, load_config
from r2rank_jax.config import DataConfig, MeshConfig, ModelConfig, RLConfig, RunConfig, differences, from_json, to_json
from r2rank_jax.errors import ConfigError, R2RankError, UsageError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_round_trips_through_json(path):
    config = load_config(path)
    assert from_json(to_json(config)) == config
    assert config.name == path.stem


def test_the_config_of_a_run_can_be_named_or_found_in_its_directory(tmp_path):
    config = dataclasses.replace(load_config(CONFIGS[0]), seed=7)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert load_config(tmp_path / "config.json") == config
    arguments = argparse.Namespace(command="rl", help=False, config=None, run_dir=tmp_path)
    assert configuration(arguments, ["--rl.steps", "30"]) == dataclasses.replace(
        config, rl=dataclasses.replace(config.rl, steps=30)
    )
    arguments.run_dir = tmp_path / "elsewhere"
    with pytest.raises(UsageError, match=r"needs --config FILE.* or the --run-dir of a run .*elsewhere"):
        configuration(arguments, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "[1]", r"must be a JSON object, got \[1\]"),
        ("config.json", "{", "must be the config.json of a run"),
        ("config.json", '{"name": "x", "rl": {"credt": "shared"}}', r"unknown field rl\.credt"),
        ("config.yaml", "name: x", r"must name a \.py or \.json file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(R2RankError, match=reason):
        load_config(tmp_path / name)


def test_a_run_from_another_machine_does_not_fix_attention_and_memory(tmp_path):
    config = RunConfig(name="x", seed=3)
    of_a_gpu = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="cudnn"),
        compute=dataclasses.replace(config.compute, update_gib=35.2),
    )
    (tmp_path / "config.json").write_text(json.dumps(to_json(of_a_gpu)))
    assert load_config(tmp_path / "config.json") == config


def test_an_unknown_field_is_named():
    values = to_json(RunConfig(name="x"))
    values["rl"]["credt"] = "shared"
    with pytest.raises(ConfigError, match=r"unknown field rl\.credt"):
        from_json(values)


def test_the_cut_off_of_an_older_file_is_read_as_its_reward():
    values = to_json(RunConfig(name="x"))
    del values["rl"]["reward"]
    values["rl"]["metric_k"] = 5
    assert from_json(values).rl.reward == "ndcg@5"


def test_differences_name_the_field_and_both_values():
    old = to_json(RunConfig(name="x"))
    new = to_json(dataclasses.replace(RunConfig(name="x"), data=DataConfig(history_items=7)))
    assert differences(old, new) == ["data.history_items: 10 -> 7"]
    assert differences(old, old) == []


def test_invalid_settings_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"set model\.kv_heads to a divisor of 4"):
        ModelConfig(heads=4, kv_heads=3)
    with pytest.raises(ConfigError, match=r"raise rl\.rationales, or set rl\.credit to shared"):
        RLConfig(rationales=1, token_weight=0)
    with pytest.raises(ConfigError, match=r"rl\.credit=first_order compares"):
        RLConfig(rationales=1, credit="first_order")
    assert RLConfig(rationales=1, credit="shared").rationales == 1
    assert RLConfig(rationales=1, credit="leave_item_out").rationales == 1
    with pytest.raises(ConfigError, match=r"rl\.rationales must be at least 1, got 0"):
        RLConfig(rationales=0, credit="shared")
    with pytest.raises(ConfigError, match=r"set sft.batch_users to 15 or 18"):
        RunConfig(name="x", mesh=MeshConfig(fsdp=3))
    with pytest.raises(
        ConfigError, match=r"mesh\.data=3 must be a multiple of mesh\.slices=2; set mesh\.data to 2 or 4 "
    ):
        MeshConfig(data=3, slices=2)
    with pytest.raises(
        ConfigError, match=r"mesh\.data=1 must be a multiple of mesh\.slices=4; set mesh\.data to 4 and"
    ):
        MeshConfig(slices=4)
    with pytest.raises(ConfigError, match=r"set model\.score_reads to context"):
        RunConfig(name="x", model=ModelConfig(score_reads="words"), data=DataConfig(rationale_tokens=0))
    with pytest.raises(ConfigError, match="at least 2"):
        DataConfig(candidate_items=1)
    with pytest.raises(ConfigError, match=r"got 20; set it to 1 \.\. 19"):
        DataConfig(train_positives=20)
