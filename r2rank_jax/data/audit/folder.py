"""`r2rank data audit`: run every check on a prepared folder, bucket by bucket, in the memory of one bucket."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.audit import tables, totals
from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.lists import check_lists, check_times_of_lists, read_lists
from r2rank_jax.data.audit.reading import FILES, ITEMS, read_bucket, read_table
from r2rank_jax.data.audit.tables import AGAIN, Bucket
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.folder import (
    candidate_file,
    hash_of_files,
    interactions_file,
    manifest_of,
    users_file,
)
from r2rank_jax.data.prepared.missing import count_missing, missing_texts
from r2rank_jax.data.prepared.settings import Array, Settings
from r2rank_jax.data.prepared.splits import HELD_OUT, NONE, Split, split
from r2rank_jax.data.prepared.tables import hash_of_interactions, hash_of_items
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.errors import DataError
from r2rank_jax.files.progress import Progress

MANIFEST = Check("manifest", "the manifest has every field that preparation writes", AGAIN)
SKIPPED = Check("not_checked", "every list can be checked", "fix the other faults of the bucket, and audit again")
TRACES = Check(
    "traces", "traces are complete and belong to training positions only", "run `r2rank data synthesize` again"
)

_FIELDS = (
    "settings", "source", "domain", "time_unit", "users", "items", "interactions", "buckets", "interactions_sha256",
    "items_sha256", "steps", "protocols", "interactions_tied_in_time", "items_without_title",
    "items_without_interactions",
)  # fmt: skip


@dataclass
class _Totals:
    """Counts summed over the buckets."""

    per_item: Array  # int64 [items]
    missing: Array  # bool [texts, items], see `missing_texts`
    users: int = 0
    interactions: int = 0
    tied: int = 0
    below: list[int] = field(default_factory=lambda: [0, 0])  # number of interactions before each of the two cuts
    up_to: list[int] = field(default_factory=lambda: [0, 0])  # number of interactions before or at each cut
    protocols: dict[str, Counter[str]] = field(default_factory=dict)
    lacking: dict[str, Counter[str]] = field(default_factory=dict)  # protocol -> sums of `count_missing`


def audit(directory: Path) -> Findings:
    """Check a prepared folder.

    Args:
        directory: folder that `r2rank data prepare` wrote and that may have changed since.

    Returns:
        The findings; `faults` is 0 if the folder can be trusted.

    Raises:
        DataError: there is no manifest to check against.
    """
    manifest, findings = manifest_of(directory), Findings()
    settings = _settings(manifest, findings)
    items = read_table(directory, "items.parquet", ITEMS, findings)
    if settings is None or items is None:
        return findings
    counts = _Totals(
        np.zeros(items.height, np.int64),
        missing_texts(items),
        protocols={protocol: Counter() for protocol in manifest["protocols"]},
        lacking={protocol: Counter() for protocol in manifest["protocols"]},
    )
    with Progress("audit", manifest["interactions"], "interactions") as progress:
        for number in range(manifest["buckets"]):
            _audit_bucket(directory, number, manifest, settings, counts, findings)
            progress.update(counts.interactions)
    _check_hashes(directory, manifest, findings)
    tables.check_catalog(items, counts.per_item, findings)
    if settings.k_core > 1:
        tables.check_item_core(counts.per_item, settings.k_core, findings)
    for protocol, lacking in counts.lacking.items():
        totals.check_missing(protocol, lacking, findings)
    _check_manifest(manifest, items.height, int(tables.untitled(items).sum()), counts, findings)
    _check_traces(directory, manifest, findings)
    return findings


def _settings(manifest: dict[str, Any], findings: Findings) -> Settings | None:
    missing = [name for name in _FIELDS if name not in manifest]
    if missing:
        findings.add(MANIFEST, "manifest.json", f"lacks {', '.join(missing)}; nothing else can be checked")
        return None
    try:
        settings = Settings(**manifest["settings"])
    except (TypeError, DataError) as error:
        findings.add(MANIFEST, "manifest.json", f"settings: {error}; nothing else can be checked")
        return None
    if set(settings.protocols) != set(manifest["protocols"]):
        findings.add(
            MANIFEST,
            "manifest.json",
            f"the settings name the protocols {sorted(settings.protocols)}, but the manifest has "
            f"{sorted(manifest['protocols'])}",
        )
    return settings


def _audit_bucket(
    directory: Path, number: int, manifest: dict[str, Any], settings: Settings, counts: _Totals, findings: Findings
) -> None:
    bucket, source_ids = read_bucket(directory, number, counts.users, findings)
    tables.check_user_buckets(source_ids, users_file(number), number, manifest["buckets"], findings)
    if bucket is None:
        counts.users += len(source_ids)
        return
    catalog = len(counts.per_item)
    sound = tables.check_users(bucket, findings)
    sound &= tables.check_items(bucket, catalog, findings)
    tables.check_duplicates(bucket, findings)
    tables.check_ratings(bucket, findings)
    tables.check_orders(bucket, findings)
    tables.check_times(bucket, manifest["time_unit"], findings)
    if settings.k_core > 1:
        tables.check_user_core(bucket, settings.k_core, findings)
    counts.users += bucket.users
    counts.interactions += len(bucket.user)
    counts.tied += bucket.tied()
    counts.per_item += np.bincount(bucket.item[(bucket.item >= 0) & (bucket.item < catalog)], minlength=catalog)
    if not sound:
        findings.add(
            SKIPPED, bucket.file, "its rows are out of order or have unknown ids, so its lists were not checked"
        )
        return
    for protocol in manifest["protocols"]:
        _audit_lists(directory, number, protocol, bucket, manifest, settings, counts, findings)


def _audit_lists(
    directory: Path,
    number: int,
    protocol: str,
    bucket: Bucket,
    manifest: dict[str, Any],
    settings: Settings,
    counts: _Totals,
    findings: Findings,
) -> None:
    cuts = manifest["protocols"][protocol].get("cuts")
    if protocol == "global_time":
        if cuts is None:
            findings.add(MANIFEST, "manifest.json", "protocols.global_time lacks cuts")
            return
        for place, cut in enumerate(cuts):
            counts.below[place] += int(np.sum(bucket.timestamp < cut))
            counts.up_to[place] += int(np.sum(bucket.timestamp <= cut))
    parts = split(
        protocol,
        bucket.offsets,
        bucket.timestamp,
        settings.positive(bucket.rating),
        settings,
        cuts=cuts,
        first_user=bucket.first_user,
    )
    counts.protocols[protocol].update(_facts(bucket, parts))
    file = candidate_file(protocol, number)
    if not (directory / file).is_file():
        findings.add(FILES, file, "does not exist")
        return
    table = read_lists(file, (directory / file).read_bytes(), settings.candidates, findings)
    check_lists(table, bucket, len(counts.per_item), parts, settings, findings)
    inside = (table.items >= 0) & (table.items < len(counts.per_item))
    counts.lacking[protocol].update(count_missing(counts.missing, table.items[inside], table.labels[inside]))
    if protocol == "global_time":
        check_times_of_lists(table, bucket, cuts, findings)


def _facts(bucket: Bucket, parts: Split) -> Counter[str]:
    """One bucket's share of the numbers that the manifest gives for a protocol: "name" or "name part" -> number."""
    facts = Counter({"train_interactions": int(parts.train_end.sum())})
    for name in HELD_OUT:
        held = parts.position(name) != NONE
        row = (bucket.offsets[:-1] + parts.position(name))[held]
        facts[f"lists {name}"] = int(np.sum(held))
        facts[f"left_out_without_history {name}"] = parts.without_history[name]
        facts[f"positives_tied_in_time_with_the_interaction_before {name}"] = int(
            np.sum(bucket.timestamp[row] == bucket.timestamp[row - 1])
        )
    return facts


def _check_hashes(directory: Path, manifest: dict[str, Any], findings: Findings) -> None:
    buckets = range(manifest["buckets"])
    interactions = [directory / interactions_file(bucket) for bucket in buckets]
    if FILES not in findings.counts:  # otherwise a file is missing or unreadable, which is already a finding
        totals.check_hash(findings, "interactions", manifest["interactions_sha256"], hash_of_interactions(interactions))
        totals.check_hash(
            findings, "items.parquet", manifest["items_sha256"], hash_of_items(directory / "items.parquet")
        )
    for protocol, part in manifest["protocols"].items():
        files = [directory / candidate_file(protocol, bucket) for bucket in buckets]
        totals.check_hash(findings, f"candidates/{protocol}", part.get("sha256"), hash_of_files(files))
    expected = [interactions, [directory / users_file(bucket) for bucket in buckets]]
    expected += [[directory / candidate_file(p, bucket) for bucket in buckets] for p in manifest["protocols"]]
    for paths in expected:
        for path in sorted(set(paths[0].parent.glob(f"*{paths[0].suffix}")) - set(paths)):
            findings.add(
                FILES, str(path.relative_to(directory)), f"is not one of the manifest's {len(buckets)} buckets"
            )


def _check_manifest(manifest: dict[str, Any], items: int, untitled: int, counts: _Totals, findings: Findings) -> None:
    if FILES in findings.counts:
        return
    touched = int(np.sum(counts.per_item > 0))
    for name, number in (
        ("users", counts.users),
        ("items", items),
        ("interactions", counts.interactions),
        ("interactions_tied_in_time", counts.tied),
        ("items_without_title", untitled),
        ("items_without_interactions", items - touched),
    ):
        totals.check_count(findings, name, manifest[name], number)
    last = {"users": counts.users, "items": touched, "interactions": counts.interactions}
    totals.check_steps(manifest["steps"], last, findings)
    if SKIPPED in findings.counts:
        return
    for protocol, facts in counts.protocols.items():
        part = manifest["protocols"][protocol]
        for name, number in facts.items():
            key, _, held_out = name.partition(" ")
            expected = part.get(key, {}).get(held_out) if held_out else part.get(key)
            totals.check_count(findings, f"protocols.{protocol}.{name.replace(' ', '.')}", expected, number)
        for place, cut in enumerate(part.get("cuts", ())):
            totals.check_cut(cut, 8 + place, counts.below[place], counts.up_to[place], counts.interactions, findings)


def _check_traces(directory: Path, manifest: dict[str, Any], findings: Findings) -> None:
    """Check the folder's traces, if it has any, with `read_traces`."""
    path = directory / "traces.jsonl"
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
        protocol = header["split"]
    except (ValueError, KeyError, TypeError):
        findings.add(TRACES, f"{path.name}, line 1", "must be a JSON object that names the split")
        return
    try:
        _ = read_traces(path, load(directory, protocol), template=None).template  # an unknown one is refused
    except (DataError, ValueError) as error:
        findings.add(TRACES, path.name, str(error).removeprefix(f"{path}, ").removeprefix(f"{path}: "))
