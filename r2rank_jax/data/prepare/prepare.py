"""Prepare a source's files into one frozen folder, one bucket of users at a time.

Memory use is bounded by the size of one bucket.

    read          shards sorted by a hash of the user            (this file)
    deduplicate   the earliest of each (user, item)              (each bucket)
    catalog       all items, in the order of their ids           (catalog.py)
    k-core        users and items that have enough of each other (rounds over the buckets)
    interactions  dense ids; sorted by user, time, source order  (each bucket)
    candidates    frozen lists of each protocol                  (each bucket)
    folder        links to the written files, and the manifest   (this file)

Every step is sealed: a killed preparation resumes where it stopped and produces the same bytes. Candidates are drawn
only once, so that every system ranks the same lists.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepare.candidates import count_training_items, write_lists
from r2rank_jax.data.prepare.catalog import find_core, save_array, write_catalog, write_items_table
from r2rank_jax.data.prepare.partition import (
    checked_interactions,
    number_of_buckets,
    write_items,
    write_shards,
)
from r2rank_jax.data.prepare.retrieved import read_run
from r2rank_jax.data.prepare.times import time_cuts
from r2rank_jax.data.prepare.user_buckets import deduplicate, step_folder, write_interactions
from r2rank_jax.data.prepare.workers import OverBuckets, workers_for
from r2rank_jax.data.prepared.folder import (
    FORMAT,
    candidate_file,
    hash_of_files,
    interactions_file,
    manifest_of,
    users_file,
    verify,
)
from r2rank_jax.data.prepared.missing import differences
from r2rank_jax.data.prepared.settings import Settings
from r2rank_jax.data.prepared.tables import hash_of_interactions
from r2rank_jax.data.sources.source import OnError, Quarantine, Source, fatal, open_source
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file, replacing_folder
from r2rank_jax.files.seals import Facts, sealed, work_folder
from r2rank_jax.files.wheels import sha256

QUARANTINE = "quarantine.jsonl"


def prepare(
    source: Path,
    out: Path,
    *,
    workers: int = 1,
    ray: bool = False,
    describe: Callable[[Path], None] | None = None,
    **settings: Any,
) -> None:
    """Write the folder that `dataset.load` reads.

    Args:
        source: folder or file that `sources.open_source` recognizes.
        out: new folder; a folder that already holds the same content is left unchanged.
        workers: number of processes that handle buckets in parallel.
        ray: use Ray Data for the buckets instead, on the cluster that `ray.init` finds.
        describe: called with the finished folder before it is renamed to `out`; `write_card` adds the data card.
        settings: fields of `Settings`, documented there.

    Raises:
        DataError: an invalid setting, an unreadable source, too few items for the negatives, or other content in `out`.
    """
    chosen = Settings(**settings)
    malformed = _Malformed()
    opened = open_source(
        source,
        chosen.kind,
        chosen.columns or None,
        malformed,
        time_unit=chosen.time_unit,
        quote=chosen.quote,
    )
    identity = _identity(source, opened, chosen)
    if out.exists() and any(out.iterdir()):
        _require_same(out, identity)
        print(f"{out}: already prepared with the same content")
        return
    with work_folder(out, identity) as work:
        read = sealed(work / "read", partial(_read, opened, chosen, malformed))
        if chosen.run is not None:
            sealed(work / "run", partial(_read_run, Path(chosen.run)))
        buckets = number_of_buckets(read["interactions"], chosen.bucket_rows)
        with workers_for(buckets, read["interactions"], workers, ray) as over_buckets:
            manifest = identity | _prepare_buckets(work, opened, chosen, read, buckets, over_buckets)
        with replacing_folder(out) as folder:
            _assemble(work, folder, manifest)
            if describe is not None:
                describe(folder)
    malformed_rows = sum(manifest["quarantined"].values())
    note = f"; {malformed_rows} malformed rows set aside in {QUARANTINE}" if malformed_rows else ""
    print(f"{out}: {manifest['interactions']} interactions, {manifest['users']} users, {manifest['items']} items{note}")


def _identity(source: Path, opened: Source, settings: Settings) -> Facts:
    """Return everything that the content depends on."""
    root = source if source.is_dir() else source.parent
    if settings.run is not None and not Path(settings.run).is_file():
        raise DataError(
            f"--run must be a retriever's run file, got {settings.run}, which does not exist; correct --run"
        )
    return {
        "format": FORMAT,
        "settings": settings.to_json(),
        "source_files": {str(path.relative_to(root)): sha256(path) for path in opened.files},
        "run_sha256": None if settings.run is None else sha256(Path(settings.run)),
    }


def _require_same(out: Path, identity: Facts) -> None:
    try:
        manifest = manifest_of(out)
    except DataError:
        manifest = {}
    differing = [name for name in identity if identity[name] != manifest.get(name)]
    if "settings" in differing:
        before = manifest.get("settings", {})
        settings = identity["settings"]
        differing += [name for name in settings if settings[name] != before.get(name)]
        differing.remove("settings")
    differing = differing or verify(out, manifest)
    if differing:
        raise DataError(
            f"{out} must be new, empty, or prepared from the same source with the same settings, but it "
            f"differs in {', '.join(differing[:6])}; give another --out or remove the folder"
        )


class _Malformed:
    """Handler of malformed rows whose action is set later: the quarantine's folder exists only after opening."""

    def __init__(self) -> None:
        self.action: OnError = fatal

    def __call__(self, file: Path, line: int, reason: str, text: str) -> None:
        self.action(file, line, reason, text)


def _none_read(opened: Source, quarantined: Counter[str]) -> DataError:
    aside = sum(quarantined.values())
    reason = f"none: {aside} malformed rows were set aside; see the first without --on-error" if aside else "none"
    return DataError(f"{opened.files[0]}: expected interactions, got {reason}; fetch or write the file again")


def _read(opened: Source, settings: Settings, malformed: _Malformed, folder: Path) -> Facts:
    """Read the source's files in a single pass."""
    quarantine = Quarantine(folder / QUARANTINE)
    if settings.on_error == "quarantine":
        malformed.action = quarantine
    items = write_items(opened.items(), folder / "items.parquet")
    rows = write_shards(checked_interactions(opened.interactions()), folder / "interactions")
    if not rows:
        raise _none_read(opened, quarantine.counts)
    return {
        "items": items,
        "interactions": rows,
        "quarantined": dict(quarantine.counts),
        "cleaned": dict(opened.counts),
    }


def _read_run(path: Path, folder: Path) -> Facts:
    rows = write_shards(read_run(path), folder / "rows")
    if not rows:
        raise DataError(f"{path}: expected a retriever's ranked items, got none; correct --run")
    return {"rows": rows}


def _prepare_buckets(
    work: Path, source: Source, settings: Settings, read: Facts, buckets: int, over_buckets: OverBuckets
) -> Facts:
    """Run all steps after reading.

    Returns:
        The manifest.
    """
    unique = over_buckets("duplicates", partial(deduplicate, work, buckets))
    catalog = sealed(work / "catalog", partial(write_catalog, work, buckets))
    core = sealed(work / "core", partial(find_core, work, settings.k_core, unique, over_buckets))
    users = core["users_of_buckets"]
    first_users = np.append(0, np.cumsum(users)).tolist()
    written = over_buckets(
        "interactions",
        _WithFirstUser(partial(write_interactions, work, settings.k_core, "core/alive.npy"), first_users),
    )
    _require_positives(settings, written)
    table = sealed(work / "table", partial(write_items_table, work))
    cuts = time_cuts(work, written, over_buckets) if "global_time" in settings.protocols else None
    protocols = {
        protocol: _write_protocol(work, protocol, settings, cuts, table["items"], first_users, over_buckets)
        for protocol in settings.protocols
    }
    rows, duplicates = (sum(facts[name] for facts in unique) for name in ("interactions", "duplicates"))
    malformed = sum(read["quarantined"].values())
    all_users, left = sum(facts["users"] for facts in unique), sum(facts["interactions"] for facts in written)
    return {
        "source": source.name,
        "domain": source.domain,
        "time_unit": source.time_unit,
        "notes": list(source.notes),
        "users": sum(users),
        "interactions": left,
        "buckets": buckets,
        "interactions_tied_in_time": sum(facts["tied_in_time"] for facts in written),
        **table,
        "interactions_sha256": hash_of_interactions(
            [step_folder(work, "interactions", bucket) / "interactions.parquet" for bucket in range(buckets)]
        ),
        "cleaned": read["cleaned"],
        "quarantined": read["quarantined"],
        "steps": [
            _step("read", all_users, catalog["touched"], read["interactions"], {"malformed": malformed}),
            _step("deduplicate", all_users, catalog["touched"], rows, {"duplicate": duplicates}),
            _step("k_core", sum(users), core["touched"], left, {"rare user or item": rows - left}),
        ],
        "protocols": protocols,
    }


def _require_positives(settings: Settings, written: list[Facts]) -> None:
    ratings = [facts["highest_rating"] for facts in written if facts["highest_rating"] is not None]
    if settings.positive_rating is not None and max(ratings, default=-np.inf) < settings.positive_rating:
        raise DataError(
            f"--positive-rating must leave some positives, got {settings.positive_rating} where the highest rating is "
            f"{max(ratings) if ratings else 'none: the source has no ratings'}; lower it or omit it"
        )


def _step(step: str, users: int, items: int, interactions: int, dropped: dict[str, int]) -> Facts:
    return {"step": step, "users": users, "items": items, "interactions": interactions, "dropped": dropped}


class _WithFirstUser:
    """Turns a function of (first user, bucket) into a function of the bucket. A class, so that it can be pickled."""

    def __init__(self, work: Any, first_users: list[int]):
        self._work, self._first_users = work, first_users

    def __call__(self, bucket: int) -> Any:
        return self._work(self._first_users[bucket], bucket)


def _write_protocol(
    work: Path,
    protocol: str,
    settings: Settings,
    cuts: tuple[int, int] | None,
    items: int,
    first_users: list[int],
    over_buckets: OverBuckets,
) -> Facts:
    if settings.negatives == "popularity":
        count = partial(count_training_items, work, protocol, settings, cuts, items)
        counts = over_buckets(f"popularity, {protocol}", _WithFirstUser(count, first_users))
        with replacing_file(work / f"popularity-{protocol}.npy") as temporary:
            save_array(temporary, np.sum(counts, axis=0))
    write = partial(write_lists, work, protocol, settings, cuts, items)
    written = over_buckets(f"lists, {protocol}", _WithFirstUser(write, first_users))
    files = [step_folder(work, f"candidates/{protocol}", bucket) / "lists.jsonl" for bucket in range(len(written))]
    facts = {"sha256": hash_of_files(files)} | {name: _total([part[name] for part in written]) for name in written[0]}
    _warn_of_missing(protocol, facts.pop("lacking"))
    return facts | ({"cuts": list(cuts)} if cuts is not None and protocol == "global_time" else {})


def _warn_of_missing(protocol: str, lacking: dict[str, int]) -> None:
    for description in differences(lacking).values():
        print(
            f"WARNING: in the lists of {protocol}, {description}: a system can separate them by that alone. Check that "
            f"the item table uses the ids of the interactions and describes all items; see `r2rank data audit`",
            file=sys.stderr,
        )


def _total(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {
            name: sum(part.get(name, 0) for part in parts)
            for name in dict.fromkeys(key for part in parts for key in part)
        }
    return sum(parts)


def _assemble(work: Path, folder: Path, manifest: Facts) -> None:
    files = {"items.parquet": work / "table/items.parquet"}
    if (work / "read" / QUARANTINE).is_file():
        files[QUARANTINE] = work / "read" / QUARANTINE
    for bucket in range(manifest["buckets"]):
        written = step_folder(work, "interactions", bucket)
        files[interactions_file(bucket)] = written / "interactions.parquet"
        files[users_file(bucket)] = written / "users.parquet"
        for protocol in manifest["protocols"]:
            lists = step_folder(work, f"candidates/{protocol}", bucket) / "lists.jsonl"
            files[candidate_file(protocol, bucket)] = lists
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, folder / name)
        except OSError:  # the file system has no hard links
            shutil.copyfile(path, folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
