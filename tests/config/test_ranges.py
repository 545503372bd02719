"""Every number of a configuration has a type and a range, which are checked when the configuration is made."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from r2rank_jax.config import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
    from_json,
    to_json,
)
from r2rank_jax.config.checks import field_kinds
from r2rank_jax.errors import ConfigError

SECTIONS: list[Any] = [type(part) for part in vars(RunConfig(name="x")).values() if dataclasses.is_dataclass(part)]
NUMBERS = [
    (section, name)
    for section in [*SECTIONS, OptimizerConfig]
    for name, kind in field_kinds(section).items()
    if isinstance(getattr(section(), name), int | float) and not isinstance(getattr(section(), name), bool)
]


@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=lambda x: getattr(x, "SECTION", x))
def test_no_number_may_be_infinite_or_text_or_negative(section, name):
    for value in (math.nan, math.inf, -math.inf, "1", True, [1], {}, 1e39, 10**400, -1, -0.5):
        with pytest.raises(ConfigError, match=rf"^{section.SECTION}\.{name} must be .*, got ") as refusal:
            section(**{name: value})
        assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


def test_there_are_numbers_in_every_section():
    assert {section.SECTION for section, _ in NUMBERS} == {
        *("data", "model", "mesh", "compute", "sft", "rl", "evaluation", "optimizer")
    }


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (OptimizerConfig, {"beta2": 1.0}, r"optimizer\.beta2 must be at least 0 and below 1, got 1\.0"),
        (OptimizerConfig, {"learning_rate": 0}, r"optimizer\.learning_rate must be above 0, got 0"),
        (
            OptimizerConfig,
            {"clip_norm": -1},
            r"clip_norm must be at least 0 \(0 turns clipping off\), got -1",
        ),
        (OptimizerConfig, {"moment_dtype": "float16"}, "must be one of float32, bfloat16, got 'float16'"),
        (ComputeConfig, {"update_gib": math.inf}, r"compute\.update_gib must be a finite number"),
        (ModelConfig, {"layers": 0}, r"model\.layers must be at least 1, got 0"),
        (ModelConfig, {"kv_heads": 0}, r"model\.kv_heads must be at least 1, got 0"),
        (ModelConfig, {"lora_alpha": 0}, r"model\.lora_alpha must be above 0"),
        (ModelConfig, {"width": 2**31}, r"model\.width must be at most 2147483647, got 2147483648"),
        (EvaluationConfig, {"ks": (1, 0)}, r"evaluation\.ks must be at least 1, got 0"),
        (EvaluationConfig, {"ks": ()}, r"evaluation\.ks must be a list with at least one number"),
        (EvaluationConfig, {"ks": (5, 1, 5)}, r"evaluation\.ks must be a list without repetitions, got \(5, 1, 5\)"),
        (EvaluationConfig, {"ks": 5}, r"evaluation\.ks must be a list"),
        (EvaluationConfig, {"bootstrap_samples": 0}, r"evaluation\.bootstrap_samples must be at least 1, got 0"),
        (RLConfig, {"steps": 2**30, "updates": 3}, r"rl\.steps x rl\.updates must be at most"),
        (RLConfig, {"estimator": "reinforce", "num_samples": 1}, r"needs rl\.num_samples >= 2, got 1"),
        (RLConfig, {"reward": "1e999*mrr"}, r"rl\.reward must be a sum with finite factors"),
        (SFTConfig, {"optimizer": 3e-3}, r"sft\.optimizer must be of type OptimizerConfig, got 0\.003"),
        (DataConfig, {"directory": " "}, r"data\.directory must be text of one line that is not empty, got ' '"),
        (DataConfig, {"traces": "x" * 1001}, r"data\.traces must be text of at most 1000 characters"),
        (DataConfig, {"traces": "a\0b"}, r"data\.traces must be text of one line"),
        (RunConfig, {"name": "x", "seed": -1}, r"^seed must be at least 0 and at most 4294967294"),
        (RunConfig, {"name": "x", "seed": 2**32 - 1}, r"^seed must be at least 0 and at most 4294967294"),
        (RunConfig, {"name": ""}, r"^name must be text of one line that is not empty"),
        (RunConfig, {"name": "x", "pretrained": ""}, r"^pretrained must be text of one line"),
    ],
)
def test_a_value_out_of_range_is_refused(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_values_that_are_as_good_are_converted():
    optimizer = OptimizerConfig(learning_rate=1, warmup_steps=np.int64(3), clip_norm=np.float32(0.5))
    values = optimizer.learning_rate, optimizer.warmup_steps, optimizer.clip_norm
    assert values == (1.0, 3, 0.5) and [type(value) for value in values] == [float, int, float]
    assert EvaluationConfig(ks=[1, 3]).ks == (1, 3)
    config = RunConfig(name="x", sft=SFTConfig(optimizer=optimizer))
    assert from_json(to_json(config)) == config


def test_the_optimizer_of_a_file_is_named_with_its_phase():
    for phase in ("sft", "rl"):
        values = to_json(RunConfig(name="x"))
        values[phase]["optimizer"]["beta2"] = -1
        with pytest.raises(ConfigError, match=rf"^{phase}\.optimizer\.beta2 must be at least 0"):
            from_json(values)


def test_equal_rewards_compare_equal():
    assert RLConfig(reward=" ndcg@10") == RLConfig(reward="ndcg@10") == RLConfig(reward="+1.0*ndcg@10")
    assert RLConfig(reward="0.50 * ndcg@10 + 2.*mrr").reward == "0.5*ndcg@10+2*mrr"
    assert RLConfig(reward="my_1:f@3-1e-3*mrr").reward == "my_1:f@3-0.001*mrr"
    assert RLConfig(rationale_rewards=".1 * cut_off").rationale_rewards == "0.1*cut_off"
