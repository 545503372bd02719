"""The choice of padding and stop ids for tokenizers set up like those of published models."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models

from r2rank_jax.errors import ConfigError
from r2rank_jax.pretrained.tokenizer_files import (
    SpecialIds,
    copy_tokenizer,
    read_special_ids,
    set_padding,
)


def write(folder, special, *, plain=("a", "b", "None"), **settings):
    """Write a tokenizer whose plain tokens have ids 0, 1, 2, followed by the special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(plain)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_separate_padding_token_is_used(tmp_path):
    """Qwen2.5-Instruct pads with <|endoftext|> and ends with <|im_end|>."""
    write(tmp_path, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    assert read_special_ids(tmp_path, {"eos_token_id": 5}, 6) == SpecialIds(pad=3, stop=5, bos=None)


def test_padding_that_is_the_stop_token_is_replaced(tmp_path):
    """SmolLM2-Instruct pads with its stop token; its <unk> is unused. A token may be an object instead of a string."""
    write(
        tmp_path,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token={"content": "<|im_end|>"},
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
    )
    assert read_special_ids(tmp_path, {"bos_token_id": 4}, 6) == SpecialIds(pad=3, stop=5, bos=4)


def test_a_token_named_pad_is_preferred(tmp_path):
    """Llama 3.2 has no padding token and several end tokens, one of them in the tokenizer's settings."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>", "<|finetune_right_pad_id|>", "<|eot_id|>"]
    write(tmp_path, special, eos_token="<|eot_id|>", bos_token="<|begin_of_text|>")
    values = {"eos_token_id": [4, 7], "bos_token_id": 3}
    assert read_special_ids(tmp_path, values, 8) == SpecialIds(pad=6, stop=7, bos=3)


def test_tokens_of_the_chat_template_are_not_padding(tmp_path):
    write(tmp_path, ["<end>", "<user>", "<free>"], eos_token="<end>", chat_template="<user>{{ message }}")
    assert read_special_ids(tmp_path, {}, 6).pad == 5
    write(tmp_path, ["<end>", "<user>", "<free>"], eos_token="<end>")
    (tmp_path / "chat_template.jinja").write_text("<user>")
    assert read_special_ids(tmp_path, {}, 6).pad == 5


def test_plain_tokens_are_never_padding(tmp_path):
    """If padding were a plain token, a title that ends in it would be cut. Without a free token, pad is the stop."""
    write(tmp_path, ["<end>"], eos_token="<end>", pad_token="a")
    assert read_special_ids(tmp_path, {"pad_token_id": 0}, 4) == SpecialIds(pad=3, stop=3, bos=None)


def test_config_json_gives_the_stop_token_if_the_tokenizer_has_none(tmp_path):
    write(tmp_path, ["<end>", "<pad>"])
    assert read_special_ids(tmp_path, {"eos_token_id": [3, 9]}, 5) == SpecialIds(pad=4, stop=3, bos=None)
    with pytest.raises(ConfigError, match=r"end-of-text token below 5, got None and \[9\]; add eos_token"):
        read_special_ids(tmp_path, {"eos_token_id": 9}, 5)


def test_gaps_in_the_ids_are_noticed(tmp_path):
    """The number of tokens is smaller than the largest id, but the largest id must have a row."""
    write(tmp_path, ["<end>"], eos_token="<end>")
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["model"]["vocab"]["b"] = 40
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"got id 40 \('b'\) and a vocabulary of 40"):
        read_special_ids(tmp_path, {}, 40)
    assert read_special_ids(tmp_path, {}, 41).stop == 3


def test_our_padding_is_written_to_all_settings_files(tmp_path):
    write(tmp_path / "a", ["<end>", "<pad>"], eos_token="<end>", pad_token="<end>", extra_é=1)
    (tmp_path / "a/special_tokens_map.json").write_text(json.dumps({"pad_token": "<end>", "eos_token": "<end>"}))
    copy_tokenizer(tmp_path / "a", tmp_path / "b")
    set_padding(tmp_path / "b", 4)
    settings = json.loads((tmp_path / "b/tokenizer_config.json").read_text())
    assert settings == {"eos_token": "<end>", "pad_token": "<pad>", "extra_é": 1}
    assert json.loads((tmp_path / "b/special_tokens_map.json").read_text()) == {
        "pad_token": "<pad>",
        "eos_token": "<end>",
    }


@pytest.mark.parametrize("odd", ["x", 1.5, {"id": 3}, [None]])
def test_an_id_of_another_type_is_refused(tmp_path, odd):
    write(tmp_path, ["<end>"], eos_token="<end>")
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        with pytest.raises(ConfigError, match=f"config.json must give {name} as an id or a list of ids"):
            read_special_ids(tmp_path, {name: odd}, 5)
