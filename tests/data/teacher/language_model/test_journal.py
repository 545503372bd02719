import json
import os
import subprocess
import sys

import pytest

from r2rank_jax.data.teacher.language_model.answers import Answer
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import Tokens
from r2rank_jax.errors import DataError


def answer(content, usage=Tokens(5, 2)):  # noqa: B008
    return Answer(content, "thoughts", "stop", "m", usage)


@pytest.fixture
def path(tmp_path):
    """A journal of four requests: answered, failed and billed, failed and free, in flight."""
    path = tmp_path / "deep" / "j.jsonl"
    with Journal(path) as journal:
        for key in "abcd":
            journal.asked(key, Tokens(100, 10))
        journal.answered("a", answer("A \u2028\ud800 text\n"))
        journal.failed("b", "cut off", billed=True)
        journal.failed("c", "status 500", billed=False)
    return path


def test_a_journal_is_read_as_it_was_written(path):
    with Journal(path) as journal:
        assert journal.answers == {"a": "A \u2028\ud800 text\n"} and journal.repaired_bytes == 0
        past = journal.past
        assert past.reported == Tokens(5, 2)
        assert past.unreported == Tokens(200, 20), "billed without a report, and in flight"
        assert past.counts == {
            "asked": 4, "answered": 1, "failed: cut off": 1, "failed: status 500": 1, "lost in flight": 1,
        }  # fmt: skip
        journal.asked("d", Tokens(100, 10))  # sent again; the lost request stays booked
        journal.answered("d", answer("D", None))
    with Journal(path) as journal:
        assert journal.past.unreported == Tokens(300, 30) and journal.past.counts["lost in flight"] == 1
        with pytest.raises(ValueError, match="d is answered already"):
            journal.answered("d", answer("other"))
    assert b"thoughts" in path.read_bytes()


def test_after_a_cut_at_any_byte_it_continues_after_the_last_complete_line(path, tmp_path):
    """A kill can end the file at any byte: complete lines stay, an incomplete one is removed."""
    content = path.read_bytes()
    for length in range(len(content) + 1):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:length])
        whole = content[:length].rfind(b"\n") + 1
        with Journal(torn) as journal:
            assert journal.repaired_bytes == length - whole
            journal.failed("z", "status 429", billed=False)
        assert torn.read_bytes()[:whole] == content[:whole]
        assert json.loads(torn.read_bytes()[whole:]) == {"key": "z", "failed": "status 429", "billed": False}


@pytest.mark.parametrize(
    "line",
    [b'{"key":"a","answer":{"content":"again"},"usage":null}', b'{"key":"x"}', b"\0\0\0", b'{"key":"q","ask', b"[]"],
)
def test_a_damaged_line_is_reported_and_the_file_is_unchanged(path, line):
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:5], line + b"\n", *lines[5:]])
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"j.jsonl, line 6: expected a request.*restore a backup"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_a_second_process_is_refused_until_the_first_is_killed(path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from r2rank_jax.data.teacher.language_model.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(DataError, match=r"one process at a time, and another has it open; wait for it to end"):
            Journal(path)
    finally:
        holder.kill()
        holder.wait()
    Journal(path).__exit__(None, None, None)


def test_an_answer_is_synced_before_it_is_used(path, monkeypatch):
    synced = []
    with Journal(path) as journal:
        real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda file: real(file) or synced.append("d" in journal.answers))
        journal.asked("d", Tokens(1, 1))
        assert synced == []
        journal.answered("d", answer("D"))
    assert synced == [False]


def test_a_full_disk_leaves_no_incomplete_line(path, monkeypatch):
    before = path.read_bytes()
    real = os.write
    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:9]))
        with pytest.raises(DataError, match=r"must store every answer.*9 of \d+ bytes.*free some space"):
            journal.answered("d", answer("D"))
        monkeypatch.undo()
        assert path.read_bytes() == before and "d" not in journal.answers
        journal.answered("d", answer("D"))
    assert path.read_bytes().startswith(before) and path.read_bytes().endswith(b'"usage":[5,2]}\n')
