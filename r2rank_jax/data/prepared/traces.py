"""Trace files: a JSON header line (teacher, data, template), then one list with its rationales per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file

_HEADER = ("teacher", "data_hash", "split", "lists", "seed")
_FIELDS = ("user", "position", "items", "labels", "rationales")
_FIRST_TEMPLATE = "films-1"


@dataclass(frozen=True)
class Traces:
    """L training lists with a rationale for each of their items."""

    header: dict[str, Any]  # teacher, data_hash, split, lists, seed and what else the file records
    path: Path
    lists: CandidateLists
    rationales: tuple[tuple[str, ...], ...]  # [L][N]
    digest: str  # SHA-256 of the file, header included

    def __len__(self) -> int:
        return len(self.rationales)

    @property
    def template(self) -> str:
        """Name of the data.template that the rationales were written for."""
        return _template_of(self.path, self.header)

    def require_template(self, template: str) -> None:
        """Refuse rationales that were written for another template.

        Raises:
            DataError: they were, or the header does not say.
        """
        if self.template != template:
            raise DataError(
                f"{self.path}: traces must be written for data.template={template}, got traces for {self.template}; "
                f"run `r2rank data synthesize --template {template}`, or set data.template or data.traces"
            )


def write_traces(out: Path, header: dict[str, Any], lists: CandidateLists, rationales: Sequence[Sequence[str]]) -> None:
    """Write a trace file atomically.

    Args:
        out: the file.
        header: teacher (author of the rationales), data_hash, split, seed and template; other entries are allowed.
        lists: training lists.
        rationales: [L][N] texts.
    """
    columns = (lists.user.tolist(), lists.position.tolist(), lists.items.tolist(), lists.labels.tolist(), rationales)
    with replacing_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(header | {"lists": len(lists)}, ensure_ascii=False) + "\n")
        for user, position, items, labels, texts in zip(*columns, strict=True):
            record = dict(zip(_FIELDS, (user, position, items, [int(label) for label in labels], list(texts))))
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_traces(path: Path, dataset: Dataset, template: str | None) -> Traces:
    """Read a trace file and check that it belongs to the data, to their training part, and to the template.

    Args:
        path: the file.
        dataset: the data that the lists must come from.
        template: name of the data.template that the rationales must be written for; None accepts any, and a file that
            does not say.

    Raises:
        DataError: no such file, a malformed or missing line, another data set, split or template, or a held-out
            position.
    """
    if not path.is_file():
        raise DataError(f"traces must be at {path}, got nothing; run `r2rank data synthesize` or set data.traces")
    # Not splitlines(), which also splits at Unicode line separators within a rationale.
    content = path.read_bytes()
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    header = _object(path, 1, lines[0], _HEADER)
    for name, expected in (("data_hash", dataset.data_hash), ("split", dataset.split)):
        if header[name] != expected:
            raise DataError(
                f"{path}: {name} must be that of the data set, {expected}, got {header[name]}; run `r2rank data "
                f"synthesize` for this data and split, or set data.traces"
            )
    if header["lists"] != len(lines) - 1 or not header["lists"]:
        raise DataError(
            f"{path}, line {len(lines)}: expected {header['lists']} lists after the header (at least 1), got "
            f"{len(lines) - 1}; the file was cut off: write it again"
        )
    records = [_object(path, number, text, _FIELDS) for number, text in enumerate(lines[1:], start=2)]
    for number, record in enumerate(records, start=2):
        _require_training_list(path, number, record, len(records[0]["items"]), dataset)
    lists = CandidateLists(
        np.array([r["user"] for r in records], np.int32),
        np.array([r["position"] for r in records], np.int32),
        np.array([r["items"] for r in records], np.int32),
        np.array([r["labels"] for r in records], np.float32),
    )
    rationales = tuple(tuple(r["rationales"]) for r in records)
    traces = Traces(header, path, lists, rationales, hashlib.sha256(content).hexdigest())
    if template is not None:
        traces.require_template(template)
    return traces


def _template_of(path: Path, header: dict[str, Any]) -> str:
    """Name of the template that the rationales were written for.

    Files written before the header named it are still read wherever the template is certain, because a run that started
    from such a file must be able to resume: its checkpoint holds the file's digest, and a rewritten file has another.

    - A language model's file has it among its settings, or predates that setting, when its prompts used FILMS_1 only.
    - The template teacher used FILMS_1, whatever the student's template was.

    The file of any other author could answer any prompt, so it is refused.
    """
    settings = header.get("settings")
    if "template" in header:
        return str(header["template"])
    if isinstance(settings, dict) and "template" in settings:
        return str(settings["template"])
    if header["teacher"] == "template" or "prompts" in header:
        return _FIRST_TEMPLATE
    raise DataError(
        f"{path}, line 1: the header must name the data.template that the traces were written for, got none; add "
        f'"template": "NAME" to the line'
    )


def _require_training_list(path: Path, number: int, record: dict[str, Any], width: int, dataset: Dataset) -> None:
    sizes = {name: len(record[name]) for name in ("items", "labels", "rationales")}
    if set(sizes.values()) != {width}:
        raise DataError(f"{path}, line {number}: every list must have {width} entries, got {sizes}; correct the line")
    user, position = record["user"], record["position"]
    if not (0 <= user < dataset.users and 1 <= position < dataset.train_end[user]):
        raise DataError(
            f"{path}, line {number}: a trace must be of a training position, got user {user}, position {position}; "
            f"SFT must not learn from held-out positives: write the traces again"
        )


def _object(path: Path, number: int, text: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    missing = [name for name in fields if not isinstance(record, dict) or name not in record]
    if missing:
        raise DataError(
            f"{path}, line {number}: expected a JSON object with {', '.join(fields)}, got {text[:120]!r}; the file was "
            f"cut off or edited: write it again"
        )
    return record
