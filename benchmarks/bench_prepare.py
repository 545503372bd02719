"""Benchmark the preparation of synthetic interactions: time, peak memory of all processes, and resumption after kills.

    python benchmarks/bench_prepare.py                            # 2.5 and 10 million interactions
    python benchmarks/bench_prepare.py --rows 10000000 --kills 10 # also: SIGKILL at ten random times, then compare

Writes RecBole's atomic files (16 interactions per user on average, a catalog of 100,000 items with a long tail, some
ties and duplicates), prepares them with `r2rank data prepare` in a separate process, and prints a table, then one JSON
line. Memory is the largest sum of the resident sets of the command and its workers, sampled ten times per second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ITEMS = 100_000
PER_USER = 16
PAGE = os.sysconf("SC_PAGE_SIZE")


def write_source(folder: Path, rows: int, seed: int = 0) -> None:
    """Write RecBole's two files, a million rows at a time."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    items = np.arange(ITEMS)
    weight = 1.0 / (items + 20.0)
    cumulative = np.cumsum(weight / weight.sum())
    with (folder / "big.inter").open("wb") as file:
        file.write(b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        for start in range(0, rows, 1_000_000):
            n = min(1_000_000, rows - start)
            users = (rng.random(n) ** 1.5 * (rows // PER_USER)).astype(np.int64)  # some are active, most are not
            frame = pl.DataFrame(
                {
                    "user": users,
                    "item": np.searchsorted(cumulative, rng.random(n)).clip(max=ITEMS - 1),
                    "rating": rng.integers(1, 6, n),
                    "timestamp": 1_300_000_000 + rng.integers(0, 40_000_000, n) * 10,
                }
            ).with_columns(user=pl.format("U{}", pl.col("user")), item=pl.format("B{}", pl.col("item")))
            frame.write_csv(file, separator="\t", include_header=False)
    titles = pl.DataFrame({"item": items}).select(
        pl.format("B{}", "item"),
        pl.format("A product of some name, number {}", "item").alias("title"),
        pl.format("{}", 1980 + pl.col("item") % 40).alias("year"),
        pl.lit("Tools Home").alias("genres"),
    )
    with (folder / "big.item").open("wb") as file:
        file.write(b"item_id:token\ttitle:token_seq\trelease_year:token\tclass:token_seq\n")
        titles.write_csv(file, separator="\t", include_header=False)


def command(source: Path, out: Path, workers: int, flags: list[str]) -> list[str]:
    """Return the command line of a preparation."""
    parts = ["data", "prepare", "--source", str(source), "--out", str(out), "--workers", str(workers), *flags]
    return [sys.executable, "-m", "r2rank_jax.cli", *parts]


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run a command to its end.

    Returns:
        Seconds, and the largest sum of resident sets in GiB.
    """
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(arguments, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return time.monotonic() - start, peak / 2**30


def resident_bytes(session: int) -> int:
    """Sum the resident bytes of all processes of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                total += int((folder / "statm").read_text().split()[1]) * PAGE
        except (OSError, ValueError):
            continue  # the process has ended
    return total


def kill_and_resume(arguments: list[str], out: Path, kills: int, seals: int) -> int:
    """Kill the command at random times, then let it finish.

    Args:
        arguments: the command.
        out: the folder that it prepares.
        kills: number of kills: one during reading, the others shortly after a random number of steps is sealed.
        seals: number of steps.

    Returns:
        Number of kills that hit a running command.
    """
    chance, met = random.Random(0), 0
    work = out.parent / f".{out.name}.preparing"
    for wanted in (0, *sorted(chance.sample(range(1, seals), kills - 1))):
        process = subprocess.Popen(arguments, start_new_session=True)
        while process.poll() is None and sum("seal.json" in files for _, _, files in os.walk(work)) < wanted:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.5, 1.5))
        os.kill(process.pid, signal.SIGKILL)  # only the command: its workers must end by themselves
        met += process.wait() == -signal.SIGKILL
    subprocess.run(arguments, check=True)
    return met


def digest(folder: Path) -> str:
    """Hash of every file's name and bytes."""
    files_hash = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files_hash.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return files_hash.hexdigest()


def main() -> None:
    """Print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_500_000, 10_000_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--kills", type=int, default=0, help="number of SIGKILLs in a second preparation, whose bytes are compared"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the files, which are deleted at the end; default: temporary"
    )
    options, flags = parser.parse_known_args()
    results = []
    print(f"{'rows':>12} {'seconds':>9} {'rows/s':>10} {'peak GiB':>9} {'kills':>6}  same bytes")
    for rows in options.rows:
        root = Path(tempfile.mkdtemp(prefix="prepare-", dir=options.folder))
        try:
            write_source(root / "raw", rows)
            seconds, gib = measure(command(root / "raw", root / "out", options.workers, flags))
            kills, same = 0, None
            if options.kills:
                again = root / "again"
                manifest = json.loads((root / "out/manifest.json").read_text())
                seals = 4 + manifest["buckets"] * (2 + len(manifest["protocols"]))
                arguments = command(root / "raw", again, options.workers, flags)
                kills = kill_and_resume(arguments, again, options.kills, seals)
                same = digest(root / "out") == digest(again)
        finally:
            shutil.rmtree(root)
        print(f"{rows:12,} {seconds:9.1f} {rows / seconds:10,.0f} {gib:9.2f} {kills:6}  {same}", flush=True)
        results.append({"rows": rows, "seconds": seconds, "peak_gib": gib, "kills": kills, "same_bytes": same})
    print(json.dumps({"workers": options.workers, "flags": flags, "results": results}))


if __name__ == "__main__":
    main()
