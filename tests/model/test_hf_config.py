"""The config.json of Hugging Face checkpoints, without any checkpoint."""

import dataclasses

import pytest

from r2rank_jax.config import ModelConfig
from r2rank_jax.errors import ConfigError, R2RankError
from r2rank_jax.model.hf_config import (
    ARCHITECTURES,
    architecture_of,
    config_from_hf,
    config_to_hf,
    family_of,
    positions_from_hf,
)

# No two sizes alike, so that no wrong reshape fits by accident.
LLAMA = ModelConfig(vocabulary=41, width=12, layers=3, heads=6, kv_heads=2, head_size=4, mlp_width=20)
MODELS = {
    "llama": LLAMA,
    "untied": dataclasses.replace(LLAMA, tied_embeddings=False, norm_epsilon=1e-5, rope_theta=5e5),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_size=10),
    "llama3": dataclasses.replace(
        LLAMA, rope_factor=32.0, rope_low_frequency=1.5, rope_high_frequency=4.5, rope_original_positions=64
    ),
}
TO_HF = dict(pad=3, stop=2, bos=1, positions=128, dtype="bfloat16")

# What the makers published, in the words of that time: transformers 4, RoPE at the top level.
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
LLAMA32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN25_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize("form", ["causal-lm", "scorer"])
@pytest.mark.parametrize("name", MODELS)
def test_config_there_and_back(name, form):
    values = config_to_hf(MODELS[name], form=form, **TO_HF)
    assert values["architectures"][0] in ARCHITECTURES
    assert architecture_of(values) == (family_of(MODELS[name]), form)
    assert config_from_hf(values) == MODELS[name]


def test_published_configurations():
    assert config_from_hf(SMOLLM2_135M) == ModelConfig(
        vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, head_size=64, mlp_width=1536, norm_epsilon=1e-5,
        rope_theta=1e5,
    )  # fmt: skip
    assert config_from_hf(LLAMA32_1B) == ModelConfig(
        vocabulary=128256, width=2048, layers=16, heads=32, kv_heads=8, head_size=64, mlp_width=8192,
        norm_epsilon=1e-5, rope_theta=5e5, rope_factor=32.0, rope_low_frequency=1.0, rope_high_frequency=4.0,
        rope_original_positions=8192,
    )  # fmt: skip
    assert config_from_hf(QWEN25_HALF_B) == ModelConfig(
        vocabulary=151936, width=896, layers=24, heads=14, kv_heads=2, head_size=64, mlp_width=4864,
        attention_bias=True, rope_theta=1e6,
    )  # fmt: skip


def test_rope_in_the_words_of_transformers_5():
    new = {key: value for key, value in LLAMA32_1B.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA32_1B["rope_scaling"], "rope_theta": 500000.0}
    assert config_from_hf(new) == config_from_hf(LLAMA32_1B)


def test_what_a_file_leaves_out_is_what_its_family_says():
    old_llama = {k: v for k, v in SMOLLM2_135M.items() if k not in ("num_key_value_heads", "tie_word_embeddings")}
    assert config_from_hf(old_llama).kv_heads == 9 and not config_from_hf(old_llama).tied_embeddings
    assert config_from_hf(QWEN25_HALF_B | {"architectures": ["Qwen3ForCausalLM"]}).head_size == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"Qwen2ForCausalLM, Qwen3ForCausalLM, Llama.*got \['Mistral"),
        ({"architectures": None}, r"must name one architecture of .*, got \[\]"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "must not name custom code.*remove auto_map"),
        ({"quantization_config": {"bits": 4}}, "must not be quantized.*import the original weights"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"rope_interleaved": True}, "rope_interleaved must be False"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}, "sliding_window=64 in use"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "every layer must attend to all tokens"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type default or llama3.*'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "the same in all layers"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "over whole heads"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 must have factor, low_freq_factor"),
        ({"num_hidden_layers": None}, "give num_hidden_layers as an integer of at least 1, got None"),
        ({"hidden_size": "576"}, "give hidden_size as an integer of at least 1, got '576'"),
        ({"head_dim": 7}, "head_size must be even"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "must have 1 label, the score, got 2"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "must have 1 label, the score, got 3; import its CausalLM",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(SMOLLM2_135M | change)


def test_a_window_that_no_layer_uses_is_no_window():
    every = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 24}
    assert config_from_hf(QWEN25_HALF_B | every).attention_bias


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ConfigError, match=r"both model.qk_norm \(Qwen3\) and model.attention_bias \(Qwen2\)"):
        config_to_hf(dataclasses.replace(LLAMA, qk_norm=True, attention_bias=True), form="causal-lm", **TO_HF)
    with pytest.raises(ConfigError, match=r"number of heads divides its width, got model.heads=6 and model.width=16"):
        config_to_hf(dataclasses.replace(LLAMA, width=16), form="causal-lm", **TO_HF)
    with pytest.raises(ConfigError, match=r"padding token that is not its stop token 2.*--form causal-lm"):
        config_to_hf(LLAMA, form="scorer", **(TO_HF | {"pad": 2}))


OPTIONAL = (
    "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act", "attention_bias",
    "mlp_bias", "rope_interleaved", "layer_types", "use_sliding_window", "max_window_layers", "max_position_embeddings",
    "partial_rotary_factor", "id2label", "num_labels", "quantization_config", "auto_map",
)  # fmt: skip


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("name", OPTIONAL)
def test_a_null_is_what_its_family_says(family, name):
    given = SMOLLM2_135M | {"architectures": [f"{family}ForCausalLM"]}
    missing = {key: value for key, value in given.items() if key != name}
    null = missing | {name: None}
    assert config_from_hf(null) == config_from_hf(missing)
    assert positions_from_hf(null) == positions_from_hf(missing)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_the_defaults_are_those_of_transformers(family):
    import transformers

    theirs = getattr(transformers, f"{family}Config")(num_key_value_heads=None)
    ours = {"architectures": [f"{family}ForCausalLM"], "num_key_value_heads": None, "head_dim": None}
    ours |= {key: None for key in ("rms_norm_eps", "max_position_embeddings", "rope_theta", "tie_word_embeddings")}
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ours |= {key: getattr(theirs, key) for key in sizes}
    config = config_from_hf(ours)
    assert (config.norm_epsilon, config.tied_embeddings) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (config.kv_heads, config.head_size) == (theirs.num_key_value_heads, getattr(theirs, "head_dim", 128))
    assert positions_from_hf(ours) == theirs.max_position_embeddings


def test_nulls_inside_the_rope_settings_are_missing_values():
    rope = {"rope_type": None, "rope_theta": None, "factor": None, "partial_rotary_factor": None}
    assert config_from_hf(SMOLLM2_135M | {"rope_scaling": None, "rope_parameters": rope}) == config_from_hf(
        SMOLLM2_135M
    )


def test_a_window_of_unstated_size_is_a_window():
    """Qwen's classes then use 4096 tokens; null is none."""
    every = {"use_sliding_window": True, "max_window_layers": 3}
    values = {key: value for key, value in QWEN25_HALF_B.items() if key != "sliding_window"} | every
    with pytest.raises(ConfigError, match="every layer must attend to all tokens"):
        config_from_hf(values)
    assert config_from_hf(values | {"sliding_window": None}).attention_bias


@pytest.mark.parametrize("odd", [0, -1, 1.5, True, "x", "", [], [None], {}, {"a": {}}, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*LLAMA32_1B, *OPTIONAL, "rope_parameters"])
def test_a_value_of_another_type_is_read_or_refused_in_one_line(name, odd):
    for values in (LLAMA32_1B | {name: odd}, LLAMA32_1B | {"rope_scaling": LLAMA32_1B["rope_scaling"] | {name: odd}}):
        try:
            config_from_hf(values)
            positions_from_hf(values)
        except R2RankError as error:
            assert "\n" not in str(error)
