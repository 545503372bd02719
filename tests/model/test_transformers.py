"""The decoder against torch `transformers`: tiny random Qwen2, Qwen3 and Llama with the same weights.

Needs the extra `peers` (torch); without it these tests are skipped.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.transformer import extend, vocabulary_kernel

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

BASE = ModelConfig(vocabulary=60, width=24, layers=2, heads=4, kv_heads=2, head_size=6, mlp_width=40, rope_theta=5000.0)
FAMILIES = {
    "qwen2": (
        transformers.Qwen2Config,
        transformers.Qwen2ForCausalLM,
        dataclasses.replace(BASE, attention_bias=True, tied_embeddings=True),
    ),
    "qwen3": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        dataclasses.replace(BASE, qk_norm=True, tied_embeddings=False),
    ),
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        dataclasses.replace(BASE, tied_embeddings=False, norm_epsilon=1e-5),
    ),
}


def peer(name):
    """A random torch model whose every weight, norms and biases included, is far from its initial value."""
    kind, model, config = FAMILIES[name]
    settings = kind(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tied_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    found = model(settings).eval().float()
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return found, config


def as_params(found, config):
    """Our parameter tree from the torch state."""
    state = {name: jnp.asarray(weight.detach().numpy()) for name, weight in found.state_dict().items()}
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    params = {
        "embedding": state["model.embed_tokens.weight"],
        "final_norm": {"scale": state["model.norm.weight"]},
        "score_head": jnp.zeros(config.width),
    }
    if not config.tied_embeddings:
        params["lm_head"] = state["lm_head.weight"]
    layers = []
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        attention = {
            x: state[f"{at}self_attn.{x}_proj.weight"].T.reshape(config.width, n, config.head_size)
            for x, n in heads.items()
        }
        if config.attention_bias:
            attention |= {
                f"{x}_bias": state[f"{at}self_attn.{x}_proj.bias"].reshape(n, config.head_size)
                for x, n in heads.items()
            }
        if config.qk_norm:
            attention |= {f"{x}_norm": {"scale": state[f"{at}self_attn.{x}_norm.weight"]} for x in ("q", "k")}  # type: ignore[misc]
        attention["o"] = state[f"{at}self_attn.o_proj.weight"].T.reshape(config.heads, config.head_size, config.width)
        layers.append(
            {
                "attention": attention,
                "attention_norm": {"scale": state[f"{at}input_layernorm.weight"]},
                "mlp_norm": {"scale": state[f"{at}post_attention_layernorm.weight"]},
                "mlp": {x: state[f"{at}mlp.{x}_proj.weight"].T for x in ("gate", "up", "down")},
            }
        )
    params["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers(name):
    found, config = peer(name)
    params = as_params(found, config)
    rng = np.random.default_rng(0)
    for rows, length in ((2, 7), (3, 12)):
        tokens = rng.integers(0, config.vocabulary, (rows, length))
        real = np.arange(length) < rng.integers(3, length + 1, rows)[:, None]
        with torch.no_grad():
            theirs = found(torch.from_numpy(tokens), attention_mask=torch.from_numpy(real.astype(np.int64))).logits
        lead = lambda x: jnp.asarray(x)[:, None, None]  # noqa: E731
        positions = np.broadcast_to(np.arange(length), tokens.shape)
        hidden, _ = extend(config, params, lead(tokens), lead(positions), lead(real))
        ours = np.asarray(hidden[:, 0, 0] @ vocabulary_kernel(params).T)
        assert np.abs(theirs.numpy()[real]).max() > 1.0
        np.testing.assert_allclose(ours[real], theirs.numpy()[real], atol=1e-4)
