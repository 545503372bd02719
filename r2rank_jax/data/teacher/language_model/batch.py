"""The offline route: the open requests as one file for a batch service or `vllm run-batch`, and its answers back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from r2rank_jax.data.teacher.language_model.answers import BrokenAnswer, parse_completion
from r2rank_jax.data.teacher.language_model.asking import Request
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import Ledger, Tokens
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file

URL = "/v1/chat/completions"


def write_batch(path: Path, requests: Sequence[Request], ledger: Ledger) -> int:
    """Write as many of the requests, in their order, as the budget holds at their ceilings.

    Args:
        path: JSONL file, one request a line, its key as `custom_id`.
        requests: the open ones.
        ledger: of the journal.

    Returns:
        How many were written.
    """
    booked, written = ledger.booked, 0
    with replacing_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for request in requests:
            booked = booked.plus(request.ceiling)
            if not ledger.budget.holds(booked):
                break
            line = {"custom_id": request.key, "method": "POST", "url": URL, "body": request.body}
            file.write(json.dumps(line) + "\n")
            written += 1
    return written


def read_batch(path: Path, known: Mapping[str, Tokens], journal: Journal, ledger: Ledger) -> Counter[str]:
    """Read a batch's output into the journal. Reading a file twice changes nothing.

    Args:
        path: JSONL file, one response a line, in any order.
        known: ceiling of every request of this run, by its key.
        journal: takes the answers.
        ledger: takes what they cost.

    Returns:
        Counts: answered, answered before, of another run, failed: reason. A failed request stays open.

    Raises:
        DataError: no such file, or a line that is not a response.
    """
    if not path.is_file():
        raise DataError(f"--batch-in must name a batch's output file, got {path}, which is not there")
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                counts[_read_line(path, number, line, known, journal, ledger)] += 1
    return counts


def _read_line(
    path: Path, number: int, line: bytes, known: Mapping[str, Tokens], journal: Journal, ledger: Ledger
) -> str:
    try:
        found = json.loads(line)
        key, response, error = found["custom_id"], found.get("response"), found.get("error")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}, line {number}: expected a response with a custom_id, got "
            f"{line[:120].decode('utf-8', 'replace')!r}; give the whole output file of the batch"
        ) from None
    if "body" in found:  # requests have a custom_id, too
        raise DataError(f"{path}, line {number}: expected a response, got a request; give the batch's output file")
    if key not in known:
        return "of another run"
    if key in journal.answers:
        return "answered before"
    if not isinstance(response, dict):
        return "failed: no response" if error is None else "failed: error in place of an answer"
    status = response.get("status_code", 200)
    if status != 200:
        return f"failed: status {status}"
    try:
        answer = parse_completion(json.dumps(response.get("body", response)))
    except BrokenAnswer as broken:
        return f"failed: {broken}"
    journal.asked(key, known[key])
    journal.answered(key, answer)
    ledger.book(known[key], answer.usage)
    return "answered"
