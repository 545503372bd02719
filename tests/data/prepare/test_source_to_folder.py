"""From RecBole's atomic files to the prepared folder: ids, texts and damaged files."""

import polars as pl
import pytest

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.folder import interactions_file, users_file
from r2rank_jax.errors import DataError
from tests.support.tiny_source import INTER_HEADER, ITEMS, USERS, tiny_rows


def test_every_row_is_kept_with_ids_in_numeric_order(prepared):
    frame = pl.read_parquet(prepared / interactions_file(0))
    rows = tiny_rows()
    users, items = pl.read_parquet(prepared / users_file(0)), pl.read_parquet(prepared / "items.parquet")
    # Source ids are 1, 2, ..., so numeric order makes dense = source - 1; text order would put "10" second.
    assert users["source_id"].to_list() == [str(user + 1) for user in range(USERS)]
    assert items["source_id"].to_list() == [str(item + 1) for item in range(ITEMS)]
    by_source_order = frame.sort("order")
    assert by_source_order["order"].to_list() == list(range(len(rows)))
    assert by_source_order.select("user", "item", "rating", "timestamp").rows() == [
        (user - 1, item - 1, rating, time) for user, item, rating, time in rows
    ]
    assert frame.equals(frame.sort("user", "timestamp", "order"))


def test_genres_stay_separate_and_titles_show_their_year(prepared, dataset):
    items = dataset.items
    assert items.genres[1] == ("Sci-Fi", "Horror")
    assert items.shown(0, "Unknown film") == "The Usual Suspects (1941)"
    assert items.shown(1, "Unknown film") == "Unknown film (1942)" and items.title[1] == ""
    assert pl.read_parquet(prepared / "items.parquet")["title"][1] == ""


def _damage(path, edit):
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("tiny.inter", lambda b: b[:-4], r"tiny\.inter, line {last}: expected 4 fields and a line end"),
        ("tiny.inter", lambda b: b[: b.rindex(b"\t")] + b"\n", r"line {last}: expected 4 tab-separated .*got 3"),
        ("tiny.inter", lambda b: b[: len(INTER_HEADER)], r"tiny\.inter: expected interactions"),
        ("tiny.inter", lambda b: b"user\titem\n" + b, r"line 1: expected a tab-separated header with user_id:token"),
        ("tiny.inter", lambda b: b + b"1\t5\tgood\t1\n", r"line {next}: rating must be a number, got 'good'"),
        ("tiny.inter", lambda b: b + b"1\t5\tnan\t1\n", r"line {next}: rating must be a number, got 'nan'"),
        ("tiny.inter", lambda b: b + b"\xff\n", r"line {next}: expected UTF-8 text, got byte 0xff"),
        ("tiny.item", lambda b: b[:-9], r"tiny\.item, line 61: expected 4 fields and a line end"),
        ("tiny.item", lambda b: b + b"7\tAgain\t1990\tDrama\n", r"tiny\.item, line 62: item_id '7' repeats"),
    ],
)
def test_damage_is_reported_by_file_and_line_and_nothing_is_written(tiny_raw, tmp_path, file, edit, message):
    last = len(tiny_rows()) + 1
    _damage(tiny_raw / file, edit)
    with pytest.raises(DataError, match=message.format(last=last, next=last + 1)):
        prepare(tiny_raw, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
