"""Unpack untrusted archives. All members are checked before the first one is written."""

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

TOTAL_BYTES = 1 << 35  # limit of the unpacked size; MovieLens 25M has 1.2 GB
RATIO = 100  # limit of unpacked to packed size; text reaches 10
MEMBERS = 10_000
_BLOCK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size: int  # as declared by the archive
    kind: str  # "file", "folder", or a kind that is refused: "link", "device", ...
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a .zip or .tar.gz. A single top-level folder is stripped.

    Args:
        archive: path of the archive.
        folder: existing, empty folder.

    Returns:
        Paths of the written files.

    Raises:
        DataError: the archive cannot be read; a name points outside the folder, is absolute or is repeated; a member is
            a link, a device or encrypted; or the archive unpacks to more data than is plausible for its size.
    """
    try:
        with _members(archive) as members:
            files = _checked_files(archive, members)
            top = _common_folder([name for name, _ in files])
            return [_write(archive, member, folder / name.relative_to(top)) for name, member in files]
    except _DAMAGED as error:
        raise DataError(f"{archive.name} must be a complete archive, got: {error}; fetch it again") from error


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
    # orig_filename, because zipfile truncates names at a NUL.
    return Member(info.orig_filename, info.file_size, kind, lambda: packed.open(info))


def _tar_member(packed: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = "file" if info.isreg() else "folder" if info.isdir() else "device"
    if info.issym() or info.islnk():
        kind = "link"
    return Member(info.name, info.size, kind, lambda: packed.extractfile(info))


def _checked_files(archive: Path, members: Iterator[Member]) -> list[tuple[PurePosixPath, Member]]:
    """Return the files if all members are valid; raise at the first member that is not."""
    bound = min(TOTAL_BYTES, RATIO * archive.stat().st_size)
    files: dict[PurePosixPath, tuple[PurePosixPath, Member]] = {}
    total = 0
    for count, member in enumerate(members, start=1):
        total += member.size
        if total > bound or count > MEMBERS:
            raise DataError(
                f"{archive.name} must hold at most {bound:,} bytes in {MEMBERS:,} members, the limit for an archive "
                f"of its size, got more; do not use it"
            )
        # Some file systems treat names that differ only in case as the same file.
        key = PurePosixPath(member.name.casefold())
        problem = _problem(member) or ("a repeated name" if key in files else None)
        if problem:
            raise DataError(
                f"{archive.name} must be an archive of plain files, but {member.name[:120]!r} is {problem}; do not use "
                f"it"
            )
        if member.kind == "file":
            files[key] = (PurePosixPath(member.name), member)
    for key in files:
        if any(parent in files for parent in key.parents):
            raise DataError(f"{archive.name} must not use {str(key)[:120]!r} as both file and folder; do not use it")
    return list(files.values())


def _problem(member: Member) -> str | None:
    path = PurePosixPath(member.name)
    if member.kind not in ("file", "folder"):
        return f"a {member.kind}"
    if ".." in path.parts:
        return "a name that points outside the folder"
    if path.is_absolute() or member.name[1:2] == ":" or "\\" in member.name or not member.name.isprintable():
        return "an absolute or unsafe name"
    return None if path.parts else "a file without a name"


def _common_folder(names: list[PurePosixPath]) -> PurePosixPath:
    tops = {name.parts[0] for name in names}
    inside = all(len(name.parts) > 1 for name in names)
    return PurePosixPath(tops.pop()) if inside and len(tops) == 1 else PurePosixPath()


def _write(archive: Path, member: Member, path: Path) -> Path:
    """Copy one file. Never writes more than its declared size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise DataError(f"{archive.name} must hold {member.name!r} as a file, got something else; do not use it")
    left = member.size
    with source, path.open("xb") as out:
        while left and (block := source.read(min(_BLOCK, left))):
            left -= len(block)
            out.write(block)
    if left:
        raise DataError(
            f"{archive.name} must hold the {member.size:,} bytes that it declares for {member.name!r}, got "
            f"{member.size - left:,}; do not use it"
        )
    return path
