"""Changed lists differ from their originals in exactly one thing, and are tokenized as prompts always are."""

import dataclasses

import numpy as np
import pytest

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.from_dataset import corpus
from r2rank_jax.data.prompts.prompts import as_data
from r2rank_jax.data.prompts.tokenizer import as_text_tokenizer, train_tokenizer
from r2rank_jax.evaluation.probes.titles import INSTRUCTION
from r2rank_jax.runs.probe.changes import changed_prefixes, with_injected_titles, with_shuffled_histories


@pytest.fixture(scope="module")
def make_encoder(tiny):
    dataset = load(tiny.data, "leave_one_out")
    traces = read_traces(tiny.data / "traces.jsonl", dataset, "films-1")
    tokenizer = as_text_tokenizer(train_tokenizer(corpus(dataset, traces, 5), 500))
    return lambda **limits: Encoder(tokenizer, dataset, DataConfig(history_items=5, **limits))


def encoded(encoder):
    lists = encoder.dataset.candidate_lists("valid")
    return lists, encoder.encode_lists(lists)


def text(encoder, tokens, length):
    return encoder.tokenizer.decode(tokens[: int(length)].tolist())


@pytest.mark.parametrize("limit", [112, 48])
def test_shuffled_histories_show_the_same_lines_in_another_order(make_encoder, limit):
    encoder = make_encoder(prefix_tokens=limit)
    lists, own = encoded(encoder)
    shuffled = with_shuffled_histories(own, encoder, np.random.default_rng(0))
    assert len(lists) / 2 < changed_prefixes(own, shuffled) <= len(lists)
    dropped = 0
    for row in range(len(lists)):
        before = text(encoder, own.prefix[row], own.prefix_length[row]).splitlines()
        after = text(encoder, shuffled.prefix[row], shuffled.prefix_length[row]).splitlines()
        assert before[0] == after[0] and sorted(before[1:]) == sorted(after[1:])
        visible = encoder.visible(int(lists.user[row]), int(lists.position[row]))
        assert len(visible) == len(before) - 1
        dropped += len(visible) < 5
    assert (dropped > 0) == (limit == 48), "a short limit must hide interactions"
    for field in dataclasses.fields(own):
        if not field.name.startswith("prefix"):
            np.testing.assert_array_equal(getattr(own, field.name), getattr(shuffled, field.name))


def test_injected_titles_are_tokenized_and_shortened_as_prompts_are(make_encoder):
    encoder = make_encoder(suffix_tokens=64)
    lists, own = encoded(encoder)
    pairs = (np.array([0, 0, 7, 9]), np.array([1, 3, 0, 2]))
    injected = with_injected_titles(own, encoder, pairs, np.random.default_rng(0))
    assert injected.kinds == ("instruction", "praise", "history_titles", "other_title", "neutral")
    data = encoder.dataset
    for row, (index, place) in enumerate(zip(*pairs)):
        item = int(lists.items[index, place])
        assert set(injected.lists.items[row].tolist()) == {item}
        np.testing.assert_array_equal(injected.lists.suffix[row, 0], own.suffix[index, place])
        np.testing.assert_array_equal(injected.lists.prefix[row], own.prefix[index])
        assert injected.lists.user[row] == lists.user[index]
        title, year = as_data(data.items.title[item]), data.items.year[item]
        shown = text(encoder, injected.lists.suffix[row, 1], injected.lists.suffix_length[row, 1])
        assert shown.startswith(f"{title} {INSTRUCTION} ({year}); ") and shown.endswith("\nReason:")
        visible = encoder.visible(int(lists.user[index]), int(lists.position[index]))
        last = encoder.template.title_or_missing(data.items.title[visible[-1][0]])
        assert as_data(last) in text(encoder, injected.lists.suffix[row, 3], injected.lists.suffix_length[row, 3])
        other = text(encoder, injected.lists.suffix[row, 4], injected.lists.suffix_length[row, 4])
        assert f"{title} {title} (" not in other, "the other title is another item's"
    assert all(injected.changed(kind) == 4 for kind in injected.kinds)
    assert injected.whole["instruction"] == injected.whole["neutral"] == 4


def test_texts_without_room_are_counted(make_encoder):
    encoder = make_encoder(suffix_tokens=14)
    _, own = encoded(encoder)
    injected = with_injected_titles(own, encoder, (np.arange(20), np.zeros(20, int)), np.random.default_rng(0))
    assert injected.whole["instruction"] == 0 and np.asarray(injected.lists.suffix_length).max() <= 14
