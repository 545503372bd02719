"""From a source's files to one frozen folder: sorted interactions, items, candidate lists, manifest.

Candidates are drawn here once and never again, so that every system ranks the same lists.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data import movielens
from r2rank_jax.data.atomic import replacing_folder
from r2rank_jax.data.errors import DataError
from r2rank_jax.data.splits import HELD_OUT, NONE, PROTOCOLS, Split, sample_outside, split, time_cuts
from r2rank_jax.data.tables import Array, Interactions, Items
from r2rank_jax.data.wheels import sha256

FORMAT = 1  # of the folder; raised when a reader of the old form would go wrong


def prepare(source: Path, out: Path, *, seed: int = 0, candidates: int = 20) -> None:
    """Write the folder that `dataset.load` reads.

    Args:
        source: folder with RecBole's `.inter` and `.item` files.
        out: new folder; one that holds the same content already is left alone.
        seed: of the negatives; each user's draw depends on (seed, list kind, user) only.
        candidates: items per list, the positive included.

    Raises:
        DataError: unreadable source, too few items for the negatives, or `out` holds something else.
    """
    if candidates < 2:
        raise DataError(f"candidates must be at least 2 (something to rank), got {candidates}")
    interactions, items = movielens.read(source)
    interactions = interactions.sorted()
    offsets = user_offsets(interactions.user)
    lines, splits = {}, {}
    for code, protocol in enumerate(PROTOCOLS):
        parts = splits[protocol] = split(protocol, offsets, interactions.timestamp)
        lines[protocol] = _candidate_lines(interactions, offsets, len(items), parts, [seed, code], candidates)
    manifest = _manifest(interactions, items, offsets, splits, lines) | {
        "seed": seed,
        "candidates": candidates,
    }
    if out.exists() and any(out.iterdir()):
        _require_same(out, manifest)
        print(f"{out}: already prepared with the same content")
        return
    with replacing_folder(out) as folder:
        interactions.write(folder / "interactions.parquet")
        items.write(folder / "items.parquet")
        (folder / "candidates").mkdir()
        for protocol in PROTOCOLS:
            (folder / candidate_file(protocol)).write_text(lines[protocol], encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / "card.md").write_text(_card(manifest), encoding="utf-8")
    print(f"{out}: {manifest['interactions']} interactions, {manifest['users']} users, {manifest['items']} items")


def candidate_file(protocol: str) -> str:
    """Path of a protocol's frozen candidates inside the folder."""
    return f"candidates/{protocol}.jsonl"


def user_offsets(user: Array) -> Array:
    """int64 [users + 1]: user u's rows are offsets[u]:offsets[u + 1] of the sorted interactions."""
    return np.concatenate([[0], np.cumsum(np.bincount(user))])


def _candidate_lines(
    interactions: Interactions, offsets: Array, items: int, parts: Split, seed: list[int], candidates: int
) -> str:
    """One JSON object a line: all validation lists by user, then all test lists."""
    lines = []
    for code, held_out in enumerate(HELD_OUT):
        for user, position in enumerate(parts.position(held_out).tolist()):
            if position == NONE:
                continue
            known = interactions.item[offsets[user] : offsets[user + 1]]
            # One generator per user: adding a user or reordering them changes no other user's list. The whole
            # history is kept out, the future included: an item that the user did choose later is no negative.
            rng = np.random.default_rng([*seed, code, user])
            chosen = np.append(sample_outside(rng, known, items, candidates - 1), known[position])
            chosen.sort()  # by id, so that the positive has no telling place
            record = {
                "split": held_out,
                "user": user,
                "position": position,
                "items": chosen.tolist(),
                "labels": (chosen == known[position]).astype(int).tolist(),
            }
            lines.append(json.dumps(record, separators=(",", ":")))
    return "".join(line + "\n" for line in lines)


def _manifest(
    interactions: Interactions,
    items: Items,
    offsets: Array,
    splits: dict[str, Split],
    lines: dict[str, str],
) -> dict[str, Any]:
    protocols = {}
    for protocol, parts in splits.items():
        protocols[protocol] = {
            "sha256": hashlib.sha256(lines[protocol].encode()).hexdigest(),
            "train_interactions": int(parts.train_end.sum()),
            "lists": {name: int(np.sum(parts.position(name) != NONE)) for name in HELD_OUT},
            "left_out_without_history": parts.without_history,
            "positives_tied_in_time_with_the_interaction_before": {
                name: _ties(interactions.timestamp, offsets, parts.position(name)) for name in HELD_OUT
            },
        }
    protocols["global_time"]["cuts"] = list(time_cuts(interactions.timestamp))
    return {
        "format": FORMAT,
        "users": len(offsets) - 1,
        "items": len(items),
        "interactions": len(interactions.user),
        "interactions_sha256": interactions.sha256(),
        "items_sha256": items.sha256(),
        "protocols": protocols,
    }


def _ties(timestamp: Array, offsets: Array, position: Array) -> int:
    row = (offsets[:-1] + position)[position != NONE]
    return int(np.sum(timestamp[row] == timestamp[row - 1]))


def _require_same(out: Path, manifest: dict[str, Any]) -> None:
    path = out / "manifest.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = {}
    differing = sorted(key for key in set(old) | set(manifest) if old.get(key) != manifest.get(key))
    for protocol in PROTOCOLS:
        file = out / candidate_file(protocol)
        if not file.is_file() or sha256(file) != manifest["protocols"][protocol]["sha256"]:
            differing.append(candidate_file(protocol))
    if differing:
        raise DataError(
            f"{out} must be new, empty, or prepared from the same source with the same settings, but it "
            f"differs in {', '.join(differing[:6])}; give another --out or remove the folder"
        )


def _card(manifest: dict[str, Any]) -> str:
    """What the folder holds and how it was made, for a human."""
    rows = []
    for protocol, part in manifest["protocols"].items():
        for name in HELD_OUT:
            rows.append(
                f"| {protocol} | {name} | {part['lists'][name]} | {part['left_out_without_history'][name]} | "
                f"{part['positives_tied_in_time_with_the_interaction_before'][name]} |"
            )
    return "\n".join(
        [
            "# Prepared data",
            "",
            f"{manifest['interactions']} interactions of {manifest['users']} users with {manifest['items']} "
            f"items; seed {manifest['seed']}.",
            "",
            f"Each list has one positive and {manifest['candidates'] - 1} negatives, drawn uniformly from "
            f"the items the user never interacted with, sorted by id. History = everything of the user "
            f"before the positive. Ties in time keep the source's order.",
            "",
            "| protocol | part | lists | left out: no history | positive tied in time with the one before |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
