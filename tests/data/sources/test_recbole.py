import pytest

from r2rank_jax.data.sources.schema import NO_ITEMS, NO_RATINGS, NO_TIMES
from r2rank_jax.data.sources.source import open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write


def test_ml_100k_keeps_its_title_rules(folder):
    write(
        folder / "ml-100k.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
    )
    write(
        folder / "ml-100k.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "267\tunkonwn\t\tunknown\n12\tUsual Suspects, The\t1995\tCrime Thriller\n",
    )
    source = open_source(folder)
    assert (source.name, source.domain, source.time_unit, source.notes) == ("ml-100k", "films", "s", ())
    assert rows(source) == [("196", "242", 3.0, 881250949)]
    assert items(source)["267"] | {"details": 0} == {"item": "267", "title": "", "year": "", "genres": [], "details": 0}
    assert items(source)["12"]["title"] == "The Usual Suspects"
    assert items(source)["12"]["genres"] == ["Crime", "Thriller"]


def test_a_source_without_ratings_times_or_items_is_read_with_notes(folder, capfd):
    write(folder / "pinterest.inter", "user_id:token\titem_id:token\n0\t9\n0\t7\n")
    source = open_source(folder)
    assert rows(source) == [("0", "9", None, 0), ("0", "7", None, 0)]
    assert items(source) == {}
    assert source.notes == (NO_ITEMS, NO_RATINGS, NO_TIMES)
    assert "pinterest: no times: all timestamps are 0" in capfd.readouterr().err


def test_field_names_of_yelp_steam_and_others_are_recognized(folder):
    write(
        folder / "yelp.inter",
        "review_id:token\tuser_id:token\tbusiness_id:token\tstars:float\tuseful:float\tdate:float\nr\tu\tb\t4.0\t0\t1.5e9\n",
    )
    write(
        folder / "yelp.item",
        "business_id:token\titem_name:token_seq\taddress:token_seq\tcity:token_seq\tcategories:token_seq\titem_stars:float\n"
        "b\tTom &amp; Co\t\tLas Vegas\tFood, Ice Cream\t3.5\n",
    )
    source = open_source(folder)
    assert source.domain == "places" and rows(source) == [("u", "b", 4.0, 1_500_000_000)]
    assert items(source)["b"] == {
        "item": "b",
        "title": "Tom & Co",
        "year": "",
        "genres": ["Food", "Ice Cream"],
        "details": [("city", "Las Vegas"), ("item_stars", "3.5")],
    }


def test_field_names_of_ml_10m_are_recognized(folder):
    write(
        folder / "ml-10m.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t122\t5\t838985046\n"
    )
    write(folder / "ml-10m.item", "item_id:token\tmovie_name:token_seq\ttype:token_seq\n122\tNet, The\tAction Sci-Fi\n")
    table = items(open_source(folder))
    assert table["122"]["title"] == "The Net" and table["122"]["genres"] == ["Action", "Sci-Fi"]


def test_unusual_names_are_given_as_columns(folder):
    write(folder / "x.inter", "who:token\twhat:token\tstrength:float\twhen:float\nu\ti\t2\t10\n")
    with pytest.raises(DataError, match=r"another field for the user, got 'who, what.*--column user=FIELD"):
        open_source(folder)
    columns = {"user": "who", "item": "what", "rating": "strength", "timestamp": "when"}
    assert rows(open_source(folder, columns=columns)) == [("u", "i", 2.0, 10)]


def test_parts_are_read_in_the_order_train_valid_test(folder):
    for part, item in (("test", 3), ("train", 1), ("valid", 2)):
        write(folder / f"x.{part}.inter", f"user_id:token\titem_id:token\ttimestamp:float\nu\t{item}\t{item}\n")
    source = open_source(folder)
    assert source.name == "x" and [row[1] for row in rows(source)] == ["1", "2", "3"]
    write(folder / "y.inter", "user_id:token\titem_id:token\nu\t1\n")
    with pytest.raises(DataError, match=r"exactly one \.inter file, or one each for train"):
        open_source(folder)


def test_a_header_without_types_is_refused(folder):
    write(folder / "x.inter", "user_id\titem_id\n1\t2\n")
    with pytest.raises(DataError, match="line 1: expected a tab-separated header with user_id:token"):
        open_source(folder)
