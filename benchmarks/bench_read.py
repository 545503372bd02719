"""Benchmark speed and memory of the source readers on a synthetic file in four formats.

    python benchmarks/bench_read.py [--rows 2000000]            about 1 minute on 2 cores

Each format is read in a separate process, so that peak memory is measured separately. "by line" has a malformed row in
every chunk, so that Python splits all of its lines. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import platform
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r2rank_jax.data.sources.source import Quarantine, open_source

PART = 100_000


def write_rows(path: Path, rows: int, head: str, line: Callable[[int, int, int, int], str], every: int = 0) -> None:
    """Write rows of a million users and 100,000 items, with one malformed row in every `every` rows."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="\n") as file:
        file.write(head)
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            columns = (rng.integers(0, high, count).tolist() for high in (10**6, 10**5, 5))
            lines = [line(u, i, r + 1, start + k) for k, (u, i, r) in enumerate(zip(*columns, strict=True))]
            if every:
                lines[::every] = ["malformed\n"] * len(lines[::every])
            file.write("".join(lines))


def atomic(user: int, item: int, rating: int, time: int) -> str:
    """Format a line of RecBole's `.inter`."""
    return f"{user}\t{item}\t{rating}\t{881250949 + time}\n"


def benchmark_csv(user: int, item: int, rating: int, time: int) -> str:
    """Format a line of Amazon 2023's benchmark files."""
    return f"AGKASBHYZPGTEPO6LW{user:010d},B{item:09d},{rating}.0,{1595007831000 + time}\n"


def review(user: int, item: int, rating: int, time: int) -> str:
    """Format a line of Amazon 2023's reviews."""
    fields = {"rating": float(rating), "title": "As it says", "text": "It does what it says. " * 8, "images": []}
    fields |= {"asin": f"B{item:09d}", "parent_asin": f"B{item:09d}", "user_id": f"AGKASBHYZPGTEPO6LW{user:010d}"}
    return json.dumps(fields | {"timestamp": 1595007831000 + time, "helpful_vote": 0, "verified_purchase": True}) + "\n"


ATOMIC = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
FORMS: dict[str, tuple[str, str, Callable[[int, int, int, int], str], int]] = {
    "RecBole .inter": ("x.inter", ATOMIC, atomic, 0),
    "Amazon 2023 benchmark .csv": ("X.csv", "user_id,parent_asin,rating,timestamp\n", benchmark_csv, 0),
    "Amazon 2023 reviews .jsonl.gz": ("X.jsonl.gz", "", review, 0),
    "RecBole .inter, by line": ("x.inter", ATOMIC, atomic, PART),
}


def measure(folder: Path, queue: multiprocessing.Queue) -> None:
    """Read a source and put (rows, seconds, peak MiB) into the queue."""
    start = time.perf_counter()
    source = open_source(folder, on_error=Quarantine(folder / "quarantine.jsonl"))
    rows = sum(frame.height for frame in source.interactions())
    wall_s = time.perf_counter() - start
    # VmHWM instead of ru_maxrss, which starts from the memory of the parent process.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    queue.put((rows, wall_s, int(peak[1]) / 1024 if peak else float("nan")))


def main() -> None:
    """Write, read and report each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    rows = parser.parse_args().rows
    context = multiprocessing.get_context("spawn")
    results = {}
    print(f"{'form':<32}{'MB':>8}{'rows':>12}{'s':>8}{'rows/s':>12}{'peak MiB':>10}")
    for name, (file, head, line, every) in FORMS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "source" / file
            write_rows(path, rows, head, line, every)
            queue = context.Queue()
            child = context.Process(target=measure, args=(path.parent, queue))
            child.start()
            rows_read, wall_s, peak = queue.get()
            child.join()
            size = path.stat().st_size / 1e6
        rate = rows_read / wall_s
        print(f"{name:<32}{size:>8.1f}{rows_read:>12,}{wall_s:>8.2f}{rate:>12,.0f}{peak:>10.0f}", flush=True)
        results[name] = {"rows": rows_read, "mb": round(size, 1), "rows_per_s": round(rate), "peak_mib": round(peak)}
    print(json.dumps({"benchmark": "read", "python": platform.python_version(), "results": results}))


if __name__ == "__main__":
    main()
