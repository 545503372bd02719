"""Memory depends on the chunk, not on the file; `order` continues across files; long reads show progress."""

import subprocess
import sys

import pytest

from r2rank_jax.data.sources.rows import reading
from r2rank_jax.data.sources.source import open_source
from r2rank_jax.files import progress
from tests.support.sources.tables import interactions, rows, write

PROBE = """
import re, sys
from pathlib import Path
from r2rank_jax.data.sources.source import open_source
rows = sum(frame.height for frame in open_source(Path(sys.argv[1])).interactions())
print(rows, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
HEADER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def peak_mib(folder, thousands, suffix):
    """Read 1,000 * `thousands` rows in a separate process."""
    block = b"".join(b"user-%07d\titem-%07d\t4\t881250949\n" % (k, k % 997) for k in range(1000))
    name = f"x.inter{suffix}"
    if suffix:
        name, header = "interactions.csv.gz", b"user,item,rating,timestamp\n"
        write(folder / name, header + block.replace(b"\t", b",") * thousands)
    else:
        write(folder / name, HEADER + block * thousands)
    done = subprocess.run([sys.executable, "-c", PROBE, str(folder)], capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 1000 * thousands
    return peak


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    small, large = peak_mib(tmp_path / "small", 800, suffix), peak_mib(tmp_path / "large", 4000, suffix)
    # The larger file has 120 MB more, and its table would need even more; half of it is a margin for the allocator.
    assert large < small + 60, (small, large)


def test_order_continues_across_chunks_batches_and_files(folder, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 128)
    for part, start in (("train", 0), ("valid", 500), ("test", 700)):
        end = {"train": 500, "valid": 700, "test": 750}[part]
        lines = b"".join(b"u\ti%d\t1\t%d\n" % (k, k) for k in range(start, end))
        write(folder / f"x.{part}.inter", HEADER + lines)
    table = interactions(open_source(folder))  # checks the order
    assert table["timestamp"].to_list() == list(range(750))
    assert table["item"].to_list() == [f"i{k}" for k in range(750)]


def test_batches_have_at_most_500_000_rows(folder):
    write(folder / "x.inter", b"user_id:token\titem_id:token\n" + b"a\tb\n" * 1_100_000)
    heights = [frame.height for frame in open_source(folder).interactions()]
    assert sum(heights) == 1_100_000 and max(heights) <= 500_000 and len(heights) >= 3


def test_a_chunk_does_not_split_a_quoted_record(folder, monkeypatch):
    log = "user,note,item\n" + "".join(f'u{k},"line one {k}\nline ""two""\n\n",i{k}\n' for k in range(200))
    write(folder / "interactions.csv", log)
    for size in (64, 100, 333):
        monkeypatch.setattr(reading, "CHUNK_BYTES", size)
        assert [row[:2] for row in rows(open_source(folder))] == [(f"u{k}", f"i{k}") for k in range(200)]


def test_long_reads_show_progress_on_stderr_and_short_reads_nothing(folder, monkeypatch, capfd):
    write(folder / "x.inter", HEADER + b"u\ti\t1\t1\n" * 1000)
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1024)
    source = open_source(folder)
    capfd.readouterr()
    rows(source)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    rows(source)
    output = capfd.readouterr()
    assert output.out == "" and output.err.count("rows/s") >= 5
    assert "x.inter  100.0%  1,001 rows" in output.err.splitlines()[-1]
