import numpy as np
import pytest

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.movielens import clean_title, read
from r2rank_jax.data.prepare import prepare

from .conftest import INTER_HEADER, ITEM_HEADER, ITEMS, USERS, tiny_rows


def test_reads_every_row_in_source_order_with_ids_in_numeric_order(tiny_raw):
    interactions, items = read(tiny_raw)
    rows = tiny_rows()
    assert len(items) == ITEMS and interactions.user.max() == USERS - 1
    assert interactions.order.tolist() == list(range(len(rows)))
    # Source ids are 1, 2, ..., so numeric order makes dense = source - 1; text order would put "10" second.
    assert interactions.user.tolist() == [user - 1 for user, *_ in rows]
    assert interactions.item.tolist() == [item - 1 for _, item, *_ in rows]
    assert interactions.rating.tolist() == [rating for *_, rating, _ in rows]
    assert interactions.timestamp.dtype == np.int64
    assert interactions.timestamp.tolist() == [time for *_, time in rows]


def test_genres_stay_tokens_and_titles_carry_their_year(tiny_raw):
    _, items = read(tiny_raw)
    assert items.genres[1] == ("Sci-Fi", "Horror")
    assert items.shown(0) == "The Usual Suspects (1941)"
    assert items.shown(1) == "Unknown film (1942)"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Usual Suspects, The", "The Usual Suspects"),
        ("Fish Called Wanda, A", "A Fish Called Wanda"),
        ("Postino, Il", "Il Postino"),
        ("Seventh Seal, The (Sjunde inseglet, Det)", "The Seventh Seal"),
        ("L.627, L'", "L'L.627"),
        ("(500)", "(500)"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Paris, Texas", "Paris, Texas"),
        ("Cry, the Beloved Country", "Cry, the Beloved Country"),
        ("Truth About Cats &amp; Dogs, The", "The Truth About Cats & Dogs"),
        ("unkonwn", "Unknown film"),
        ("", "Unknown film"),
    ],
)
def test_titles(raw, clean):
    assert clean_title(raw) == clean


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
        ("tiny.inter", lambda b: b + b"99\t61\t3\t1\n", r"line {next}: item_id must be one of the 60 .*got '61'"),
        ("tiny.inter", lambda b: b + b.splitlines()[1] + b"\n", r"line {next}: a user rates an item once.*line 2"),
        ("tiny.inter", lambda b: b + b"\xff\n", r"line {next}: expected UTF-8 text, got byte 0xff"),
        ("tiny.item", lambda b: b[:-9], r"tiny\.item, line 61: expected 4 fields and a line end"),
        ("tiny.item", lambda b: b + b"7\tAgain\t1990\tDrama\n", r"tiny\.item, line 62: item_id '7' repeats"),
        ("tiny.item", lambda b: b[: len(ITEM_HEADER)], r"tiny\.item: expected items"),
    ],
)
def test_damage_is_named_by_file_and_line_and_nothing_is_written(tiny_raw, tmp_path, file, edit, message):
    last = len(tiny_rows()) + 1
    _damage(tiny_raw / file, edit)
    with pytest.raises(DataError, match=message.format(last=last, next=last + 1)):
        prepare(tiny_raw, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_missing_file_names_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"exactly one \.item file, got \[\]; run `r2rank data fetch"):
        read(tmp_path / "nowhere")
