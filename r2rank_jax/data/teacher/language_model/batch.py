"""The offline route: write the open requests to a file for a batch service, and read the file of its answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from r2rank_jax.data.teacher.language_model.answers import BrokenAnswer, parse_completion
from r2rank_jax.data.teacher.language_model.asking import ChatRequest
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import Ledger, Tokens
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file

URL = "/v1/chat/completions"


def write_batch(path: Path, requests: Sequence[ChatRequest], ledger: Ledger) -> int:
    """Write the requests in order until the budget is used up, counting each at its ceiling.

    Args:
        path: JSONL file, one request per line, with its key as `custom_id`.
        requests: the open ones.
        ledger: of the journal.

    Returns:
        The number of requests written.
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


def read_batch(path: Path, ceilings: Mapping[str, Tokens], journal: Journal, ledger: Ledger) -> Counter[str]:
    """Read a batch's output into the journal. Reading a file twice changes nothing.

    Args:
        path: JSONL file, one response per line, in any order.
        ceilings: key -> ceiling of every request of this run.
        journal: records the answers.
        ledger: records their cost.

    Returns:
        Counts: answered, answered before, of another run, failed: reason. A failed request stays open.

    Raises:
        DataError: no such file, or a line that is not a response.
    """
    if not path.is_file():
        raise DataError(f"--batch-in must name a batch's output file, got {path}, which does not exist; give its path")
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                counts[_read_line(path, number, line, ceilings, journal, ledger)] += 1
    return counts


def _read_line(
    path: Path, number: int, line: bytes, ceilings: Mapping[str, Tokens], journal: Journal, ledger: Ledger
) -> str:
    try:
        record = json.loads(line)
        key, response, error = record["custom_id"], record.get("response"), record.get("error")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}, line {number}: expected a response with a custom_id, got "
            f"{line[:120].decode('utf-8', 'replace')!r}; give the whole output file of the batch"
        ) from None
    if "body" in record:  # a request, which has a custom_id too
        raise DataError(f"{path}, line {number}: expected a response, got a request; give the batch's output file")
    if key not in ceilings:
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
    journal.asked(key, ceilings[key])
    journal.answered(key, answer)
    ledger.book(ceilings[key], answer.usage)
    return "answered"
