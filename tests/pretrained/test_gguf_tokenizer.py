import gguf
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r2rank_jax.errors import PretrainedError
from r2rank_jax.pretrained.gguf_model import write_model
from r2rank_jax.pretrained.gguf_tokenizer import build_tokenizer, write_tokenizer
from tests.support.pretrained.gguf_file import SPECIAL, TOKENS, stored_weights, tiny_weights, write_gguf


@pytest.fixture
def tokenizer(tiny_gguf) -> Tokenizer:
    return build_tokenizer(gguf.GGUFReader(tiny_gguf))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the the", ["t", "he", "Ġthe"]),
        ("1919", ["1", "9", "1", "9"]),  # although "19" is a merge
        (" 19", ["Ġ", "1", "9"]),  # although "Ġ1" is a merge
        ("  9", ["ĠĠ", "9"]),  # GPT-2's pattern alone would keep one space with the number
        ("²", ["Â", "²"]),
        ("the² ²", ["t", "he", "Â", "²", "Ġ", "Â", "²"]),
        ("é\n", ["Ã", "©", "Ċ"]),
        ("<|im_end|>the", ["<|im_end|>", "t", "he"]),
        ("", []),
    ],
)
def test_splits_and_merges(tokenizer, text, tokens):
    assert tokenizer.encode(text).tokens == tokens
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_ids_are_those_of_the_file(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())] == TOKENS
    added = tokenizer.get_added_tokens_decoder()
    assert {i: token.content for i, token in added.items()} == dict(enumerate(SPECIAL))
    assert all(token.special and not token.normalized for token in added.values())


def test_special_tokens_in_text_can_be_encoded_as_text(tokenizer):
    text = "a <|im_end|> the"
    assert tokenizer.encode(text).ids.count(2) == 1
    tokenizer.encode_special_tokens = True
    encoding = tokenizer.encode(text)
    assert not set(encoding.ids) & set(range(len(SPECIAL)))
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


def test_transformers_loads_it_with_its_splits_and_its_template(tiny_gguf, tmp_path):
    (tmp_path / "out").mkdir()
    write_model(gguf.GGUFReader(tiny_gguf), tmp_path / "out")  # AutoTokenizer also reads config.json
    write_tokenizer(gguf.GGUFReader(tiny_gguf), tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.tokenize("the  19") == ["t", "he", "ĠĠ", "1", "9"]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id) == (1, 2, 0, 2)
    assert loaded.model_max_length == 128 and loaded.vocab_size == len(TOKENS)
    prompt = loaded.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert prompt == "<|im_start|>user\nthe<|im_end|>\n"
    assert loaded(prompt).input_ids[:2] == [1, loaded.convert_tokens_to_ids("u")]  # no token is added before it
    assert loaded.decode(loaded("the , the").input_ids) == "the , the"  # no spaces are removed
    kept = loaded("<|im_end|>", split_special_tokens=True).input_ids
    assert 2 not in kept and loaded.decode(kept) == "<|im_end|>"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"pre": ("add_tokenizer_pre", "llama-bpe")}, r"ggml\.pre must be 'smollm', got 'llama-bpe'; import such"),
        ({"model": ("add_tokenizer_model", "llama")}, r"ggml\.model must be 'gpt2', got 'llama'; import such"),
        ({"merges": None}, r"must state tokenizer\.ggml\.merges, but this one does not"),
        (
            {"token_type": ("add_token_types", [gguf.TokenType.USER_DEFINED] + [1] * (len(TOKENS) - 1))},
            r"normal \(1\) or control \(3\), got .* and the types \[4\] besides 1 and 3",
        ),
        (
            {"token_type": ("add_token_types", [1] * (len(TOKENS) - 1))},
            rf"each of {len(TOKENS)} different tokens .* got {len(TOKENS) - 1} types for {len(TOKENS)} different",
        ),
        (
            {"tokens": ("add_token_list", [*TOKENS[:-1], TOKENS[5]])},
            rf"got {len(TOKENS)} types for {len(TOKENS) - 1} different tokens",
        ),
    ],
)
def test_refuses_an_unsupported_tokenizer(tmp_path, entries, message):
    path = write_gguf(tmp_path / "tiny.gguf", stored_weights(tiny_weights()), entries=entries)
    with pytest.raises(PretrainedError, match=message):
        build_tokenizer(gguf.GGUFReader(path))
