"""Parameters and FLOPs by formula: published counts, counted trees, and a case by hand."""

import dataclasses
import math

import jax
import pytest

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.counting import BatchShape, cache_bytes, decode_bytes, forward_flops, parameters, update_flops
from r2rank_jax.model.presets import QWEN2_5_1_5B, QWEN2_5_3B, QWEN3_8B, SMOLLM2_135M
from r2rank_jax.model.transformer import initial_params


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (QWEN2_5_1_5B, 1_543_714_304),
        (QWEN2_5_3B, 3_085_938_688),
        (QWEN3_8B, 8_190_735_360),
        (SMOLLM2_135M, 134_515_008),
    ],
)
def test_presets_have_as_many_parameters_as_the_models_they_are_named_after(model, published):
    """The safetensors indexes of the checkpoints count `published`; the scoring head is ours."""
    assert parameters(model) == published + model.width


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tied_embeddings": False, "qk_norm": True},
        {"attention_bias": True, "lora_rank": 3},
        {"heads": 6, "kv_heads": 3, "layers": 5, "lora_rank": 2, "tied_embeddings": False},
    ],
)
def test_the_formula_counts_what_the_model_makes(sizes):
    model = ModelConfig(**sizes)
    made = jax.eval_shape(lambda: initial_params(model, jax.random.key(0)))
    assert parameters(model) == sum(math.prod(x.shape) for x in jax.tree.leaves(made))


def test_flops_by_hand():
    model = ModelConfig(vocabulary=10, width=4, layers=1, heads=2, kv_heads=1, head_size=2, mlp_width=6)
    lists = BatchShape(users=1, prefix=2, suffix=1, length=1, items=1, rationales=2)
    weights = (2 * 2 + 2 * 1) * 2 * 4 + 3 * 4 * 6  # q, o, k, v; gate, up, down
    tokens = 2 + 1 + 2  # prefix, item, two rationales
    pairs = 2 * 2 / 2 + (1 * 2 + 1 / 2) + 2 * (1 * 3 + 1 / 2)
    logits = 2 * 10 * 4 * 2
    expected = 2 * weights * tokens + 4 * 1 * 2 * 2 * pairs + logits
    assert forward_flops(model, lists) == expected
    assert forward_flops(model, lists, logits=False) == expected - logits
    alone = 2 * weights * 8 + 4 * 4 * 2 * 4**2 / 2 + logits
    assert forward_flops(model, lists, shared=False) == alone
    assert forward_flops(model, lists._replace(users=3)) == 3 * expected
    again = 2 * weights * 2 + 4 * 1 * 2 * 2 * 2 * (1 / 2)  # two rationales once more, on their own
    assert forward_flops(dataclasses.replace(model, score_reads="words"), lists) == expected + again
    assert [update_flops(model, lists, trained=what) / expected for what in ("all", "adapters", "head")] == [3, 2, 1]


def test_bytes_of_decoding_by_hand():
    model = ModelConfig(vocabulary=10, width=4, layers=3, heads=2, kv_heads=1, head_size=2, mlp_width=6)
    assert cache_bytes(model, 5) == 5 * 3 * 2 * 1 * 2 * 4
    lists = BatchShape(users=2, prefix=7, suffix=3, length=5, items=2, rationales=2)
    kept = 2 * (7 + 2 * 3) + 2 * 2 * 2 * 2  # eight rows hold two of five tokens on average
    assert decode_bytes(model, lists) == 5 * (4 * parameters(model) + cache_bytes(model, kept))
