"""A tiny model as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, HEADS, KV_HEADS, HEAD_SIZE, MLP_WIDTH, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Two of the merges span digits and must never be used.
MERGES = ["Ġ t", "h e", "Ġt he", "1 9", "Ġ 1", "Ġ Ġ"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
LAYER_NAMES = {
    "input_layernorm": ("attn_norm", (WIDTH,)),
    "self_attn.q_proj": ("attn_q", (HEADS * HEAD_SIZE, WIDTH)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD_SIZE, WIDTH)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD_SIZE, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, HEADS * HEAD_SIZE)),
    "post_attention_layernorm": ("ffn_norm", (WIDTH,)),
    "mlp.gate_proj": ("ffn_gate", (MLP_WIDTH, WIDTH)),
    "mlp.up_proj": ("ffn_up", (MLP_WIDTH, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, MLP_WIDTH)),
}


def tiny_weights(seed: int = 0, *, tied: bool = True) -> dict[str, np.ndarray]:
    """Hugging Face's names -> float32 weights, all far from zero and one."""
    draw = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, (_, shape) in LAYER_NAMES.items()}
    return {name: (0.3 * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def llama_cpp_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows in llama.cpp's order: within each head, Hugging Face's rows i and i + H/2 are adjacent."""
    size = len(weight) // heads
    stored = np.empty_like(weight)
    for head in range(heads):
        for i in range(size // 2):
            stored[head * size + 2 * i] = weight[head * size + i]
            stored[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return stored


def stored_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """llama.cpp's names -> weights in its row order."""
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    stored = {}
    for name, weight in weights.items():
        if name in top:
            stored[top[name]] = weight
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part.endswith(("q_proj", "k_proj")):
            weight = llama_cpp_rows(weight, HEADS if part.endswith("q_proj") else KV_HEADS)
        stored[f"blk.{layer}.{LAYER_NAMES[part][0]}.weight"] = weight
    return stored


def metadata() -> dict[str, tuple]:
    """Key -> GGUFWriter's method and its value."""
    types = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))
    return {
        "context_length": ("add_context_length", 128),
        "embedding_length": ("add_embedding_length", WIDTH),
        "block_count": ("add_block_count", LAYERS),
        "feed_forward_length": ("add_feed_forward_length", MLP_WIDTH),
        "head_count": ("add_head_count", HEADS),
        "head_count_kv": ("add_head_count_kv", KV_HEADS),
        "rope_dimension_count": ("add_rope_dimension_count", HEAD_SIZE),
        "rope_freq_base": ("add_rope_freq_base", 5000.0),
        "layer_norm_rms_eps": ("add_layer_norm_rms_eps", 1e-5),
        "model": ("add_tokenizer_model", "gpt2"),
        "pre": ("add_tokenizer_pre", "smollm"),
        "tokens": ("add_token_list", TOKENS),
        "token_type": ("add_token_types", types),
        "merges": ("add_token_merges", MERGES),
        "bos": ("add_bos_token_id", 1),
        "eos": ("add_eos_token_id", 2),
        "unk": ("add_unk_token_id", 0),
        "pad": ("add_pad_token_id", 2),
        "template": ("add_chat_template", TEMPLATE),
    }


def write_gguf(
    path: Path,
    stored: dict[str, np.ndarray],
    *,
    architecture: str = "llama",
    entries: dict[str, tuple] | None = None,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a GGUF file.

    Args:
        path: file to write.
        stored: llama.cpp's names -> weights.
        architecture: general.architecture.
        entries: replace or extend those of `metadata`; None removes an entry.
        types: llama.cpp's names -> quantization; tensors without one are float32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for entry in (metadata() | (entries or {})).values():
        if entry is not None:
            getattr(writer, entry[0])(*entry[1:])
    for name, weight in stored.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
