"""Check the language-model teacher against an endpoint that injects failures, while the command is killed repeatedly.

    python benchmarks/check_teacher.py                             5,000 requests, ten kills with signal 9: about 40 s
    python benchmarks/check_teacher.py --requests 200 --kills 3    the form in the tests

`r2rank data synthesize` asks `fault_server.py` on this machine about training lists. It first runs with a budget that
is too small until it stops, then with one that is large enough, and is killed during both. The journal is then compared
with the server's own log. Prints a table, then one JSON line; the exit status is 1 unless every check holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fault_server import case_of, flaw_of

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.teacher.language_model.journal import Journal

ROOT = Path(__file__).parent.parent
SERVER = str(Path(__file__).with_name("fault_server.py"))
WIDTH = 20  # candidates of a list
ATTEMPTS = 6
CEILING = 3000  # tokens; an upper bound on every request of this check


class Bench:
    """The folder, the server and the command of one check."""

    def __init__(self, folder: Path, requests: int, concurrency: int, flaws: float):
        self.folder, self.requests, self.concurrency, self.flaws = folder, requests, concurrency, flaws
        self.key = "sk-" + secrets.token_urlsafe(24)
        self.printed = b""
        self.titles: list[bytes] = []  # command lines, visible to other users of the machine
        self.starts = 0
        write_source(folder / "raw")
        prepare(folder / "raw", folder / "data")
        with (folder / "server.err").open("wb") as errors:
            self.server = subprocess.Popen(
                [sys.executable, SERVER, "--log", str(self.books), "--flaws", str(flaws)],
                env=os.environ | {"FAULT_SERVER_KEY": self.key},
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.server.stdout is not None
        self.port = int(self.server.stdout.readline())

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.wait()

    @property
    def journal(self) -> Path:
        """Written by the command under test."""
        return self.folder / "traces.journal.jsonl"

    @property
    def books(self) -> Path:
        """Written by the server."""
        return self.folder / "server.jsonl"

    def answers(self) -> int:
        """Number of answers in the journal."""
        return self.journal.read_bytes().count(b'"answer":') if self.journal.exists() else 0

    def start(self, *options: str, offline: bool = False) -> subprocess.Popen[bytes]:
        """Start the command. Every second process streams, which does not change the requests' keys."""
        command = [sys.executable, "-m", "r2rank_jax.cli", "data", "synthesize", "--data", str(self.folder / "data")]
        command += ["--out", str(self.folder / "traces.jsonl"), "--lists", str(self.requests // WIDTH)]
        command += ["--model", "fault-1", "--show-label", "always", "--draws", "1", "--max-tokens", "400"]
        command += ["--teacher", "batch" if offline else f"http://127.0.0.1:{self.port}/v1", "--backoff-s", "0.05"]
        command += ["--concurrency", str(self.concurrency), "--stall-s", "1", "--timeout-s", "2"]
        command += ["--attempts", str(ATTEMPTS), *["--stream"] * (self.starts % 2), *options]
        self.starts += 1
        dead = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
        env = os.environ | dead | {"R2RANK_TEACHER_API_KEY": self.key}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Wait for the end, and keep the output."""
        output, _ = process.communicate(timeout=600)
        self.printed += output
        return process.returncode, output.decode()

    def run(self, *options: str, kills: Sequence[int] = (), offline: bool = False) -> tuple[int, str]:
        """Run to the end. Kill and restart the command when the journal reaches each number of answers in `kills`."""
        waiting = list(kills)
        while True:
            process = self.start(*options, offline=offline)
            while waiting and process.poll() is None:
                if self.answers() >= waiting[0]:
                    self.titles.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
                    process.kill()
                    break
                time.sleep(0.02)
            status, output = self.finish(process)
            if status != -9:
                return status, output
            waiting.pop(0)
            if len(waiting) % 3 == 0:  # imitates a kill during a write, which rarely happens by chance
                with self.journal.open("ab") as file:
                    file.write(b'{"key":"0123456789abcdef","ans')

    def billed(self) -> int:
        """Tokens that the server billed."""
        return sum(record["billed"] for record in read_lines(self.books))


def write_source(folder: Path, users: int = 60, items: int = 80, each: int = 20) -> None:
    """A small source in RecBole's form."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, users + 1):
        chosen = rng.sample(range(1, items + 1), each)
        lines += [f"{user}\t{item}\t{rng.randint(1, 5)}\t{880_000_000 + t}" for t, item in enumerate(chosen)]
    (folder / "small.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    lines += [f"{item}\tFilm No {item}\t{1940 + item % 60}\tDrama" for item in range(1, items + 1)]
    (folder / "small.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def asked_after_answer(records: list[dict[str, Any]]) -> int:
    """Number of requests sent although the journal had their answer."""
    answered: set[str] = set()
    late = 0
    for record in records:
        late += "asked" in record and record["key"] in answered
        if "answer" in record:
            answered.add(record["key"])
    return late


def booked(journal: Path) -> int:
    """Tokens booked in a journal; unreported ones count at their ceiling."""
    with Journal(journal) as opened:
        return opened.past.reported.plus(opened.past.unreported).total


def files_with(folder: Path, secret: str) -> list[str]:
    """Names of the files that contain a text."""
    return [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def moments(begin: int, end: int, count: int, rng: random.Random) -> list[int]:
    """Numbers of answers at which to kill: one at random in each of `count` intervals, and none in the last."""
    return [begin + int((i + 0.2 + 0.7 * rng.random()) * (end - begin) / (count + 1)) for i in range(count)]


def attack(bench: Bench, kills: int, seed: int) -> tuple[dict[str, Any], dict[str, bool]]:
    """Run through a small budget, kills and a second process; returns figures, and which checks hold."""
    requests, rng = bench.requests, random.Random(seed)
    early = kills // 3
    start, small = time.monotonic(), requests * 300  # enough for a third of them
    first_status, first_output = bench.run("--budget-tokens", str(small), kills=moments(0, requests // 4, early, rng))
    first_bill, first_booked = bench.billed(), booked(bench.journal)
    answers = bench.answers()
    holder = bench.start("--budget-tokens", str(small * 10))
    while bench.answers() == answers:
        time.sleep(0.02)
    refused_status, refused_output = bench.finish(bench.start())
    holder.kill()
    bench.finish(holder)
    late = moments(bench.answers(), requests, kills - early, rng)
    status, _ = bench.run("--budget-tokens", str(small * 10), kills=late)
    bench.server.terminate()
    figures = {
        "seconds": round(time.monotonic() - start, 1),
        "kills": kills + 1,
        "budget_small": small,
        "answered_under_small_budget": answers,
        "booked_under_small_budget": first_booked,
        "billed_under_small_budget": first_bill,
        "billed": bench.billed(),
        "booked": booked(bench.journal),
    }
    held = {
        "a budget too small stops the run": first_status == 1 and "the budget is reached" in first_output,
        "its booked tokens reach the budget and do not exceed it": small - CEILING < first_booked <= small,
        "the server bills no more than is booked": 0 < first_bill <= first_booked,
        "the final booking covers the bill": figures["billed"] <= figures["booked"] <= small * 10,
        "a second process is refused": refused_status == 2 and "another has it open" in refused_output,
        "the run finishes": status == 0,
    }
    return figures, held


def audit(bench: Bench, kills: int) -> tuple[dict[str, Any], dict[str, bool]]:
    """Compare the journal with the server's log."""
    bench.run("--batch-out", str(bench.folder / "all.jsonl"), "--journal", str(bench.folder / "no.jsonl"), offline=True)
    cases = {line["custom_id"]: case_of(line["body"]["messages"]) for line in read_lines(bench.folder / "all.jsonl")}
    records, books = read_lines(bench.journal), read_lines(bench.books)
    asked = Counter(record["key"] for record in records if "asked" in record)
    answers = Counter(record["key"] for record in records if "answer" in record)
    received = Counter(record["case"] for record in books)
    delivered = Counter(record["case"] for record in books if record["got"] == "answer")
    traces = read_traces(bench.folder / "traces.jsonl", load(bench.folder / "data", "leave_one_out"), "films-1")
    lost, late = delivered.total() - len(answers), asked_after_answer(records)
    with_key = files_with(bench.folder, bench.key)
    figures = {
        "requests": len(cases),
        "answered": len(answers),
        "sent": asked.total(),
        "received": received.total(),
        "faults": dict(Counter(record["got"] for record in books if record["got"] != "answer")),
        "answers_lost_in_flight": lost,
        "asked_after_answer": late,
        "most_sendings_of_a_request": max(asked.values()),
        "lists": len(traces),
        "files_with_key": with_key,
    }
    held = {
        "every request has exactly one answer": set(answers) == set(cases) and set(answers.values()) == {1},
        "no request goes out after its answer": late == 0,
        "only kills during a request pay for an answer twice": 0 <= lost <= kills * bench.concurrency,
        "the journal records every attempt": all(asked[key] >= received[case] for key, case in cases.items()),
        "retries are bounded": max(asked.values()) <= ATTEMPTS + kills,
        "SFT reads the traces": len(traces) == bench.requests // WIDTH,
        "the key is in no file": not with_key,
        "the key is in no output": bench.key.encode() not in bench.printed + b"".join(bench.titles),
    }
    return figures, held


def filters(bench: Bench) -> tuple[dict[str, Any], dict[str, bool]]:
    """One run against a teacher with flaws: the filters must refuse the planted flaws and nothing else."""
    bench.run()
    bench.server.terminate()
    planted = Counter(flaw_of(case, bench.flaws) for case in {line["case"] for line in read_lines(bench.books)})
    traces = read_traces(bench.folder / "traces.jsonl", load(bench.folder / "data", "leave_one_out"), "films-1")
    refused = traces.header["answers_refused"]
    dropped = sum(traces.header["lists_dropped"].values())
    held = {
        # One text is planted for matches and one for mismatches; the first of each is not a duplicate.
        "filters refuse the planted flaws": all(
            refused[name] == planted[name]
            if name != "duplicate"
            else planted[name] - 2 <= refused[name] < planted[name]
            for name in refused
        ),
        "lists with a missing rationale are dropped": len(traces) + dropped == bench.requests // WIDTH
        and 0 < dropped <= sum(refused.values()),
    }
    return {"refused": refused, "lists_dropped": dropped, "lists_kept": len(traces)}, held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help=f"a multiple of {WIDTH}")
    parser.add_argument("--kills", type=int, default=9, help="random kills; one more ends the holder of the lock")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Bench(Path(folder) / "killed", given.requests, given.concurrency, flaws=0.0) as bench:
            figures, held = attack(bench, given.kills, given.seed)
            audited, held_in_audit = audit(bench, given.kills + 1)
            figures, held = audited | figures, held_in_audit | held
        with Bench(Path(folder) / "flawed", 400, given.concurrency, flaws=0.08) as bench:
            filtered, held_in_filters = filters(bench)
            figures, held = figures | filtered, held | held_in_filters
    for name, value in figures.items():
        print(f"{name:28} {value}")
    for name, holds in held.items():
        print(f"{'holds' if holds else 'FAILS':6} {name}")
    print(json.dumps(figures | {"held": sum(held.values()), "failed": [name for name in held if not held[name]]}))
    return int(not all(held.values()))


if __name__ == "__main__":
    sys.exit(main())
