"""`r2rank data card`: compute the statistics of a prepared folder and write card.json, card.md and figures/*.svg."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.lists import ListTable, read_lists
from r2rank_jax.data.audit.reading import read_bucket
from r2rank_jax.data.audit.tables import AGAIN, Bucket
from r2rank_jax.data.card import figures
from r2rank_jax.data.card.page import FIGURES, page
from r2rank_jax.data.card.statistics import (
    DAY,
    HISTORIES,
    InteractionCounts,
    ListCounts,
    Measure,
    characters,
    history_sums,
    quantiles,
    words,
)
from r2rank_jax.data.prepared.folder import candidate_file, manifest_of
from r2rank_jax.data.prepared.settings import Array, Settings
from r2rank_jax.data.prepared.splits import HELD_OUT
from r2rank_jax.data.prepared.tables import Items
from r2rank_jax.data.prompts.templates import TEMPLATE_OF_DOMAIN
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file

IDS = Check("ids", "users and candidates belong to this folder", AGAIN)

_TEXTS = 100_000  # number of item texts measured at a time
_FROM_MANIFEST = (
    "source", "domain", "time_unit", "users", "items", "interactions", "interactions_sha256", "items_sha256", "steps",
    "settings", "cleaned", "quarantined",
)  # fmt: skip


def write_card(directory: Path, tokenizer: Path | None = None) -> None:
    """Write the card of a prepared folder into the folder: card.json, card.md, figures/*.svg.

    This takes two passes over the buckets, in the memory of one bucket: the first counts interactions, the second
    counts lists, which requires every item's popularity.

    Args:
        directory: the prepared folder.
        tokenizer: a tokenizer.json (a run's, or a Hugging Face model's) with which texts are measured in tokens; None:
            only characters and words.

    Raises:
        DataError: the directory is not a prepared folder or cannot be read, or the tokenizer does not exist.
    """
    manifest = manifest_of(directory)
    measures = _measures(tokenizer)
    items = Items.read(directory / "items.parquet")
    counts = InteractionCounts(len(items), manifest["time_unit"])
    for bucket in _buckets(directory, manifest):
        counts.add(bucket.offsets, bucket.item, bucket.rating, bucket.timestamp)
    lists = {name: {part: ListCounts(counts.per_item) for part in HELD_OUT} for name in manifest["protocols"]}
    if manifest["domain"] not in TEMPLATE_OF_DOMAIN:
        raise DataError(
            f"{directory}/manifest.json: domain must be one of {', '.join(TEMPLATE_OF_DOMAIN)}, got "
            f"{manifest['domain']!r:.80}; restore the file, or prepare the data into a new folder"
        )
    missing = TEMPLATE_OF_DOMAIN[manifest["domain"]].missing
    shown = [items.shown(item, missing) for item in range(len(items))]
    lengths = {unit: _measured(measure, shown) for unit, measure in measures.items()}
    histories: dict[str, list[Array]] = {unit: [] for unit in measures}
    for number, bucket in enumerate(_buckets(directory, manifest)):
        for protocol, parts in lists.items():
            table = _lists(directory, protocol, number, manifest, bucket, len(items))
            _count_lists(parts, bucket, table)
            for unit, each in lengths.items():
                sums = history_sums(bucket.offsets, bucket.item, bucket.first_user, table.user, table.position, each)
                histories[unit].append(sums)
    card: dict[str, Any] = {name: manifest[name] for name in _FROM_MANIFEST} | counts.summary()
    card["catalogue"] = _catalog(items, manifest)
    card["protocols"] = {name: _protocol(manifest["protocols"][name], parts) for name, parts in lists.items()}
    card["text"] = {unit: _text(each, np.concatenate(histories[unit])) for unit, each in lengths.items()}
    _write(directory, card, _draw(counts, manifest, lists))


def _measures(tokenizer: Path | None) -> dict[str, Measure]:
    if tokenizer is None:
        return {"characters": characters, "words": words}
    if not tokenizer.is_file():
        raise DataError(f"--tokenizer must name a tokenizer.json, got {tokenizer}, which does not exist")
    try:
        backend = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise DataError(
            f"--tokenizer must name a tokenizer.json, got {tokenizer}, which cannot be read: {error}"
        ) from error

    def tokens(texts: Sequence[str]) -> Array:
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter((len(encoding.ids) for encoding in encoded), np.int64, len(texts))

    return {"tokens": tokens, "characters": characters, "words": words}


def _measured(measure: Measure, texts: list[str]) -> Array:
    parts = [measure(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _buckets(directory: Path, manifest: dict[str, Any]) -> Iterator[Bucket]:
    first_user, findings = 0, Findings()
    for number in range(manifest["buckets"]):
        bucket, _ = read_bucket(directory, number, first_user, findings)
        if bucket is None or findings.faults:
            raise DataError(_cannot_read(directory, findings))
        first_user += bucket.users
        yield bucket


def _lists(
    directory: Path, protocol: str, number: int, manifest: dict[str, Any], bucket: Bucket, items: int
) -> ListTable:
    file, findings = candidate_file(protocol, number), Findings()
    content = (directory / file).read_bytes() if (directory / file).is_file() else b""
    table = read_lists(file, content, Settings(**manifest["settings"]).candidates, findings)
    place = table.user - bucket.first_user
    valid = (place >= 0) & (place < bucket.users) & np.all((table.items >= 0) & (table.items < items), axis=1)
    table.note(findings, IDS, ~valid, lambda row: f"user {table.user[row]} or a candidate is unknown")
    if findings.faults:
        raise DataError(_cannot_read(directory, findings))
    return table


def _cannot_read(directory: Path, findings: Findings) -> str:
    return f"{directory} must be a folder in which `r2rank data audit` finds no fault, got\n{findings.text()}"


def _count_lists(parts: dict[str, ListCounts], bucket: Bucket, table: ListTable) -> None:
    for name, counts in parts.items():
        chosen = table.where(table.test == (name == "test"))
        counts.add(
            bucket.first_user,
            bucket.offsets,
            bucket.item,
            chosen.user,
            chosen.position,
            chosen.items,
            chosen.labels,
        )


def _catalog(items: Items, manifest: dict[str, Any]) -> dict[str, Any]:
    titled = Counter(zip(items.title, items.year))
    del titled["", ""]
    return {
        "titles_missing": manifest["items_without_title"],
        "titles_repeated": sum(count for count in titled.values() if count > 1),
        "genres_missing": sum(not genres for genres in items.genres),
    }


def _protocol(part: dict[str, Any], parts: dict[str, ListCounts]) -> dict[str, Any]:
    tied = part["positives_tied_in_time_with_the_interaction_before"]
    summary: dict[str, Any] = {"sha256": part["sha256"], "train_interactions": part["train_interactions"]}
    for name, counts in parts.items():
        summary[name] = counts.summary() | {
            "tied_with_the_interaction_before": tied[name],
            "left_out_without_history": part["left_out_without_history"][name],
        }
    return summary | {name: part[name] for name in ("cuts", "run") if name in part}


def _text(each: Array, histories: Array) -> dict[str, dict[str, float]]:
    """Lengths, in one unit, of the items' texts and of the histories before the lists' positives."""
    lengths = {"title and year of an item": quantiles(each)}
    for column, interactions in enumerate(HISTORIES):
        lengths[f"history of at most {interactions} titles"] = quantiles(histories[:, column])
    return lengths


def _draw(
    counts: InteractionCounts, manifest: dict[str, Any], lists: dict[str, dict[str, ListCounts]]
) -> dict[str, bytes]:
    cuts = manifest["protocols"].get("global_time", {}).get("cuts", ())
    day = DAY[manifest["time_unit"]]
    first = next(iter(lists.values()))["test"]
    drawn = {
        "history_lengths.svg": figures.history_lengths(counts.lengths),
        "popularity.svg": figures.popularity(counts.per_item),
        "time.svg": figures.over_time(counts.days, {f"cut {i}": cut // day for i, cut in enumerate(cuts, start=1)}),
        "ratings.svg": figures.ratings(counts.ratings()),
        "candidates.svg": figures.candidates(first.relevant, first.negative),
    }
    return {name: content for name, content in drawn.items() if content is not None}


def _write(directory: Path, card: dict[str, Any], drawn: dict[str, bytes]) -> None:
    files = {f"figures/{name}": content for name, content in drawn.items()}
    files["card.json"] = (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()
    files["card.md"] = page(card, drawn).encode()
    for name in FIGURES.keys() - drawn.keys():
        (directory / "figures" / name).unlink(missing_ok=True)
    for name, content in files.items():
        with replacing_file(directory / name) as temporary:
            temporary.write_bytes(content)
