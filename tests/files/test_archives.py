import io
import stat
import struct
import tarfile
import zipfile

import pytest

from r2rank_jax.errors import DataError
from r2rank_jax.files import archives
from r2rank_jax.files.archives import unpack


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    """members: (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tarred(path, members):
    """members: TarInfo or (name, content)."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_info(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_info(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def refused(archive, folder, message):
    folder.mkdir()
    with pytest.raises(DataError, match=message):
        unpack(archive, folder)
    assert list(folder.iterdir()) == [], "nothing is written before all members are checked"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_single_top_level_folder_is_stripped(tmp_path, pack):
    archive = pack(tmp_path / "x", [("ml-1m/ratings.dat", b"1::1\n"), ("ml-1m/README", b"terms"), ("ml-1m/a/b", b"")])
    (tmp_path / "out").mkdir()
    found = unpack(archive, tmp_path / "out")
    assert sorted(file.relative_to(tmp_path / "out").as_posix() for file in found) == ["README", "a/b", "ratings.dat"]
    assert (tmp_path / "out/ratings.dat").read_bytes() == b"1::1\n"


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "C:evil", "a\\..\\evil", "a\nb", "a\x1b[31m", ".."]
)
def test_names_outside_the_folder_are_refused(tmp_path, pack, name):
    archive = pack(tmp_path / "x", [("good", b"1"), (name, b"2")])
    refused(archive, tmp_path / "out", r"is a name that points outside the folder|is an absolute or unsafe name")
    assert not (tmp_path / "evil").exists()


def test_a_name_with_a_nul_is_checked_in_full(tmp_path):
    archive = zipped(tmp_path / "x", [("good.csv", b"1"), ("good.txt/evil", b"2")])
    archive.write_bytes(archive.read_bytes().replace(b"good.txt/evil", b"good.csv\0evil"))
    refused(archive, tmp_path / "out", r"'good\.csv\\x00evil' is an absolute or unsafe name")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("d/a", "D/A")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_names_are_refused(tmp_path, pack, names):
    refused(pack(tmp_path / "x", [(name, b"1") for name in names]), tmp_path / "out", "is a repeated name")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_name_used_as_file_and_folder_is_refused(tmp_path, pack):
    refused(pack(tmp_path / "x", [("a", b"1"), ("a/b", b"2")]), tmp_path / "out", "'a/b' as both file and folder")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, problem):
    archive = tarred(tmp_path / "x", [("good", b"1"), tar_info("bad", kind, "/etc/passwd")])
    refused(archive, tmp_path / "out", f"'bad' is {problem}")


@pytest.mark.parametrize(("mode", "problem"), [(stat.S_IFLNK | 0o777, "a link"), (stat.S_IFCHR | 0o666, "a device")])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode, problem):
    refused(zipped(tmp_path / "x", [(zip_info("bad", mode), b"/etc/passwd")]), tmp_path / "out", f"'bad' is {problem}")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_is_refused_by_its_ratio(tmp_path, pack):
    archive = pack(tmp_path / "x", [("zeros", bytes(20_000_000))])
    assert archive.stat().st_size < 100_000
    refused(archive, tmp_path / "out", "must hold at most .* the limit for an archive of its size, got more")


def test_a_bomb_is_refused_by_total_size_and_number_of_members(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "x", [(f"f{k}", bytes(range(256))) for k in range(50)], zipfile.ZIP_STORED)
    monkeypatch.setattr(archives, "MEMBERS", 49)
    refused(archive, tmp_path / "many", "49 members")
    monkeypatch.setattr(archives, "MEMBERS", 50)
    monkeypatch.setattr(archives, "TOTAL_BYTES", 50 * 256 - 1)
    refused(archive, tmp_path / "large", "12,799 bytes")
    monkeypatch.setattr(archives, "TOTAL_BYTES", 50 * 256)
    (tmp_path / "fits").mkdir()
    assert len(unpack(archive, tmp_path / "fits")) == 50


def test_a_zip_writes_no_more_than_its_declared_size(tmp_path):
    archive = zipped(tmp_path / "x", [("a", bytes(5000))], zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + offset
        data[place : place + 4] = struct.pack("<I", 10)
    archive.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"must be a complete archive, got: .*CRC"):
        unpack(archive, tmp_path / "out")
    assert all(file.stat().st_size <= 10 for file in (tmp_path / "out").iterdir())


def test_damaged_and_truncated_archives_are_refused(tmp_path):
    whole = zipped(tmp_path / "whole", [("a", b"content " * 100)]).read_bytes()
    packed = tarred(tmp_path / "tar", [("a", bytes(range(256)) * 40)]).read_bytes()
    spoilt = whole.replace(b"PK\x01\x02", b"PK\x09\x09")
    for name, data in (("cut", whole[:-30]), ("spoilt", spoilt), ("text", b"no archive"), ("tar-cut", packed[:-40])):
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}-out").mkdir()
        with pytest.raises(DataError, match=f"{name} must be a complete archive"):
            unpack(tmp_path / name, tmp_path / f"{name}-out")


def test_a_wrong_checksum_inside_a_zip_is_refused(tmp_path):
    archive = zipped(tmp_path / "x", [("a", b"content")], zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"content", b"CONTENT", 1))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"must be a complete archive, got: .*CRC"):
        unpack(archive, tmp_path / "out")
