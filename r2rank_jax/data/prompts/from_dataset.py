"""The prompts of a prepared dataset: its users' histories and its items in the words of a template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from r2rank_jax.data.prepared.dataset import Dataset
from r2rank_jax.data.prepared.traces import Traces
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.prompts import Details, Shown
from r2rank_jax.data.prompts.templates import FILMS_1, Template

_TICKS = {"s": 1, "ms": 1000}  # timestamp units per second


def prefix_of(dataset: Dataset, user: int, position: int, history_items: int, template: Template = FILMS_1) -> str:
    """Text of the prefix that shows the last `history_items` interactions before `position`."""
    seen = seen_before(dataset, user, position, history_items, template)
    return prompts.prefix_text([as_shown(dataset, *each) for each in seen], template)


def suffixes_of(
    dataset: Dataset, items: Iterable[int], template: Template = FILMS_1, *, reasoning: bool = True
) -> list[str]:
    """Texts of the items' suffixes."""
    return [prompts.suffix_text(*candidate_fields(dataset, i), template=template, reasoning=reasoning) for i in items]


def corpus(
    dataset: Dataset, traces: Traces, history_items: int, template: Template = FILMS_1, *, reasoning: bool = True
) -> Iterator[str]:
    """Every prompt segment of the traces, as often as it is used: the training text for `train_tokenizer`."""
    for row, (user, position) in enumerate(zip(traces.lists.user.tolist(), traces.lists.position.tolist())):
        yield prefix_of(dataset, user, position, history_items, template)
        yield from suffixes_of(dataset, traces.lists.items[row].tolist(), template, reasoning=reasoning)
        yield from traces.rationales[row]


def seen_before(
    dataset: Dataset, user: int, position: int, history_items: int, template: Template
) -> list[tuple[int, float | None, str]]:
    """(item, rating, time words) of the interactions that a prefix shows, oldest first."""
    rows = dataset.history(user, position, history_items)
    ratings = [None if rating != rating else rating for rating in dataset.rating[rows].tolist()]
    if not template.times:
        return [(item, rating, "") for item, rating in zip(dataset.item[rows].tolist(), ratings)]
    # The list is taken to be shown when its positive was chosen. After a user's last interaction there is no such
    # time, so the time of the last interaction is used.
    now = int(dataset.timestamp[min(rows.stop, int(dataset.offsets[user + 1]) - 1)])
    ticks = _TICKS[dataset.time_unit]
    times = [prompts.time_words((now - then) // ticks) for then in dataset.timestamp[rows].tolist()]
    return list(zip(dataset.item[rows].tolist(), ratings, times))


def as_shown(dataset: Dataset, item: int, rating: float | None, before: str) -> Shown:
    """An entry of `seen_before` with the item's title and year."""
    return Shown(dataset.items.title[item], dataset.items.year[item], rating, before)


def candidate_fields(dataset: Dataset, item: int) -> tuple[str, str, tuple[str, ...], Details]:
    """Title, year, genres and details of an item, as `prompts.suffix_text` takes them."""
    catalog = dataset.items
    details = catalog.details[item] if catalog.details else ()
    return catalog.title[item], catalog.year[item], catalog.genres[item], details
