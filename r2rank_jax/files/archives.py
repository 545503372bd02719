"""Unpacking archives from strangers: every member is judged before the first is written."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from r2rank_jax.errors import DataError

TOTAL_BYTES = 1 << 35  # of everything unpacked; MovieLens 25M has 1.2 GB
RATIO = 100  # unpacked to packed; texts reach 10
MEMBERS = 10_000
_BLOCK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size: int  # as the archive says
    kind: str  # "file", "folder", or what must not be there: "link", "device", ...
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a .zip or .tar.gz; a single folder around everything is left out.

    Args:
        archive: the file.
        folder: existing, empty folder.

    Returns:
        The files written.

    Raises:
        DataError: no readable archive; a name that leaves the folder, is absolute or comes twice; a link, a device or
            something encrypted; or more data than an honest archive of that size has.
    """
    try:
        with _members(archive) as members:
            files = _judged(archive, members)
            top = _common_folder([name for name, _ in files])
            return [_write(archive, member, folder / name.relative_to(top)) for name, member in files]
    except _DAMAGED as error:
        raise DataError(f"{archive.name} must be a whole archive, and is not ({error}); fetch it again") from error


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield (_zip_member(packed, info) for info in packed.infolist())
    else:
        with tarfile.open(archive) as packed:
            yield (_tar_member(packed, info) for info in packed)


def _zip_member(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "link" if mode == stat.S_IFLNK else "device"
    elif info.flag_bits & 1:
        kind = "encrypted file"
    # orig_filename: zipfile cuts names at a NUL.
    return Member(info.orig_filename, info.file_size, kind, lambda: packed.open(info))


def _tar_member(packed: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = "file" if info.isreg() else "folder" if info.isdir() else "device"
    if info.issym() or info.islnk():
        kind = "link"
    return Member(info.name, info.size, kind, lambda: packed.extractfile(info))


def _judged(archive: Path, members: Iterator[Member]) -> list[tuple[PurePosixPath, Member]]:
    """The files, if all members are as they should be; stops at the first that is not."""
    bound = min(TOTAL_BYTES, RATIO * archive.stat().st_size)
    files: dict[PurePosixPath, tuple[PurePosixPath, Member]] = {}
    total = 0
    for count, member in enumerate(members, start=1):
        total += member.size
        if total > bound or count > MEMBERS:
            raise DataError(
                f"{archive.name} must hold at most {bound:,} bytes in {MEMBERS:,} members, as an archive of its size "
                f"can, got more; do not use it"
            )
        # Two names that differ in case alone are one file on some machines.
        key = PurePosixPath(member.name.casefold())
        problem = _problem(member) or ("a name that comes twice" if key in files else None)
        if problem:
            raise DataError(
                f"{archive.name} must be an archive of plain files, but {member.name[:120]!r} is {problem}; do not use "
                f"it"
            )
        if member.kind == "file":
            files[key] = (PurePosixPath(member.name), member)
    for key in files:
        if any(parent in files for parent in key.parents):
            raise DataError(f"{archive.name} must not use {str(key)[:120]!r} as file and folder; do not use it")
    return list(files.values())


def _problem(member: Member) -> str | None:
    path = PurePosixPath(member.name)
    if member.kind not in ("file", "folder"):
        return f"a {member.kind}"
    if ".." in path.parts:
        return "a name that leaves the folder"
    if path.is_absolute() or member.name[1:2] == ":" or "\\" in member.name or not member.name.isprintable():
        return "an absolute or odd name"
    return None if path.parts else "a file without a name"


def _common_folder(names: list[PurePosixPath]) -> PurePosixPath:
    tops = {name.parts[0] for name in names}
    inside = all(len(name.parts) > 1 for name in names)
    return PurePosixPath(tops.pop()) if inside and len(tops) == 1 else PurePosixPath()


def _write(archive: Path, member: Member, path: Path) -> Path:
    """Copy one file; no more than its announced size is ever written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise DataError(f"{archive.name} must hold {member.name!r} as a file, and does not; do not use it")
    left = member.size
    with source, path.open("xb") as out:
        while left and (block := source.read(min(_BLOCK, left))):
            left -= len(block)
            out.write(block)
    if left:
        raise DataError(
            f"{archive.name} must hold {member.size:,} bytes of {member.name!r} as it says, got "
            f"{member.size - left:,}; do not use it"
        )
    return path
