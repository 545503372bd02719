"""Shapes of pretrained models, from their `config.json`."""

from __future__ import annotations

from r2rank_jax.config import ModelConfig

QWEN2_5_1_5B = ModelConfig(
    vocabulary=151_936,
    width=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    head_size=128,
    mlp_width=8960,
    attention_bias=True,
    rope_theta=1e6,
    dtype="bfloat16",
)
QWEN2_5_3B = ModelConfig(
    vocabulary=151_936,
    width=2048,
    layers=36,
    heads=16,
    kv_heads=2,
    head_size=128,
    mlp_width=11_008,
    attention_bias=True,
    rope_theta=1e6,
    dtype="bfloat16",
)
QWEN3_8B = ModelConfig(
    vocabulary=151_936,
    width=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    head_size=128,
    mlp_width=12_288,
    qk_norm=True,
    tied_embeddings=False,
    rope_theta=1e6,
    dtype="bfloat16",
)
SMOLLM2_135M = ModelConfig(
    vocabulary=49_152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_size=64,
    mlp_width=1536,
    rope_theta=1e5,
    norm_epsilon=1e-5,
    dtype="bfloat16",
)
