"""What may differ between a policy's training and a command that uses it, and what may not."""

import dataclasses

import pytest

from r2rank_jax.config import (
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
    to_json,
)
from r2rank_jax.errors import CheckpointError
from r2rank_jax.lineage import (
    other_settings,
    require_same_inputs,
    require_same_model,
    require_same_prompts,
    require_same_settings,
)
from r2rank_jax.phases import Best, InputHashes, PhaseRecord

CONFIG = RunConfig(name="test")
HASHES = InputHashes(interactions="a" * 64, items="b" * 64, candidates="c" * 64, tokenizer="d" * 64)


def record(phase="sft", config=CONFIG, inputs=HASHES, steps=1000):
    return PhaseRecord(
        phase=phase,
        config=to_json(config),
        iterator={},
        inputs=inputs and dataclasses.asdict(inputs),
        steps=steps,
        wall_s=1.0,
        finished=True,
        has_average=False,
    )


def changed(path: str, value: object) -> RunConfig:
    """The configuration with one field changed, such as `sft.optimizer.beta2`."""

    def replaced(part, names):
        name, *rest = names
        return dataclasses.replace(part, **{name: replaced(getattr(part, name), rest) if rest else value})

    return replaced(CONFIG, path.split("."))


def with_patience(patience, **values):
    return dataclasses.replace(CONFIG, sft=dataclasses.replace(CONFIG.sft, patience=patience, **values))


def test_what_validation_depends_on_must_stay_where_it_chooses_the_policy():
    config = with_patience(3)
    saved = dataclasses.replace(record(config=config), best=Best(step=200, value=0.5, later=1), finished=False)
    ranked_otherwise = dataclasses.replace(config, evaluation=EvaluationConfig(rationales=8))
    for other, named in (
        (with_patience(3, validate_every=7), r"sft\.validate_every: 200 -> 7"),
        (ranked_otherwise, r"evaluation\.rationales: 1 -> 8"),
    ):
        with pytest.raises(CheckpointError, match=named):
            require_same_settings(saved, other, done=500)
    assert require_same_settings(saved, with_patience(5), done=500) == ["from step 500: sft.patience: 3 -> 5"]
    with pytest.raises(CheckpointError, match=r"sft\.patience: 3 -> 0"):
        require_same_settings(saved, with_patience(0), done=500)


def test_a_phase_that_ended_early_goes_on_with_more_patience_only():
    saved = dataclasses.replace(record(config=with_patience(3)), best=Best(step=200, value=0.5, later=3), step=500)
    refusal = (
        r"sft\.steps=2000 needs more patience: sft ended at step 500, as no validation after step 200 was better; "
        r"set sft\.patience above 3"
    )
    with pytest.raises(CheckpointError, match=refusal):
        require_same_settings(saved, with_patience(3, steps=2000), done=500)
    changes = require_same_settings(saved, with_patience(4, steps=2000), done=500)
    assert changes == ["from step 500: sft.steps: 1000 -> 2000", "from step 500: sft.patience: 3 -> 4"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sft.log_every", 7),
        ("sft.validate_every", 7),
        ("sft.checkpoint_every", 7),
        ("data.directory", "elsewhere"),
        ("data.traces", "elsewhere/traces.jsonl"),
        ("mesh", MeshConfig(data=2, slices=2)),
        ("model.attention", "einsum"),
        ("model.remat", "block"),
        ("compute.update_gib", 2.0),
        ("compute.data_workers", 3),
        ("evaluation.batch_users", 16),
        ("name", "renamed"),
        ("rl", RLConfig(steps=7, batch_users=4)),
    ],
)
def test_what_does_not_change_the_result_may_change(path, value):
    assert require_same_settings(record(), changed(path, value), done=500) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("sft.batch_users", 8),
        ("sft.head_weight", 0.25),
        ("sft.optimizer.learning_rate", 1e-4),
        ("sft.optimizer.beta2", 0.9),
        ("data.split", "global_time"),
        ("data.template", "films-2"),
        ("data.history_items", 5),
        ("data.rationale_tokens", 8),
        ("model.width", 48),
        ("model.rope_theta", 500.0),
        ("pretrained", "models/other"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(path, value):
    with pytest.raises(CheckpointError) as error:
        require_same_settings(record(), changed(path, value), done=500)
    assert f"{path}: " in str(error.value) and f" -> {value}" in str(error.value)
    assert "\n" not in str(error.value) and "choose another --run-dir" in str(error.value)


def test_all_differing_fields_are_named_and_no_other():
    other = RunConfig(name="test", seed=7, model=ModelConfig(width=120, head_size=30))
    with pytest.raises(CheckpointError) as error:
        require_same_settings(record(), other, done=0)
    for part in ("seed: 0 -> 7", "model.width: 96 -> 120", "model.head_size: 24 -> 30"):
        assert part in str(error.value)
    assert "vocabulary" not in str(error.value)


def test_more_steps_are_recorded_and_fewer_than_done_are_refused():
    assert require_same_settings(record(), changed("sft.steps", 1200), done=1000) == [
        "from step 1000: sft.steps: 1000 -> 1200"
    ]
    assert require_same_settings(record(), changed("sft.steps", 700), done=600), "shortened on purpose"
    with pytest.raises(CheckpointError, match=r"sft.steps must be at least 1000, the steps that sft has done, got 999"):
        require_same_settings(record(), changed("sft.steps", 999), done=1000)


def test_the_schedule_is_a_choice_of_those_who_extend():
    constant = changed("sft.optimizer.schedule", "constant")
    with pytest.raises(CheckpointError, match=r"sft\.optimizer\.schedule: cosine -> constant"):
        require_same_settings(record(), constant, done=500)
    longer = dataclasses.replace(constant, sft=dataclasses.replace(constant.sft, steps=1200))
    assert require_same_settings(record(), longer, done=1000) == [
        "from step 1000: sft.steps: 1000 -> 1200",
        "from step 1000: sft.optimizer.schedule: cosine -> constant",
    ]


def test_a_lower_learning_rate_is_accepted_only_after_a_divergence():
    lower, higher = (changed("sft.optimizer", OptimizerConfig(learning_rate=rate)) for rate in (1e-4, 1.0))
    assert require_same_settings(record(), lower, done=10, diverged=True) == [
        "from step 10: sft.optimizer.learning_rate: 0.003 -> 0.0001"
    ]
    for config, diverged in ((lower, False), (higher, True)):
        with pytest.raises(CheckpointError, match=r"sft.optimizer.learning_rate"):
            require_same_settings(record(), config, done=10, diverged=diverged)
    slower = dataclasses.replace(lower, sft=dataclasses.replace(lower.sft, batch_users=8))
    with pytest.raises(CheckpointError, match=r"sft.batch_users: 16 -> 8"):
        require_same_settings(record(), slower, done=10, diverged=True)


def test_rl_reads_its_own_section():
    rl = record("rl", steps=400)
    assert require_same_settings(rl, changed("sft", SFTConfig(steps=3, batch_users=8)), done=10) == []
    with pytest.raises(CheckpointError, match=r"rl.kl_weight: 0.02 -> 0.5"):
        require_same_settings(rl, changed("rl.kl_weight", 0.5), done=10)


def test_a_moved_folder_is_the_same_data():
    assert require_same_inputs(record(), changed("data.directory", "elsewhere"), HASHES) == []


@pytest.mark.parametrize("name", ["interactions", "items", "candidates"])
def test_other_data_are_refused_or_accepted_by_name(name):
    hashes = dataclasses.replace(HASHES, **{name: "e" * 64})
    with pytest.raises(CheckpointError, match=rf"{name} \(SHA-256\): [abc]{{12}} -> eeeeeeeeeeee\. Set data.directory"):
        require_same_inputs(record(), CONFIG, hashes)
    with pytest.raises(CheckpointError, match="add --other-data"):
        require_same_inputs(record(), CONFIG, hashes, other_data=False)
    assert len(require_same_inputs(record(), CONFIG, hashes, other_data=True)) == 1


def test_another_split_is_other_data():
    with pytest.raises(CheckpointError, match=r"data.split: leave_one_out -> global_time"):
        require_same_inputs(record(), changed("data.split", "global_time"), HASHES, other_data=False)
    assert require_same_inputs(record(), changed("data.split", "global_time"), HASHES, other_data=True) == [
        "data.split: leave_one_out -> global_time"
    ]


def test_prompts_and_tokenizer_must_be_the_same_even_on_other_data():
    for path, value in (("template", "films-2"), ("prefix_tokens", 64), ("suffix_tokens", 8), ("rationale_tokens", 0)):
        with pytest.raises(CheckpointError, match=f"data.{path}: "):
            require_same_inputs(record(), changed(f"data.{path}", value), HASHES, other_data=True)
    with pytest.raises(CheckpointError, match="tokenizer: dddddddddddd -> ffffffffffff"):
        require_same_prompts(record(), CONFIG, "f" * 64)


def test_records_from_before_the_hashes_are_compared_by_settings():
    old = record(inputs=None)
    assert require_same_inputs(old, CONFIG, HASHES) == []
    with pytest.raises(CheckpointError, match=r"data.split"):
        require_same_inputs(old, changed("data", DataConfig(split="last_n")), HASHES)


def test_a_section_from_before_a_field_had_the_fields_default():
    values = to_json(CONFIG)
    del values["sft"]["optimizer"]["moment_dtype"], values["rl"]["fixed_scale"], values["model"]["lora_rank"]
    values["rl"]["metric_k"] = 10
    del values["rl"]["reward"]
    for phase in ("sft", "rl"):
        old = dataclasses.replace(record(phase, steps=getattr(CONFIG, phase).steps), config=values)
        assert require_same_settings(old, CONFIG, done=1) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [("seed", 5, True), ("rl.optimizer.learning_rate", 0.7, True), ("rl.steps", 9, False), ("sft.steps", 9, False)],
)
def test_other_settings_than_those_of_training_are_named(path, value, named):
    found = other_settings(record("rl"), changed(path, value))
    assert [line.split(":")[0] for line in found] == ([path] if named else [])
    assert other_settings(record("sft"), changed("rl.optimizer.learning_rate", 0.7)) == []


def test_another_model_is_refused():
    require_same_model(record(), changed("model.attention", "cudnn"))
    with pytest.raises(CheckpointError, match=r"belongs to another model.*model.norm_epsilon: 1e-06 -> 1e-05"):
        require_same_model(record(), changed("model.norm_epsilon", 1e-5))
