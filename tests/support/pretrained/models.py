"""Tiny random models of every family, written by `transformers`, and our forward pass over rows of tokens."""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig, ModelConfig
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.model.transformer import extend, vocabulary_kernel
from r2rank_jax.pretrained.folder import load_pretrained, read_model_card
from r2rank_jax.pretrained.importing import import_model
from r2rank_jax.sharding import abstract_params, make_mesh

# All sizes differ. The vocabulary has the tokenizer's 258 tokens and additional rows that no id uses.
BASE = ModelConfig(
    vocabulary=264, width=32, layers=3, heads=4, kv_heads=2, head_size=6, mlp_width=40, rope_theta=5000.0
)
MODELS = {
    "qwen2": dataclasses.replace(BASE, attention_bias=True),
    "qwen3": dataclasses.replace(BASE, qk_norm=True, tied_embeddings=False),
    "llama": dataclasses.replace(BASE, norm_epsilon=1e-5),
    "llama-untied": dataclasses.replace(BASE, tied_embeddings=False),
    "llama3-rope": dataclasses.replace(
        BASE, rope_factor=8.0, rope_low_frequency=1.0, rope_high_frequency=4.0, rope_original_positions=16
    ),
}
PAD, STOP = 0, 1  # as in `train_tokenizer`
SCRATCH = tempfile.TemporaryDirectory(prefix="r2rank-test-models-")


def torch_model(name, *, scorer=False):
    """A torch model in which all weights, including norms and biases, are far from their initial values."""
    torch = pytest.importorskip("torch")
    import transformers

    config = MODELS[name]
    family = {"qwen2": "Qwen2", "qwen3": "Qwen3"}.get(name, "Llama")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low_frequency,
            "high_freq_factor": config.rope_high_frequency,
            "original_max_position_embeddings": config.rope_original_positions,
        }
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tied_embeddings,
        rope_parameters=rope,
        max_position_embeddings=512,
        attn_implementation="eager",
        pad_token_id=PAD,
        eos_token_id=STOP,
        **({"num_labels": 1} if scorer else {}),
    )
    torch.manual_seed(0)
    kind = "ForSequenceClassification" if scorer else "ForCausalLM"
    model = getattr(transformers, family + kind)(settings).eval().float()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def add_tokenizer(folder, **settings):
    """Write the files of a tokenizer with 256 bytes, <pad> and <stop>."""
    train_tokenizer(["a"], 258).save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "<pad>", "eos_token": "<stop>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@functools.cache
def saved(name, *, scorer=False):
    """(torch model, the directory it was saved to in many small files). Tests must not change it."""
    model = torch_model(name, scorer=scorer)
    folder = Path(SCRATCH.name) / f"{name}{'-scorer' if scorer else ''}"
    model.save_pretrained(folder, max_shard_size="20KB")
    add_tokenizer(folder)
    return model, folder


def copy_but_weights(source, target):
    """Copy the tokenizer and its settings."""
    for path in source.iterdir():
        if "safetensors" not in path.name and path.name != "config.json":
            shutil.copyfile(path, target / path.name)


@functools.cache
def imported(name, *, scorer=False):
    """The folder to which we imported `saved`. Tests must not change it."""
    _, folder = saved(name, scorer=scorer)
    out = Path(SCRATCH.name) / "imported" / folder.name
    import_model(str(folder), out)
    return out


def load(folder, mesh=None):
    """(configuration, parameters) of an imported model."""
    config = read_model_card(folder).config
    return config, load_pretrained(folder, abstract_params(make_mesh(mesh or MeshConfig()), config))


def rows_of_tokens(rows, length, seed=0):
    """Token ids other than special ones, and the mask of a right-padded batch, NumPy [rows, length]."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, BASE.vocabulary, (rows, length))
    real = np.arange(length) < rng.integers(3, length + 1, rows)[:, None]
    return np.where(real, tokens, PAD), real


def our_states(config, params, tokens, real):
    """Final hidden states and logits of each token, NumPy [rows, length, ..]."""
    tokens, real = (jnp.asarray(x)[:, None, None] for x in (tokens, real))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    hidden = extend(config, params, tokens, positions, real)[0][:, 0, 0]
    return np.asarray(hidden), np.asarray(hidden @ vocabulary_kernel(params).T)


def their_states(model, tokens, real):
    """The same for a torch CausalLM."""
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        mask = torch.from_numpy(real.astype(np.int64))
        out = model(torch.from_numpy(tokens), attention_mask=mask, output_hidden_states=True)
    return out.hidden_states[-1].float().numpy(), out.logits.float().numpy()
