"""Columns, ids, times, quotes and encodings that a plain file may have."""

import gzip
import json

import polars as pl
import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.sources.rows import times
from r2rank_jax.data.sources.rows.ids import canonical_id, canonical_ids
from r2rank_jax.data.sources.source import Quarantine, open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write


def log(tmp_path, text, name="log.csv", **settings):
    return open_source(write(tmp_path / name, text), **settings)


# Columns


def test_any_line_of_json_may_be_the_first_with_a_column(tmp_path):
    lines = [{"user": "a", "item": "x", "timestamp": 5}, {"user": "a", "item": "y", "timestamp": 6, "rating": 4}]
    lines += [{"user": "b", "item": "x", "timestamp": 7, "title": "X"}]
    source = log(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "log.jsonl")
    assert rows(source) == [("a", "x", None, 5), ("a", "y", 4.0, 6), ("b", "x", None, 7)]
    assert {item: row["title"] for item, row in items(source).items()} == {"x": "X", "y": ""}


def test_a_malformed_first_line_of_json_is_set_aside_as_any_other(tmp_path):
    text = '{"user"\n' + '{"user":"a","item":"x","rating":3}\n'
    refused = Quarantine(tmp_path / "q.jsonl")
    assert rows(log(tmp_path, text, "log.jsonl", on_error=refused)) == [("a", "x", 3.0, 0)]
    assert refused.counts == {"log.jsonl": 1}


@pytest.mark.parametrize("header", ["user,item,rating,rating", "user,item,user", 'user,item,"a,b","a,b"'])
def test_two_columns_of_one_name_are_refused_by_name(tmp_path, header):
    with pytest.raises(
        DataError, match=r"line 1: each column must have its own name, got '(rating|user|a,b)' more than"
    ):
        log(tmp_path, header + "\na,x,1,1\n")


def test_two_fields_of_one_name_in_an_atomic_file_are_refused_by_name(folder):
    write(folder / "x.inter", "user_id:token\titem_id:token\titem_id:token\n1\t2\t3\n")
    with pytest.raises(DataError, match="line 1: each field must have its own name, got 'item_id' more than once"):
        open_source(folder)


def test_columns_without_a_name_may_repeat(tmp_path):
    assert rows(log(tmp_path, "user,item,,\na,x,,\n")) == [("a", "x", None, 0)]


def test_one_column_cannot_be_two_things(tmp_path):
    with pytest.raises(DataError, match="--column must give each of user and item its own column, got 'id' for both"):
        log(tmp_path, "id\n1\n", columns={"user": "id", "item": "id"})


@pytest.mark.parametrize("flag", ["time_unit", "quote", "columns"])
def test_flags_of_other_formats_are_refused(folder, flag):
    write(folder / "u.data", "196\t1\t3\t881250949\n")
    write(folder / "u.item", "1|Toy Story (1995)|01-Jan-1995||http://x|" + "|".join("0" * 19) + "\n")
    value = {"time_unit": "s", "quote": "none", "columns": {"user": "u"}}[flag]
    with pytest.raises(DataError, match="got a source of kind movielens, whose format is fixed; omit --"):
        open_source(folder, **{flag: value})


# Ids


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        *[("1.0", "1"), ("1.00", "1"), ("0.0", "0"), ("-3.0", "-3"), (" 1 ", "1"), ("10", "10")],
        *[("007", "007"), ("007.0", "007.0"), ("1.5", "1.5"), ("1.10", "1.10"), ("1e3", "1e3"), ("v1.0", "v1.0")],
        *[("9" * 40 + ".0", "9" * 40), ("-0.0", "-0.0"), ("", ""), (" \t", "")],
    ],
)
def test_an_integral_number_is_the_integer(text, canonical):
    assert canonical_id(text) == canonical
    assert canonical_ids(pl.Series([text, "x.0"])).to_list() == [canonical, "x.0"]
    assert canonical_ids(pl.Series([text])).to_list() == [canonical]


def test_ids_meet_in_all_forms_of_a_number(folder):
    lines = ['{"user": 1, "item": 1.0}', '{"user": "1.0", "item": "1"}', '{"user": 1.0, "item": 1}']
    # A name that is there twice makes the reader look at each line by itself, which must give the same.
    for more in ("", '{"user": "user", "item": "item"}\n', "\n"):
        write(folder / "interactions.jsonl", "\n".join(lines) + "\n" + more)
        write(folder / "items.csv", "item,title\n1.0,One\n")
        source = open_source(folder)
        assert [row[:2] for row in rows(source)][:3] == [("1", "1")] * 3
        assert items(source)["1"]["title"] == "One"


def test_parquet_ids_may_be_floats(folder):
    folder.mkdir()
    pl.DataFrame({"user": [1.0, 12345678.0], "item": [1e15, 2.0]}).write_parquet(folder / "interactions.parquet")
    write(folder / "items.csv", "item,title\n2,Two\n2.0,Again\n")
    source = open_source(folder)
    assert [row[:2] for row in rows(source)] == [("1", "1000000000000000"), ("12345678", "2")]
    with pytest.raises(DataError, match=r"items\.csv, line 3: item_id '2' repeats"):
        items(source)


@pytest.mark.parametrize("value", ["", " ", "a\x00b"])
def test_ids_that_are_none_are_malformed(tmp_path, value):
    with pytest.raises(DataError, match=r"log\.csv, line 3: user must not (be missing or empty|hold NUL)"):
        rows(log(tmp_path, f"user,item\na,x\n{value},x\n"))


@pytest.mark.parametrize("value", ["NaN", "[1]", "null", '" "'])
def test_json_ids_that_are_none_are_malformed(tmp_path, value):
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: item must"):
        rows(log(tmp_path, f'{{"user": "a", "item": {value}}}\n', "log.jsonl"))


# Times


def test_a_zero_in_the_first_row_does_not_decide_on_the_unit(tmp_path):
    text = "user,item,timestamp\na,x,0\na,y,1700000000000\nb,x,1700000001000\n"
    source = log(tmp_path, text)
    assert source.time_unit == "ms" and [row[3] for row in rows(source)] == [0, 1700000000000, 1700000001000]


def test_dates_without_dashes_are_refused(tmp_path):
    text = "user,item,timestamp\n" + "".join(f"a,x{k},202401{k:02d}\n" for k in range(10, 20))
    with pytest.raises(DataError, match="20240110, a date without dashes; write the dates with dashes, or give --time"):
        log(tmp_path, text)


@pytest.mark.parametrize(("first", "day"), [(19_700, "1970-01-01"), (28_400_000, "1970-11-25")])
def test_times_long_before_1980_are_reported(tmp_path, capsys, first, day):
    source = log(tmp_path, "user,item,timestamp\n" + "".join(f"a,x{k},{first + k}\n" for k in range(9)))
    assert source.time_unit == "s" and len(rows(source)) == 9
    printed = capsys.readouterr().err
    assert f"is read in seconds, so half of the times are before {day}; if they have another unit" in printed


def test_seconds_among_milliseconds_are_malformed_even_if_the_unit_is_given(tmp_path):
    refused = Quarantine(tmp_path / "q.jsonl")
    text = "user,item,timestamp\n" + "".join(f"a,x{k},{1_700_000_000_000 + k}\n" for k in range(9)) + "b,y,1700000000\n"
    source = log(tmp_path, text, on_error=refused, time_unit="ms")
    assert len(rows(source)) == 9


def test_a_few_absurd_times_do_not_decide_on_the_unit(tmp_path):
    absurd = [-62135596800000, 10**17, 1700000000000, -1]
    usual = [1_700_000_000 + k for k in range(9)]
    refused = Quarantine(tmp_path / "q.jsonl")
    text = "user,item,timestamp\n" + "".join(f"a,x{k},{k}\n" for k in absurd + usual)
    source = log(tmp_path, text, on_error=refused)
    assert source.time_unit == "s" and [row[3] for row in rows(source)] == usual
    assert refused.counts == {"log.csv": len(absurd)}


def test_seconds_among_milliseconds_are_malformed(tmp_path):
    text = "user,item,timestamp\n" + "".join(f"a,x,{1700000000000 + k}\n" for k in range(5)) + "a,y,1700000000\n"
    with pytest.raises(DataError, match=r"line 7: timestamp must be a time in milliseconds .*--time-unit"):
        rows(log(tmp_path, text))


def test_the_unit_of_time_can_be_given(tmp_path):
    text = "user,item,timestamp\na,x,1000\na,y,2000\n"
    assert log(tmp_path, text).time_unit == "s"
    source = log(tmp_path, text, time_unit="ms")
    assert source.time_unit == "ms" and [row[3] for row in rows(source)] == [1000, 2000]


def test_atomic_files_may_have_milliseconds(folder):
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    write(folder / "x.inter", head + "1\t2\t0\n1\t3\t1700000000000\n1\t4\t1700000000001.0\n")
    source = open_source(folder)
    assert source.time_unit == "ms" and [row[3] for row in rows(source)] == [0, 1700000000000, 1700000000001]


def test_dates_of_all_forms_may_stand_in_one_column(tmp_path):
    forms = {
        "1970-01-02": 86_400_000,
        "1970-01-02 00:00": 86_400_000,
        "1970-01-02 00:00:01": 86_401_000,
        "1970-01-02T00:00:01Z": 86_401_000,
        "1970-01-02T00:00:01.5": 86_401_500,
        "1970-01-02T00:00:01.250000+00:00": 86_401_250,
        "1970-01-02T02:00:01,000001+02": 86_401_000,
        "1970-01-01T20:30:01.7-0330": 86_401_700,
        "1970-01-02 00:00:01 UTC": 86_401_000,
    }
    text = "user,item,timestamp\n" + "".join(f'a,x,"{form}"\n' for form in forms)
    source = log(tmp_path, text)
    assert source.time_unit == "ms" and [row[3] for row in rows(source)] == list(forms.values())


@pytest.mark.parametrize("bad", ["0001-01-01", "1969-12-31", "2100-01-01", "2001-13-01", "2001-01-01T25:00:00", "5"])
def test_absurd_dates_are_malformed(tmp_path, bad):
    text = f"user,item,timestamp\na,x,2001-01-01\na,x,2001-01-02\na,x,{bad}\n"
    with pytest.raises(DataError, match=r"line 4: timestamp must be a date as .*from 1970 to 2100, got"):
        rows(log(tmp_path, text))


def test_a_late_fraction_is_not_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(times, "SAMPLED", 2)
    text = "user,item,timestamp\na,x,2001-01-01\na,y,2001-01-02\na,z,2001-01-03T00:00:00.5\n"
    with pytest.raises(DataError, match=r"line 4: timestamp must have no fraction of a second .*--time-unit ms"):
        rows(log(tmp_path, text))
    assert rows(log(tmp_path, text, time_unit="ms"))[2][3] % 1000 == 500


# Lines and quotes


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl"])
@pytest.mark.parametrize("blank", ["\n", "  \n", "\r\n"])
def test_blank_lines_are_ignored_anywhere(tmp_path, name, blank):
    if name == "log.jsonl":
        lines = ['{"user":"a","item":"x","rating":1}\n', '{"user":"b","item":"y","rating":2}\n']
    else:
        mark = "," if name == "log.csv" else "\t"
        lines = [mark.join(line) + "\n" for line in (("user", "item", "rating"), ("a", "x", "1"), ("b", "y", "2"))]
    text = blank.join(lines) + 2 * blank + " "
    assert rows(log(tmp_path, text, name)) == [("a", "x", 1.0, 0), ("b", "y", 2.0, 0)]


def test_a_quote_in_an_unquoted_file_names_the_flag(tmp_path):
    text = 'user\titem\ttitle\na\tx\t"Weird Al" live\na\ty\t"Heroes\nb\tz\tthe 12" mix"\n'
    with pytest.raises(DataError, match=r"line 2: expected fields in closed quotes.* set --quote none"):
        rows(log(tmp_path, text, "log.tsv"))
    table = items(log(tmp_path, text, "log.tsv", quote="none"))
    assert [row["title"] for row in table.values()] == ['"Weird Al" live', '"Heroes', 'the 12" mix"']


def test_two_quotes_on_two_lines_of_a_tsv_are_not_one_field(tmp_path):
    text = 'user\titem\ttitle\na\tx\t"Heroes\nb\ty\tthe mix"\n'
    with pytest.raises(DataError, match=r"line 2: .*--quote none"):
        rows(log(tmp_path, text, "log.tsv"))


def test_the_flags_reach_the_reader(tmp_path, capsys):
    text = "user\titem\ttimestamp\ttitle\n" + "".join(
        f'u{user}\ti{item}\t{1000 * item + 1}\t"T" {item}\n' for user in range(4) for item in range(user, user + 4)
    )
    command = ["data", "prepare", "--source", str(write(tmp_path / "log.tsv", text)), "--out", str(tmp_path / "out")]
    command += ["--candidates", "3", "--workers", "1"]
    assert main(command) == 2 and "--quote none" in capsys.readouterr().err
    assert main([*command, "--quote", "none", "--time-unit", "ms"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["time_unit"] == "ms" and manifest["settings"]["quote"] == "none"


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_encodings_are_refused_in_one_line(tmp_path, encoding, packed):
    data = "user,item\na,x\nb,y\n".encode(encoding)
    (tmp_path / "log.csv").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=r"log\.csv must be UTF-8 text, gzipped or not, got (UTF-|many NUL)"):
        open_source(tmp_path / "log.csv")


def test_latin_1_is_refused_by_line_or_header(tmp_path):
    with pytest.raises(DataError, match="line 2: expected UTF-8 text, got byte 0xe9"):
        rows(log(tmp_path, "user,item\né,x\n".encode("latin-1")))
    with pytest.raises(DataError, match="line 1: expected UTF-8 text"):
        log(tmp_path, "user,item,année\na,x,1\n".encode("latin-1"))


def test_line_ends_of_carriage_returns_are_read(tmp_path):
    assert rows(log(tmp_path, "user,item\ra,x\rb,y\r")) == [("a", "x", None, 0), ("b", "y", None, 0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "line 1: expected the names of the columns, got an empty line"),
        ("log.csv", b"PK\x03\x04....", "got a zip archive: unpack it"),
        ("log.jsonl", b"", "must hold one JSON object per line, got ''"),
        ("log.parquet", b"", "must be a complete Parquet file, got"),
        ("log.parquet", b"PAR1" + b"\x00" * 40, "must be a complete Parquet file, got"),
        ("log.csv", b"PAR1" + b"\x00" * 40, "got a Parquet file"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_nested_parquet_columns_are_refused(tmp_path):
    pl.DataFrame({"user": [["a"]], "item": ["x"]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="column 'user' must hold text, numbers or times, got List"):
        rows(open_source(tmp_path / "log.parquet"))
