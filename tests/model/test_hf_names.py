"""Names and layouts of Hugging Face checkpoints, without any checkpoint."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax.core import meta

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.hf_names import ignorable, tensors
from r2rank_jax.model.transformer import initial_params

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


def leaves(config):
    params = meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
    return {tuple(p.key for p in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_ours_has_exactly_one_place_among_theirs(name):
    config = MODELS[name]
    expected = leaves(config)
    named = tensors(config, language_head=True, score_head=True)
    assert len({t.name for t in named}) == len(named)
    filled = {path: [] for path in expected}
    for tensor in named:
        shape = tensor.to_ours(np.zeros(tensor.shape)).shape
        assert shape == expected[tensor.path][tensor.layer is not None :], tensor.name
        filled[tensor.path].append(tensor.layer)
    for path, layers in filled.items():
        assert layers == (list(range(config.layers)) if path[0] == "layers" else [None]), path


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_same(name):
    for tensor in tensors(MODELS[name], language_head=True, score_head=True):
        theirs = np.arange(math.prod(tensor.shape)).reshape(tensor.shape)
        np.testing.assert_array_equal(tensor.to_hf(tensor.to_ours(theirs)), theirs)


def test_layouts_by_hand():
    config = MODELS["qwen2"]
    by_name = {t.name: t for t in tensors(config, language_head=True, score_head=True)}

    def both(name):
        theirs = np.random.default_rng(0).standard_normal(by_name[name].shape)
        return theirs, by_name[name].to_ours(theirs)

    theirs, ours = both("model.layers.1.self_attn.q_proj.weight")  # rows: head 0's 4, head 1's 4, ..
    assert ours[7, 5, 2] == theirs[5 * 4 + 2, 7]
    theirs, ours = both("model.layers.1.self_attn.v_proj.bias")
    assert ours[1, 3] == theirs[1 * 4 + 3]
    theirs, ours = both("model.layers.1.self_attn.o_proj.weight")
    assert ours[5, 2, 7] == theirs[7, 5 * 4 + 2]
    theirs, ours = both("model.layers.1.mlp.down_proj.weight")
    assert ours[19, 7] == theirs[7, 19]
    theirs, ours = both("score.weight")
    assert ours.shape == (12,) and ours[7] == theirs[0, 7]
    assert by_name["model.layers.1.mlp.down_proj.weight"].path == ("layers", "mlp", "down")


def test_heads_are_there_where_asked_for():
    def heads(config, **which):
        names = [t.name for t in tensors(config, **which)]
        return {name for name in ("lm_head.weight", "score.weight") if name in names}

    assert heads(MODELS["untied"], language_head=True, score_head=False) == {"lm_head.weight"}
    assert heads(MODELS["untied"], language_head=False, score_head=True) == {"score.weight"}
    assert heads(LLAMA, language_head=True, score_head=True) == {"score.weight"}, "tied: it is the embedding"


def test_what_may_be_there_unasked():
    tied, untied = MODELS["llama"], MODELS["untied"]
    assert ignorable("model.layers.11.self_attn.rotary_emb.inv_freq", untied)
    assert ignorable("lm_head.weight", tied) and not ignorable("lm_head.weight", untied)
    assert not ignorable("model.layers.0.self_attn.q_proj.lora_A.weight", tied)
