"""The templates: frozen words, hand-written examples, times, and the prompts of a dataset."""

import hashlib
import re
import typing
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.from_dataset import prefix_of, suffixes_of
from r2rank_jax.data.prompts.templates import FILMS_1, TEMPLATES, find_template
from r2rank_jax.errors import DataError

# A released template never changes. To improve the words, add a new template with its own digest.
DIGESTS = {
    "films-1": "a61fa87c50ff89bc",
    "films-2": "44f91244f2399c71",
    "products-1": "220fffa9d5371e64",
    "games-1": "894eef59c64166ec",
    "books-1": "be8bf70a68fcfde0",
    "places-1": "e470aa14e1ea8f68",
}
DAY = 86_400


@pytest.mark.parametrize("name", TEMPLATES)
def test_released_templates_are_frozen(name):
    template = TEMPLATES[name]
    history = [("Emma", "1996", 4.5, "3 days before"), ("Heat", "", None, "1 year before")]
    details = [("price", "9.99"), ("brand", "B"), ("author", "A"), ("developer", "D"), ("city", "C")]
    texts = [prompts.prefix_text(history, template)]
    for reasoning in (True, False):
        texts.append(
            prompts.suffix_text("Alien", "1979", ("Crime", "War"), details, template=template, reasoning=reasoning)
        )
        texts.append(prompts.suffix_text("", "", (), (), template=template, reasoning=reasoning))
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == DIGESTS[name], (name, texts)


def test_exactly_the_templates_can_be_configured():
    field = typing.get_type_hints(DataConfig)["template"]
    assert set(typing.get_args(field)) == set(TEMPLATES) and DataConfig().template == "films-1"
    assert all(re.fullmatch(r"[a-z]+-[1-9]\d*", name) and name == each.name for name, each in TEMPLATES.items())
    with pytest.raises(DataError, match=r"data\.template must be one of films-1, .*, got 'films'"):
        find_template("films")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_item_text_cannot_imitate_a_template(template):
    assert template.instruction.count("\n") == 1 and template.instruction.endswith(":\n")
    assert "; " in template.instruction, "item text never contains it"
    words = [text for text in astuple(template) if isinstance(text, str)] + [text for _, text in template.details]
    assert not any(";" in text for text in words if text != template.instruction)
    labels = [template.kinds, *(label for _, label in template.details)]
    assert len(set(labels)) == len(labels) and all(label.endswith(" ") for label in labels if label)


def test_a_prompt_equals_one_written_by_hand():
    history = [("Catan", "", 5.0, "2 weeks before"), ("Speed 2", "1997", None, "minutes before")]
    template = TEMPLATES["products-1"]
    assert prompts.prefix_text(history, template) == (
        "Products bought, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n"
        "Catan 5, 2 weeks before\nSpeed 2 (1997) -, minutes before\n"
    )
    details = [("color", "red"), ("price", "12.99"), ("brand", "LEGO"), ("brand", "Other")]
    candidate = ("Millennium Falcon", "", ("Toys & Games", "Building, Sets"), details)
    assert prompts.suffix_text(*candidate, template=template) == (
        "Millennium Falcon; in Toys & Games, Building Sets; by LEGO; price 12.99\nReason:"
    )
    assert prompts.suffix_text(*candidate, template=template, reasoning=False).endswith("12.99\nScore:")
    assert prompts.suffix_text("", "", (), template=template) == "Unknown product\nReason:"


def test_films_1_shows_missing_ratings_and_no_times():
    assert prompts.prefix_text([("Speed 2", "", None, "1 day before")]) == FILMS_1.instruction + "Speed 2 -\n"
    assert prompts.prefix_text([("Speed 2", "", float("nan"))]) == FILMS_1.instruction + "Speed 2 -\n"


SHOWN = {
    "films-1": (("Toy Story", "1995", 4.0), ("Heat", "1995", ("Action", "Crime"))),
    "films-2": (("Toy Story", "1995", 4.0, "3 days before"), ("Heat", "1995", ("Action", "Crime"))),
    "products-1": (("Catan", "", 5.0, "2 weeks before"), ("Millennium Falcon", "", ("Toys & Games", "Building"))),
    "games-1": (("Portal", "2007", None, "4 years before"), ("Portal 2", "2011", ("Action", "Puzzle"))),
    "books-1": (("Emma", "1815", 4.5, "23 hours before"), ("Dune", "1965", ("Science Fiction",))),
    "places-1": (("Café Luna", "", 3.0, "minutes before"), ("Joe's Diner", "", ("Restaurants", "Diners"))),
}
SHOWN_DETAILS = {
    "products-1": [("brand", "LEGO"), ("price", "12.99")],
    "games-1": [("developer", "Valve"), ("price", "9.99")],
    "books-1": [("author", "Frank Herbert"), ("price", "8.5")],
    "places-1": [("city", "Tucson"), ("price", "2")],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_docs_show_every_template_verbatim(name):
    page = (Path(__file__).parents[3] / "docs/prompts.md").read_text(encoding="utf-8")
    seen, candidate = SHOWN[name]
    text = prompts.prefix_text([seen], TEMPLATES[name])
    text += prompts.suffix_text(*candidate, SHOWN_DETAILS.get(name, ()), template=TEMPLATES[name])
    assert f"{name:14}" + text.replace("\n", "\n" + " " * 14) + "\n" in page


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "minutes before"), (3599, "minutes before"), (3600, "1 hour before"), (7200, "2 hours before"),
        (DAY - 1, "23 hours before"), (DAY, "1 day before"), (14 * DAY - 1, "13 days before"),
        (14 * DAY, "2 weeks before"), (63 * DAY - 1, "8 weeks before"), (63 * DAY, "2 months before"),
        (730 * DAY, "23 months before"), (731 * DAY, "2 years before"), (40 * 366 * DAY, "40 years before"),
    ],
)  # fmt: skip
def test_times_are_coarse(seconds, words):
    assert prompts.time_words(seconds) == words


def test_time_words_are_few_and_reject_the_future():
    assert len({prompts.time_words(seconds) for seconds in range(0, 20 * 366 * DAY, 1800)}) < 100
    with pytest.raises(DataError, match="history must precede its list, got an interaction 5 s after it"):
        prompts.time_words(-5)


@pytest.fixture
def two_users(dataset):
    """The tiny dataset in which user 0 has one interaction per day. The other users' times are unchanged."""
    timestamp = dataset.timestamp.copy()
    own = slice(0, int(dataset.offsets[1]))
    timestamp[own] = 880_000_000 + DAY * np.arange(own.stop)
    return replace(dataset, timestamp=timestamp)


def test_times_are_relative_to_when_the_list_was_shown(two_users, make_encoder):
    template = TEMPLATES["films-2"]
    text = prefix_of(two_users, 0, 5, 3, template)
    assert re.findall(r", (\d+ days? before)\n", text) == ["3 days before", "2 days before", "1 day before"]
    text = prefix_of(two_users, 0, 6, 3, template)
    assert re.findall(r", (\d+ days? before)\n", text) == ["3 days before", "2 days before", "1 day before"]
    # After the last interaction the time is unknown. The next user's first time must not be used.
    end = int(two_users.offsets[1])
    assert re.findall(r"(\d+ days?|minutes) before\n", prefix_of(two_users, 0, end, 2, template)) == [
        "1 day",
        "minutes",
    ]
    in_ms = replace(two_users, timestamp=two_users.timestamp * 1000 + 7, time_unit="ms")
    assert prefix_of(in_ms, 0, 5, 3, template) == prefix_of(two_users, 0, 5, 3, template)


@pytest.mark.parametrize("name", ["films-1", "films-2"])
def test_cached_lines_equal_the_lines_of_whole_prefixes(two_users, make_encoder, name):
    """The same item and rating at a different time is a different line in films-2, but the same line in films-1."""
    tokenizer = make_encoder().tokenizer
    encoder = Encoder(tokenizer, two_users, DataConfig(template=name, prefix_tokens=400, suffix_tokens=40))
    assert encoder._by_line
    for position in (3, 6, 9, 4, 6):
        (whole,) = tokenizer.encode([prefix_of(two_users, 0, position, 10, TEMPLATES[name])])
        assert encoder.prefix(0, position) == whole
    lines = {line for position in (3, 6, 9, 4) for line in prefix_of(two_users, 0, position, 10).splitlines()[1:]}
    assert (len(encoder._lines) == len(lines)) == (name == "films-1")


def test_missing_ratings_are_cached_once(two_users, make_encoder):
    unrated = replace(two_users, rating=np.full_like(two_users.rating, np.nan))
    encoder = Encoder(make_encoder().tokenizer, unrated, DataConfig(prefix_tokens=400, suffix_tokens=40))
    for _ in range(3):
        encoder.prefix(0, 4)
    assert len(encoder._lines) == 4


def test_details_come_from_the_catalog_and_are_dropped_first(dataset, make_encoder):
    details = tuple((("developer", f"Studio {i}"), ("price", "9.99")) for i in range(len(dataset.items)))
    games = replace(dataset, items=replace(dataset.items, details=details))
    template, tokenizer = TEMPLATES["games-1"], make_encoder().tokenizer
    (text,) = suffixes_of(games, [4], template)
    assert text == "Film E5 (1945); kind Comedy, Drama; by Studio 4; price 9.99\nReason:"
    texts = [
        text.replace("; price 9.99", ""),
        text.replace("; by Studio 4; price 9.99", ""),
        text.replace(", Drama; by Studio 4; price 9.99", ""),
        "Film E5 (1945)\nReason:",
    ]
    for shorter in texts:
        limit = len(tokenizer.encode([shorter])[0])
        encoder = Encoder(tokenizer, games, DataConfig(template="games-1", prefix_tokens=400, suffix_tokens=limit))
        ids = encoder._suffix[4, : encoder._suffix_length[4]].tolist()
        assert tokenizer.decode(ids) == shorter
        assert encoder.counts["suffixes_without_some_details"] > 0


def test_without_reasoning_the_prompt_ends_with_a_different_mark(dataset, make_encoder):
    tokenizer = make_encoder().tokenizer
    for name, tokens, mark in (("films-1", 0, "Reason:"), ("films-2", 0, "Score:"), ("films-2", 5, "Reason:")):
        config = DataConfig(template=name, rationale_tokens=tokens, suffix_tokens=60)
        encoder = Encoder(tokenizer, dataset, config)
        assert tokenizer.decode(encoder._suffix[0, : encoder._suffix_length[0]]).endswith(f"\n{mark}")


def test_a_tokenizer_that_loses_line_ends_is_refused(dataset):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    from r2rank_jax.data.prompts.tokenizer import FastTokenizer

    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "abcdefghijklmnotw")], unk_id=0)
    )
    backend.normalizer, backend.pre_tokenizer = normalizers.Replace("\n", " "), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    with pytest.raises(DataError, match=r"must keep line ends.* choose a model whose tokenizer has a token"):
        Encoder(FastTokenizer(backend, pad=0, stop=0), dataset, DataConfig())
