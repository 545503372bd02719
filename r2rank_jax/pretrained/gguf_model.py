"""Convert a GGUF file's model to `config.json`, `generation_config.json` and `model.safetensors`.

Only Llama models are supported. A file with anything else is refused; nothing is silently left out.

The weights are written as float32, the result of dequantization. A Q4_1 weight is a float16 scale times four bits plus
a float16 minimum, and a Q8_0 weight is a float16 scale times eight bits. Neither fits into the 11 significant bits of
float16 or the 8 of bfloat16: in SmolLM2's file, float16 would change 32% of the Q4_1 weights and 79% of the Q8_0
weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from r2rank_jax.errors import PretrainedError
from r2rank_jax.pretrained.weights import write_file

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_field(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """One entry of a GGUF file's metadata.

    Args:
        reader: the open file.
        key: the entry's name.
        default: value if the file has no such entry; None makes the entry required.

    Returns:
        A number, string, boolean or list.

    Raises:
        PretrainedError: a required entry is missing.
    """
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is None:
        raise PretrainedError(f"a GGUF file must state {key}, but this one does not; use a file that llama.cpp wrote")
    return default


def hugging_face_config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """The `config.json` of a GGUF file's model.

    Args:
        reader: the open file, with the architecture "llama".

    Returns:
        Entries for a LlamaForCausalLM as plain numbers and strings.

    Raises:
        PretrainedError: the architecture is not Llama, RoPE is scaled, or an entry is missing.
    """
    architecture = read_field(reader, "general.architecture")
    if architecture != "llama":
        raise PretrainedError(
            f"general.architecture must be 'llama', got {architecture!r}; import such a model from its "
            "Hugging Face folder instead"
        )
    scaling = sorted(key for key in reader.fields if key.startswith("llama.rope.scaling."))
    if scaling:
        raise PretrainedError(
            f"RoPE must be unscaled, got {', '.join(scaling)}; import such a model from its Hugging Face folder instead"
        )
    width, heads = (int(read_field(reader, f"llama.{key}")) for key in ("embedding_length", "attention.head_count"))
    theta = _shortest(read_field(reader, "llama.rope.freq_base", 10_000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": width,
        "intermediate_size": int(read_field(reader, "llama.feed_forward_length")),
        "num_hidden_layers": int(read_field(reader, "llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(read_field(reader, "llama.attention.head_count_kv", heads)),
        "head_dim": int(read_field(reader, "llama.rope.dimension_count", width // heads)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": int(read_field(reader, "llama.context_length")),
        "rms_norm_eps": _shortest(read_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,  # for transformers before version 5, which would silently use 10,000
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        # llama.cpp writes an output projection only if it differs from the embedding.
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "dtype": "float32",
        **special_token_ids(reader),
    }


def special_token_ids(reader: gguf.GGUFReader) -> dict[str, int]:
    """Ids of the tokens that begin, end and pad a text, for those that the file states."""
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {
        name: int(read_field(reader, f"tokenizer.ggml.{key}"))
        for name, key in keys.items()
        if f"tokenizer.ggml.{key}" in reader.fields
    }


def write_model(reader: gguf.GGUFReader, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors`.

    Args:
        reader: the open GGUF file.
        folder: existing folder to write into.

    Raises:
        PretrainedError: the file holds a model that `hugging_face_config` does not fully describe.
    """
    config = hugging_face_config(reader)
    names = _names(reader, config)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", special_token_ids(reader))
    _write_safetensors(reader, names, config, folder / "model.safetensors")


def undo_rope_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Restore the rows of a query or key projection to Hugging Face's order.

    RoPE rotates pairs of a head's rows. Hugging Face pairs row i with row i + H/2. llama.cpp pairs neighbors, and
    therefore stores each head's rows as 0, H/2, 1, H/2 + 1, ...

    Args:
        weight: [heads · H, D] in llama.cpp's order.
        heads: number of query or key-value heads.

    Returns:
        [heads · H, D].
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as Hugging Face does: indented, in UTF-8."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _names(reader: gguf.GGUFReader, config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face's name of each tensor. The file must hold exactly the tensors of the model."""
    names = {key: name for key, name in _TOP.items() if key != "output.weight" or not config["tie_word_embeddings"]}
    for layer in range(config["num_hidden_layers"]):
        names |= {f"blk.{layer}.{key}.weight": f"model.layers.{layer}.{name}.weight" for key, name in _LAYER.items()}
    present = {tensor.name for tensor in reader.tensors}
    missing, unknown = sorted(set(names) - present), sorted(present - set(names))
    if missing or unknown:
        raise PretrainedError(
            f"a Llama of {config['num_hidden_layers']} layers must have exactly its {len(names)} tensors; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. Import such a model from its "
            "Hugging Face folder instead"
        )
    return names


def _write_safetensors(reader: gguf.GGUFReader, names: dict[str, str], config: dict[str, Any], path: Path) -> None:
    by_name = {names[tensor.name]: tensor for tensor in reader.tensors}
    # GGUF lists the fastest-varying axis first.
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in by_name.items()}

    def value(name: str) -> np.ndarray:
        weight = gguf.dequantize(by_name[name].data, by_name[name].tensor_type)
        if name.endswith("q_proj.weight"):
            return undo_rope_permutation(weight, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            return undo_rope_permutation(weight, config["num_key_value_heads"])
        return weight

    write_file(path, shapes, value, "float32")


def _shortest(value: float) -> float:
    """The shortest decimal that gives this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
