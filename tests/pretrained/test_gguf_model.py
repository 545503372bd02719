import json
import math

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from r2rank_jax.errors import PretrainedError
from r2rank_jax.pretrained.gguf_model import hugging_face_config, undo_rope_permutation, write_model
from tests.support.pretrained.gguf_file import HEADS, KV_HEADS, llama_cpp_rows, stored_weights, tiny_weights, write_gguf

Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


def converted(path, folder):
    folder.mkdir()
    write_model(gguf.GGUFReader(path), folder)
    return load_file(folder / "model.safetensors")


def test_the_permutation_of_one_head():
    """llama.cpp stores the rows of a head of size 6 in the order 0 3 1 4 2 5."""
    stored = np.array([[0.0], [3.0], [1.0], [4.0], [2.0], [5.0]])
    np.testing.assert_array_equal(undo_rope_permutation(stored, 1)[:, 0], np.arange(6))


@settings(max_examples=50, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 8), width=st.integers(1, 3))
def test_undoes_the_permutation_for_any_number_of_heads(heads, half, width):
    weight = np.arange(heads * 2 * half * width, dtype=np.float32).reshape(-1, width)
    np.testing.assert_array_equal(undo_rope_permutation(llama_cpp_rows(weight, heads), heads), weight)


def test_half_split_rope_on_undone_rows_is_interleaved_rope_on_stored_rows():
    """The permutation's purpose: query-key products at any two positions are the same in both layouts."""
    draw = np.random.default_rng(0)
    size, width = 8, 5
    query, key, x = (
        draw.standard_normal((size, width)),
        draw.standard_normal((size, width)),
        draw.standard_normal(width),
    )

    def rotated(rows, position, pairs):
        out = rows.copy()
        for i, (a, b) in enumerate(pairs):
            angle = position * 100.0 ** (-2 * i / size)
            out[a] = rows[a] * math.cos(angle) - rows[b] * math.sin(angle)
            out[b] = rows[a] * math.sin(angle) + rows[b] * math.cos(angle)
        return out

    def product(q, k, pairs):
        return rotated(q @ x, 7, pairs) @ rotated(k @ x, 3, pairs)

    neighbors = [(2 * i, 2 * i + 1) for i in range(size // 2)]
    halves = [(i, i + size // 2) for i in range(size // 2)]
    undone = product(undo_rope_permutation(query, 1), undo_rope_permutation(key, 1), halves)
    np.testing.assert_allclose(undone, product(query, key, neighbors), rtol=1e-12)
    assert abs(undone - product(query, key, halves)) > 1e-3  # without the permutation they differ


@pytest.mark.parametrize("tied", [True, False])
def test_float32_weights_come_back_bit_for_bit(tmp_path, tied):
    weights = tiny_weights(tied=tied)
    written = converted(write_gguf(tmp_path / "tiny.gguf", stored_weights(weights)), tmp_path / "out")
    assert set(written) == set(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(written[name], weight, err_msg=name)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is tied


@pytest.mark.parametrize("tied", [True, False])  # headers of different lengths
def test_weights_start_at_a_multiple_of_eight_bytes(tmp_path, tied):
    converted(write_gguf(tmp_path / "tiny.gguf", stored_weights(tiny_weights(tied=tied))), tmp_path / "out")
    with (tmp_path / "out" / "model.safetensors").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


def q4_1_by_hand(raw):
    """[rows, bytes] -> [rows, columns]: blocks of 32 weights, float16 scale, float16 minimum, 16 bytes of nibbles."""
    rows = []
    for row in raw:
        values = []
        for block in row.reshape(-1, 20):
            scale, minimum = np.frombuffer(block[:4].tobytes(), "<f2").astype(np.float32)
            levels = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
            values += [scale * np.float32(level) + minimum for level in levels]
        rows.append(values)
    return np.array(rows, np.float32)


def q8_0_by_hand(raw):
    """[rows, bytes] -> [rows, columns]: blocks of 32 weights, float16 scale, 32 signed bytes."""
    rows = []
    for row in raw:
        values = []
        for block in row.reshape(-1, 34):
            scale = np.float32(np.frombuffer(block[:2].tobytes(), "<f2")[0])
            values += [scale * np.float32(level) for level in np.frombuffer(block[2:].tobytes(), np.int8)]
        rows.append(values)
    return np.array(rows, np.float32)


def test_quantized_weights_are_written_without_further_rounding(tmp_path):
    stored = stored_weights(tiny_weights())
    types = {name: Q8_0 if name == "token_embd.weight" else Q4_1 for name, weight in stored.items() if weight.ndim == 2}
    written = converted(write_gguf(tmp_path / "tiny.gguf", stored, types=types), tmp_path / "out")
    embedding = q8_0_by_hand(gguf.quantize(stored["token_embd.weight"], Q8_0))
    np.testing.assert_array_equal(written["model.embed_tokens.weight"], embedding)
    assert np.any(embedding != embedding.astype(np.float16))  # float16 would lose precision
    down = q4_1_by_hand(gguf.quantize(stored["blk.1.ffn_down.weight"], Q4_1))
    np.testing.assert_array_equal(written["model.layers.1.mlp.down_proj.weight"], down)
    for name, part, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)):
        rows = q4_1_by_hand(gguf.quantize(stored[f"blk.0.{part}.weight"], Q4_1))
        np.testing.assert_array_equal(llama_cpp_rows(written[f"model.layers.0.self_attn.{name}.weight"], heads), rows)


def test_gives_the_logits_of_the_stored_model(tmp_path):
    """The logits equal those of a `transformers` Llama that is built with these weights."""
    torch = pytest.importorskip("torch")
    import transformers

    weights = tiny_weights()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(weights["model.embed_tokens.weight"]),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=True,
        )
    ).eval()
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()}, strict=False)
    converted(write_gguf(tmp_path / "tiny.gguf", stored_weights(weights)), tmp_path / "out")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)  # type: ignore[misc]
    assert not any(report.values())
    tokens = torch.tensor([[5, 77, 3, 200, 41, 9, 120, 33]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    assert loaded.dtype == torch.float32 and loaded.generation_config.eos_token_id == 2


def test_the_config_matches_the_file(tiny_gguf):
    config = hugging_face_config(gguf.GGUFReader(tiny_gguf))
    assert config["rms_norm_eps"] == 1e-5 and config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000}
    assert (config["num_key_value_heads"], config["head_dim"], config["max_position_embeddings"]) == (2, 16, 128)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_the_config_uses_llama_cpps_defaults_for_missing_entries(tmp_path):
    removed = {"head_count_kv": None, "rope_dimension_count": None, "rope_freq_base": None, "pad": None}
    path = write_gguf(tmp_path / "tiny.gguf", stored_weights(tiny_weights()), entries=removed)
    config = hugging_face_config(gguf.GGUFReader(path))
    assert (config["num_key_value_heads"], config["head_dim"], config["rope_theta"]) == (4, 16, 10_000.0)
    assert "pad_token_id" not in config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, r"general\.architecture must be 'llama', got 'gemma'; import such a model"),
        (
            {"entries": {"scaling": ("add_rope_scaling_factor", 2.0)}},
            r"RoPE must be unscaled, got llama\.rope\.scaling\.factor; import such a model",
        ),
        (
            {"entries": {"block_count": None}},
            r"must state llama\.block_count, but this one does not; use a file that llama\.cpp wrote",
        ),
        (
            {"entries": {"block_count": ("add_block_count", 1)}},
            r"1 layers must have exactly its 11 tensors; missing: none; unknown: blk\.1\.attn_k\.weight, blk\.1",
        ),
        (
            {"entries": {"block_count": ("add_block_count", 3)}},
            r"exactly its 29 tensors; missing: blk\.2\.attn_k\.weight, .*; unknown: none\. Import",
        ),
    ],
)
def test_refuses_unsupported_files_and_writes_nothing(tmp_path, changes, message):
    path = write_gguf(tmp_path / "tiny.gguf", stored_weights(tiny_weights()), **changes)
    (tmp_path / "out").mkdir()
    with pytest.raises(PretrainedError, match=message):
        write_model(gguf.GGUFReader(path), tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_refuses_a_bias(tmp_path):
    stored = stored_weights(tiny_weights()) | {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", stored)
    (tmp_path / "out").mkdir()
    with pytest.raises(PretrainedError, match=r"unknown: blk\.0\.attn_q\.bias"):
        write_model(gguf.GGUFReader(path), tmp_path / "out")
