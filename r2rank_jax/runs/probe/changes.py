"""Changed lists for a policy to read: another order of candidates, other histories, titles with added text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from r2rank_jax.data.batches.encoder import Encoder, Fields, padded
from r2rank_jax.data.prompts.from_dataset import candidate_fields
from r2rank_jax.data.prompts.prompts import as_data
from r2rank_jax.evaluation.probes.titles import injected_texts, with_text
from r2rank_jax.runs.probe.scoring import take_lists
from r2rank_jax.types import OF_ITEMS, ListBatch


def with_candidates_in_order(lists: ListBatch, order: np.ndarray) -> ListBatch:
    """Lists whose candidates are in another order, int [L, N]."""
    rows = np.arange(len(order))[:, None]
    changed: dict[str, Any] = {name: np.asarray(getattr(lists, name))[rows, order] for name in OF_ITEMS}
    return replace(lists, **changed)


def with_shuffled_histories(lists: ListBatch, encoder: Encoder, rng: np.random.Generator) -> ListBatch:
    """Lists that show the same interactions in a random order, each with its rating and time."""
    prefixes = []
    for user, position in zip(np.asarray(lists.user).tolist(), np.asarray(lists.position).tolist()):
        visible = encoder.visible(user, position)
        prefixes.append(encoder.fit_history([visible[place] for place in rng.permutation(len(visible))])[0])
    prefix, length = padded(prefixes, encoder.config.prefix_tokens, encoder.tokenizer.pad)
    changed: dict[str, Any] = {"prefix": prefix, "prefix_length": length}
    return replace(lists, **changed)


def with_histories_of(lists: ListBatch, others: np.ndarray) -> ListBatch:
    """Lists that show the histories of other lists, int [L]."""
    shown = take_lists(lists, others)
    return replace(lists, prefix=shown.prefix, prefix_length=shown.prefix_length)


def changed_prefixes(lists: ListBatch, other: ListBatch) -> int:
    """The number of lists whose prefix differs."""
    return int(np.any(np.asarray(lists.prefix) != np.asarray(other.prefix), axis=1).sum())


@dataclass(frozen=True)
class InjectedTitles:
    """Some items with their own title and with a text added to it."""

    lists: ListBatch  # P lists, each of one item: [:, 0] with its own title, [:, 1 + k] with the k-th text
    kinds: tuple[str, ...]
    whole: Mapping[str, int]  # kind -> number of prompts that show the text whole

    def changed(self, kind: str) -> int:
        """The number of prompts that a text changes. It does not if the prompt has no room for it."""
        suffix = np.asarray(self.lists.suffix)
        return int(np.any(suffix[:, 1 + self.kinds.index(kind)] != suffix[:, 0], axis=1).sum())


def with_injected_titles(
    lists: ListBatch, encoder: Encoder, pairs: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> InjectedTitles:
    """The items at some places of some lists, with each kind of text added to their titles.

    All variants of an item keep its id, so that their rationales are sampled with the same noise.

    Args:
        lists: L lists.
        encoder: tokenizes and shortens the prompts as always.
        pairs: int [P] lists and int [P] places.
        rng: draws the other items whose titles are added.
    """
    data, template = encoder.dataset, encoder.template
    rows, places = pairs
    chosen, items = take_lists(lists, rows), np.asarray(lists.items)[rows, places]
    fields: list[Fields] = []
    texts_of_pairs: list[dict[str, str]] = []
    for row, item in enumerate(items.tolist()):
        visible = encoder.visible(int(chosen.user[row]), int(chosen.position[row]))
        history = [template.title_or_missing(data.items.title[seen]) for seen, _, _ in visible]
        other = (item + 1 + int(rng.integers(len(data.items) - 1))) % len(data.items)
        texts = injected_texts(history, template.title_or_missing(data.items.title[other]))
        title, year, genres, details = candidate_fields(data, item)
        titles = [title, *(with_text(title, text) for text in texts.values())]
        fields += [(each, year, genres, details) for each in titles]
        texts_of_pairs.append(texts)
    kinds = tuple(texts_of_pairs[0])
    variants = 1 + len(kinds)
    suffix, length = encoder.encode_suffixes(fields)
    suffix, length = suffix.reshape(len(rows), variants, -1), length.reshape(len(rows), variants)
    shown = {
        kind: sum(
            as_data(texts[kind]) in encoder.tokenizer.decode(suffix[row, column, : length[row, column]].tolist())
            for row, texts in enumerate(texts_of_pairs)
        )
        for column, kind in enumerate(kinds, start=1)
    }
    changed: dict[str, Any] = {
        "items": np.repeat(items[:, None], variants, axis=1),
        "suffix": suffix,
        "suffix_length": length,
        "labels": np.zeros((len(rows), variants), np.float32),
        "mask": np.ones((len(rows), variants), bool),
    }
    return InjectedTitles(replace(chosen, **changed), kinds, shown)
