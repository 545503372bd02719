import dataclasses

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.from_dataset import corpus, prefix_of, suffixes_of
from r2rank_jax.data.prompts.tokenizer import (
    PAD,
    STOP,
    FastTokenizer,
    as_text_tokenizer,
    read_tokenizer,
    train_tokenizer,
)
from r2rank_jax.errors import DataError


def real(tokens, length):
    return tokens[: int(length)].tolist()


def test_arrays_hold_exactly_the_texts(encoder, dataset):
    lists = dataset.candidate_lists("valid")
    batch = encoder.encode_lists(lists)
    assert batch.prefix.shape == (40, 112) and batch.suffix.shape == (40, 20, 20)
    assert all(getattr(batch, f.name).dtype == np.int32 for f in dataclasses.fields(batch)[:6])
    assert batch.labels.dtype == np.float32 and batch.mask.dtype == bool and batch.mask.all()
    for row in (0, 17, 39):
        user, position = int(lists.user[row]), int(lists.position[row])
        prefix = encoder.tokenizer.decode(real(batch.prefix[row], batch.prefix_length[row]))
        assert prefix == prefix_of(dataset, user, position, 10)
        shown = [line.rsplit(" (", 1)[0] for line in prefix.splitlines()[1:]]
        rows = dataset.history(user, position)
        assert shown == [encoder.template.title_or_missing(dataset.items.title[i]) for i in dataset.item[rows][-10:]]
        texts = suffixes_of(dataset, lists.items[row].tolist())
        for column, text in enumerate(texts):
            ids = real(batch.suffix[row, column], batch.suffix_length[row, column])
            assert encoder.tokenizer.decode(ids) == text
            assert (batch.suffix[row, column, len(ids) :] == 0).all()


def test_prompts_do_not_depend_on_labels(encoder, dataset):
    lists = dataset.candidate_lists("valid")
    labels = np.random.default_rng(0).permuted(lists.labels, axis=1)
    assert (labels != lists.labels).any()
    batch, permuted = (encoder.encode(lists.user, lists.position, lists.items, each) for each in (lists.labels, labels))
    for name in ("user", "items", "prefix", "prefix_length", "suffix", "suffix_length", "mask"):
        assert (getattr(batch, name) == getattr(permuted, name)).all()
    assert (permuted.labels == labels).all()


def test_special_tokens_in_titles_stay_text(encoder, dataset):
    title = dataset.items.title[3]
    assert STOP in title and PAD in title
    batch = encoder.encode_lists(dataset.candidate_lists("test"))
    for tokens, length in ((batch.prefix, batch.prefix_length), (batch.suffix, batch.suffix_length)):
        inside = np.arange(tokens.shape[-1]) < length[..., None]
        assert not np.isin(tokens[inside], [encoder.tokenizer.pad, encoder.tokenizer.stop]).any()
    (ids,) = encoder.tokenizer.encode([title])
    assert encoder.tokenizer.decode(ids) == title


def test_tokens_end_at_lines_clauses_and_years(encoder):
    ids = encoder.tokenizer.encode(["Heat (1995) 4\nFargo (1996); Crime\n"])[0]
    for token in ids:
        text = encoder.tokenizer.decode([token])
        assert "\n" not in text[:-1] and "; " not in text[:-2] and " (" not in text[1:]


def test_the_oldest_interactions_are_dropped_until_the_prefix_fits(make_encoder, dataset):
    encoder = make_encoder(prefix_tokens=40)
    lists = dataset.candidate_lists("valid")
    batch = encoder.encode_lists(lists)
    dropped = 0
    for row in range(len(lists)):
        text = encoder.tokenizer.decode(real(batch.prefix[row], batch.prefix_length[row]))
        whole = prefix_of(dataset, int(lists.user[row]), int(lists.position[row]), 10)
        assert text.startswith(prompts.INSTRUCTION) and whole.endswith(text.removeprefix(prompts.INSTRUCTION))
        kept, shown = text.count("\n") - 1, whole.count("\n") - 1
        assert kept >= 1
        if kept < shown:  # one more interaction does not fit
            longer = prefix_of(dataset, int(lists.user[row]), int(lists.position[row]), kept + 1)
            assert len(encoder.tokenizer.encode([longer])[0]) > 40
        dropped += shown - kept
    assert encoder.counts["prefix_interactions_dropped"] == dropped > 0


def test_a_prefix_that_cannot_fit_is_an_error(make_encoder, dataset):
    lists = dataset.candidate_lists("valid")
    with pytest.raises(DataError, match=r"data.prefix_tokens must hold .*got 3; raise data.prefix_tokens"):
        make_encoder(prefix_tokens=3).encode_lists(lists)


def test_long_suffixes_lose_genres_and_then_the_end_of_the_title(dataset):
    """Tokens are bytes: 8 for the fixed words, 7 for the year, the title's own, 8 for Comedy and 6 for Drama."""
    tokenizer = as_text_tokenizer(train_tokenizer(["x"], 258))
    catalog = dataset.items
    item = 4
    assert (catalog.shown(item, "Unknown film"), catalog.genres[item]) == ("Film E5 (1945)", ("Comedy", "Drama"))

    def suffix(tokens):
        encoder = Encoder(tokenizer, dataset, DataConfig(suffix_tokens=tokens))
        return tokenizer.decode(real(encoder._suffix[item], encoder._suffix_length[item])), encoder.counts

    assert len("Film E5 (1945); Comedy Drama\nReason:") == 36
    assert suffix(36)[0] == "Film E5 (1945); Comedy Drama\nReason:"
    assert suffix(35)[0] == "Film E5 (1945); Comedy\nReason:"
    assert suffix(29)[0] == "Film E5 (1945)\nReason:"
    assert suffix(21)[0] == "Film E (1945)\nReason:"
    assert suffix(16)[0] == "F (1945)\nReason:"
    assert not suffix(69)[1]
    long_titles = sum(len(title.encode()) > 7 or not title for title in catalog.title)  # "Unknown film"
    assert suffix(22)[1] == {"suffixes_without_some_genres": 60 - long_titles, "suffixes_with_cut_title": long_titles}
    with pytest.raises(DataError, match=r"at least 16 tokens, got 15; raise data\.suffix_tokens"):
        suffix(15)


def test_rationales_end_with_stop_or_are_marked_as_truncated(make_encoder):
    encoder = make_encoder(rationale_tokens=6)
    texts = [[" yes", ""], [" strong match; " * 8, " no"]]
    tokens, length, stopped = encoder.encode_rationales(texts)
    assert tokens.shape == (2, 2, 1, 6) and length.shape == stopped.shape == (2, 2, 1)
    assert stopped[..., 0].tolist() == [[True, True], [False, True]]
    stop = encoder.tokenizer.stop
    assert length[0, 1, 0] == 1 and tokens[0, 1, 0].tolist() == [stop, 0, 0, 0, 0, 0]
    assert length[1, 0, 0] == 6 and stop not in tokens[1, 0, 0]
    assert [encoder.decode(tokens[0, 0, 0]), encoder.decode(tokens[0, 1, 0])] == [" yes", ""]
    assert encoder.counts["rationales_truncated"] == 1
    assert encoder.decode([*tokens[0, 0, 0].tolist(), 50, 51]) == " yes", "text after the stop token is ignored"


def test_a_rationale_that_fits_exactly_is_not_truncated(make_encoder):
    text = " some match; known; verdict maybe"
    size = len(make_encoder().tokenizer.encode([text])[0])
    for limit, fits in ((size + 1, True), (size, False)):
        tokens, length, stopped = make_encoder(rationale_tokens=limit).encode_rationales([[text]])
        assert (length.item(), stopped.item()) == (limit, fits)
        assert (tokens[0, 0, 0, -1] == 1) == fits


def test_a_user_without_history_is_an_error(encoder):
    with pytest.raises(DataError, match="user with no history"):
        encoder.encode(np.array([0]), np.array([0]), np.array([[1, 2]]), np.array([[1, 0]]))


def test_a_saved_tokenizer_encodes_the_same_after_reading(encoder, dataset, traces, tmp_path):
    train_tokenizer(corpus(dataset, traces, 10), 600).save(str(tmp_path / "tokenizer.json"))
    again = read_tokenizer(tmp_path / "tokenizer.json")
    texts = [*suffixes_of(dataset, range(len(dataset.items))), "a <stop> in the text"]
    assert again.encode(texts) == encoder.tokenizer.encode(texts)
    assert (again.pad, again.stop, again.vocabulary) == (0, 1, 600)
    with pytest.raises(DataError, match="got no such file"):
        read_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match="at least 258"):
        train_tokenizer(["text"], 100)


def _general(pre_tokenizer, decoder) -> Tokenizer:
    """A tokenizer like those of other models, with its own pre-tokenizer, end token and padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    texts = ["Film A1 (1941) 4\nFilm B2 (1942) 5\n", "Film C3 (1943); Comedy Drama\nReason:"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<|pad|>", special=True)])
    return tokenizer


@pytest.mark.parametrize(
    ("pre_tokenizer", "decoder", "by_line"),
    [
        # GPT-2's pattern joins a line end with the next character only if that is white space: lines are separate.
        (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), True),
        # SentencePiece marks the first word of a text, so a line encoded on its own has other ids.
        (pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(), False),
    ],
)
def test_general_tokenizers_encode_the_whole_prefix(dataset, pre_tokenizer, decoder, by_line):
    backend = _general(pre_tokenizer, decoder)
    tokenizer = FastTokenizer(backend, pad=backend.token_to_id("<|pad|>"), stop=backend.token_to_id("<|endoftext|>"))
    encoder = Encoder(tokenizer, dataset, DataConfig(prefix_tokens=300, suffix_tokens=60))
    assert encoder._by_line == by_line
    lists = dataset.candidate_lists("valid").take(np.arange(5))
    batch = encoder.encode_lists(lists)
    for row in range(5):
        (whole,) = tokenizer.encode([prefix_of(dataset, int(lists.user[row]), int(lists.position[row]), 10)])
        assert tuple(real(batch.prefix[row], batch.prefix_length[row])) == whole
        assert (batch.prefix[row, len(whole) :] == tokenizer.pad).all()


def test_the_backend_of_a_transformers_tokenizer_can_be_wrapped():
    transformers = pytest.importorskip("transformers")
    backend = _general(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
    outer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    inner = FastTokenizer(outer.backend_tokenizer, pad=outer.pad_token_id, stop=outer.eos_token_id)
    (ids,) = inner.encode(["A film<|endoftext|>"])
    assert inner.stop not in ids and inner.decode(ids) == "A film<|endoftext|>"
    assert outer.eos_token_id in outer("A film<|endoftext|>").input_ids, "the caller's tokenizer is not changed"


def test_wrapping_needs_the_two_special_tokens():
    with pytest.raises(DataError, match="must have <pad> and <stop>"):
        as_text_tokenizer(_general(pre_tokenizers.ByteLevel(), decoders.ByteLevel()))
