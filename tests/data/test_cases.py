"""Small source folders that went wrong for somebody, each prepared as a whole.

`fixtures/cases` holds copies. A folder `shared/cases` beside the repository, where there is one, holds the same cases
and perhaps more.
"""

import json
from pathlib import Path

import polars as pl
import pytest

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.folder import interactions_file
from r2rank_jax.errors import DataError, R2RankError

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = (REPOSITORY / "tests/fixtures/cases", REPOSITORY.parent / "shared/cases")
OTHERS = ("rank", "hf")  # not sources
CASES = [
    pytest.param(folder, id=f"{root.parent.name}-{folder.name}")
    for root in ROOTS
    if root.is_dir()
    for folder in sorted(root.iterdir())
    if folder.is_dir() and folder.name not in OTHERS
]


class Prepared:
    """A case's prepared folder."""

    def __init__(self, folder: Path):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.rows = pl.read_parquet(folder / interactions_file(0)).sort("order")
        self.items = pl.read_parquet(folder / "items.parquet")
        quarantine = folder / "quarantine.jsonl"
        self.aside = [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.is_file() else []


def prepared(case: Path, tmp_path: Path, **settings: object) -> Prepared:
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    prepare(case, out, candidates=3, **settings)
    return Prepared(out)


def refused(case: Path, tmp_path: Path, **settings: object) -> str:
    """The message of the refusal, which is one line and leaves nothing behind."""
    with pytest.raises(DataError) as error:
        prepare(case, tmp_path / "refused", candidates=3, **settings)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    return str(error.value)


def sparse(case: Path, tmp_path: Path) -> None:
    assert "interactions.jsonl, line 1: timestamp must be" in refused(case, tmp_path)
    found = prepared(case, tmp_path, on_error="quarantine")
    lines = [json.loads(line) for line in (case / "interactions.jsonl").read_text().splitlines()]
    assert [(row["line"], row["file"]) for row in found.aside] == [(1, "interactions.jsonl")]
    assert found.rows["rating"].to_list() == [line["rating"] for line in lines[1:]]
    assert found.rows["timestamp"].to_list() == [line["timestamp"] for line in lines[1:]]


def float_ids_items_int(case: Path, tmp_path: Path) -> None:
    found = prepared(case, tmp_path)
    assert found.manifest["items_without_title"] == 0 and found.items.height == 8
    assert all(title == f"Thing {item}" for item, title in found.items.select("source_id", "title").rows())


def absurd_time(case: Path, tmp_path: Path) -> None:
    assert "interactions.csv, line 9: timestamp must be a time in milliseconds" in refused(case, tmp_path)
    found = prepared(case, tmp_path, on_error="quarantine")
    assert found.manifest["time_unit"] == "ms" and [row["line"] for row in found.aside] == [9]
    assert found.rows["timestamp"].min() == 1_600_000_000_000


def iso_mixed_fraction(case: Path, tmp_path: Path) -> None:
    found = prepared(case, tmp_path)
    assert found.manifest["time_unit"] == "ms" and found.rows.height == 36
    assert found.rows["timestamp"][0] == 1_000_000_000_000
    assert 1_000_000_001_250 in found.rows["timestamp"]


def blank_last_line(case: Path, tmp_path: Path) -> None:
    assert prepared(case, tmp_path).rows.height == 36


def csv_missing_rating(case: Path, tmp_path: Path) -> None:
    found = prepared(case, tmp_path)
    assert found.rows.height == 36 and found.aside == []
    blank = [line.split(",")[2] == "" for line in (case / "interactions.csv").read_text().splitlines()[1:]]
    assert found.rows["rating"].is_null().to_list() == blank and any(blank)


def tsv_quote(case: Path, tmp_path: Path) -> None:
    message = refused(case, tmp_path)
    assert "interactions.tsv, line 2: " in message and "--quote none" in message
    found = prepared(case, tmp_path, quote="none")
    assert found.rows.height == 36 and found.items["title"].str.starts_with('"Weird Al" i').all()


def comma_in_unquoted_title(case: Path, tmp_path: Path) -> None:
    for on_error in ("fatal", "quarantine"):
        message = refused(case, tmp_path, on_error=on_error)
        assert "timestamp must" not in message
        assert on_error == "quarantine" or "line 2: expected 5 comma-separated fields" in message


EXPECTED = {
    "absurd_time": absurd_time,
    "blank_last_line": blank_last_line,
    "comma_in_unquoted_title": comma_in_unquoted_title,
    "csv_missing_rating": csv_missing_rating,
    "float_ids_items_int": float_ids_items_int,
    "iso_mixed_fraction": iso_mixed_fraction,
    "sparse": sparse,
    "tsv_quote": tsv_quote,
}


def one_line_at_most(case: Path, tmp_path: Path) -> None:
    """A case that is not described here is prepared, or refused in one line."""
    try:
        prepare(case, tmp_path / "out", candidates=3)
    except R2RankError as error:
        assert "\n" not in str(error)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CASES)
def test_a_case_behaves_as_described(case, tmp_path):
    EXPECTED.get(case.name, one_line_at_most)(case, tmp_path)


def test_every_described_case_has_a_copy():
    assert {folder.name for folder in ROOTS[0].iterdir()} - {*OTHERS} == EXPECTED.keys()
