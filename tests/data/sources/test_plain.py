import json
from collections import Counter

import polars as pl
import pytest

from r2rank_jax.data.sources.public.films import film_title
from r2rank_jax.data.sources.rows.items import ENTITIES, clean_text
from r2rank_jax.data.sources.schema import NO_ITEMS, NO_RATINGS, NO_TIMES
from r2rank_jax.data.sources.source import Quarantine, open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write

LOG = "user,item,rating,timestamp\na,x,5,100\nb,y,4.5,200\n"
WANTED = [("a", "x", 5.0, 100), ("b", "y", 4.5, 200)]


def test_a_csv_file_with_the_default_names_needs_no_mapping(folder):
    write(folder / "interactions.csv", LOG)
    write(folder / "items.csv", 'item,title,year,genres,brand\nx,"Say ""hi"", you",1999-01-02,A|B,Acme\ny,,,,\n')
    source = open_source(folder)
    assert (source.name, source.domain, source.time_unit, source.notes) == ("raw", "products", "s", ())
    assert rows(source) == WANTED
    table = items(source)
    assert (
        table["x"]["title"] == 'Say "hi", you' and table["x"]["year"] == "1999" and table["x"]["genres"] == ["A", "B"]
    )
    assert table["x"]["details"] == [("brand", "Acme")] and table["y"]["details"] == []


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_columns_are_mapped_and_other_columns_ignored(tmp_path, mark, suffix):
    lines = [("who", "note", "sku", "when", "stars"), ("a", "n1", "x", "100", "5"), ("b", "n2", "y", "200", "4.5")]
    path = write(tmp_path / f"clicks.csv{suffix}", "".join(mark.join(line) + "\n" for line in lines))
    columns = {"user": "who", "item": "sku", "timestamp": "when", "rating": "stars"}
    source = open_source(path, columns=columns)
    assert source.name == "clicks" and rows(source) == WANTED and source.notes == (NO_ITEMS,)


def test_jsonl_and_parquet_give_the_same_tables(tmp_path):
    records = [{"user": "a", "item": "x", "rating": 5, "timestamp": 100, "title": "X &amp; Y", "genres": ["A"]}]
    records += [{"user": "b", "item": "y", "rating": 4.5, "timestamp": 200, "title": "Y", "genres": []}]
    records += [{"user": "b", "item": "x", "rating": 1, "timestamp": 300, "title": "another", "genres": []}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    found = []
    for name in ("log.jsonl", "log.jsonl.gz"):
        source = open_source(write(tmp_path / name, lines))
        found.append((rows(source), items(source)))
    pl.DataFrame(records).write_parquet(tmp_path / "log.parquet")
    source = open_source(tmp_path / "log.parquet")
    found.append((rows(source), items(source)))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == [*WANTED, ("b", "x", 1.0, 300)]
    assert found[0][1]["x"]["title"] == "X & Y", "the first row of an item tells its title"


def test_parquet_may_have_numeric_ids_and_temporal_times(tmp_path):
    frame = pl.DataFrame({"u": [7, 8], "i": [1, 2], "t": ["1970-01-01 00:00:01.500", "1970-01-02 00:00:00.000"]})
    frame.with_columns(pl.col("t").str.to_datetime()).write_parquet(tmp_path / "log.parquet")
    source = open_source(tmp_path / "log.parquet", columns={"user": "u", "item": "i", "timestamp": "t"})
    assert source.time_unit == "ms" and source.notes == (NO_ITEMS, NO_RATINGS)
    assert rows(source) == [("7", "1", None, 1500), ("8", "2", None, 86_400_000)]


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("881250949", "s", 881250949),
        ("881250949.0", "s", 881250949),
        ("1595007831123", "ms", 1595007831123),
        ("1970-01-02", "s", 86400),
        ("1970-01-02 00:00:01", "s", 86401),
        ("1970-01-02T00:00:01Z", "s", 86401),
        ("1970-01-02T00:00:01.5Z", "ms", 86401500),
        ("1970-01-02T02:00:01+02:00", "s", 86401),
    ],
)
def test_the_unit_of_time_is_detected_from_the_first_row(tmp_path, text, unit, value):
    source = open_source(write(tmp_path / "log.csv", f"user,item,timestamp\na,x,{text}\n"))
    assert source.time_unit == unit and rows(source) == [("a", "x", None, value)]


@pytest.mark.parametrize("text", ["yesterday", "1595007831123456", "nan"])
def test_other_formats_of_time_are_refused(tmp_path, text):
    with pytest.raises(DataError, match=f"timestamp must be whole seconds.* got '{text}' in the first row"):
        open_source(write(tmp_path / "log.csv", f"user,item,timestamp\na,x,{text}\n"))


def test_fractions_of_seconds_are_refused(tmp_path):
    source = open_source(write(tmp_path / "log.csv", "user,item,timestamp\na,x,100\na,y,100.5\n"))
    with pytest.raises(DataError, match=r"line 3: timestamp must be a whole number, got '100\.5'"):
        rows(source)


def test_missing_ratings_and_times_are_reported(tmp_path):
    source = open_source(write(tmp_path / "log.csv", "user,item\na,x\n"))
    assert rows(source) == [("a", "x", None, 0)] and source.notes == (NO_ITEMS, NO_RATINGS, NO_TIMES)


def test_quoted_fields_may_hold_separators_quotes_and_line_ends(tmp_path):
    log = 'user,review,item\n"a,1","two\nlines, ""q""",x\nb,"one",y\n\u2028c,"\u2028\n\n",z\n'
    assert [row[:2] for row in rows(open_source(write(tmp_path / "log.csv", log)))] == [
        ("a,1", "x"),
        ("b", "y"),
        ("\u2028c", "z"),
    ]


def test_a_stray_quote_costs_only_one_line(tmp_path):
    log = 'user,review,item\na,n,x\nb,"n,y\n' + "".join(f"u{k},n,z\n" for k in range(300))
    refused = Quarantine(tmp_path / "q.jsonl")
    found = rows(open_source(write(tmp_path / "log.csv", log), on_error=refused))
    assert len(found) == 301 and refused.counts == {"log.csv": 1}
    (record,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert (record["line"], record["text"]) == (3, 'b,"n,y') and "closed quotes" in record["reason"]


def test_parquet_rows_with_missing_values_are_reported_by_number(tmp_path):
    frame = pl.DataFrame({"user": ["a", None, "c"], "item": ["x", "y", "z"], "rating": [1.0, 2.0, None]})
    frame.write_parquet(tmp_path / "log.parquet")
    refused = Quarantine(tmp_path / "q.jsonl")
    found = rows(open_source(tmp_path / "log.parquet", on_error=refused))
    assert found == [("a", "x", 1.0, 0), ("c", "z", None, 0)], "a row without a rating stays"
    found = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in found] == [(2, "user must not be missing or empty")]


def test_errors_about_wrong_names_list_the_columns(tmp_path):
    path = write(tmp_path / "log.csv", "who,item\na,x\n")
    with pytest.raises(DataError, match=r"must have a column 'user', got who, item; set .* --column user=NAME"):
        open_source(path)
    with pytest.raises(DataError, match=r"--column must name one of user, .* got usr"):
        open_source(path, columns={"usr": "who"})
    with pytest.raises(DataError, match=r"kind of source must be one of .* got 'csv'"):
        open_source(path, "csv")
    with pytest.raises(DataError, match="which does not exist"):
        open_source(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"must hold one known data set, got \['log\.csv'\]"):
        open_source(tmp_path)


def test_the_id_may_have_another_name_in_the_table_of_items(folder):
    write(folder / "interactions.csv", LOG)
    write(folder / "items.jsonl", '{"id": "x", "name": "N"}\n{"name": "no id"}\n')
    with pytest.raises(DataError, match=r"items\.jsonl must have a column 'item', .*--column items\.item=NAME"):
        open_source(folder)
    source = open_source(folder, columns={"items.item": "id", "title": "name"})
    with pytest.raises(DataError, match=r"items\.jsonl, line 2: id must not be missing or empty"):
        items(source)


def test_cleaning_removes_entities_and_control_characters():
    counts = Counter()
    assert clean_text("Tom\x00 &amp;amp;amp;amp; Jerry\x85", counts) == "Tom & Jerry"
    assert film_title("Tom &amp;amp;amp; Jerry, The\x7f", counts) == "The Tom & Jerry"
    assert counts == {ENTITIES: 2}
