"""Malformed rows are fatal or set aside, with file, line and reason. Both ways of parsing behave the same."""

import gzip
import json

import pytest

from r2rank_jax.data.sources.rows import reading
from r2rank_jax.data.sources.source import Quarantine, open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import rows, write

GOOD = [("u1", "B000000001", "5.0", "1444262400"), ("u2", "B000000002", "1.0", "1444262401")]


def tsv(folder, lines):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    write(folder / "x.inter", text.encode() + b"".join(lines))
    return "x.inter", 1


def csv(folder, lines):
    write(
        folder / "interactions.csv",
        b"user,item,rating,timestamp\n" + b"".join(line.replace(b"\t", b",") for line in lines),
    )
    return "interactions.csv", 1


def jsonl(folder, lines):
    keys = (b"user", b"item", b"rating", b"timestamp")
    shown = []
    for line in lines:
        end = b"\n" if line.endswith(b"\n") else b""
        fields = [b'"%s":"%s"' % pair for pair in zip(keys, line.removesuffix(b"\n").split(b"\t"))]
        shown.append(b"{" + b",".join(fields) + b"}" + end)
    write(folder / "interactions.jsonl", b"".join(shown))
    return "interactions.jsonl", 0


def line(*values):
    return "\t".join(values).encode() + b"\n"


BAD = {
    "rating": (line("u", "i", "good", "1"), "rating must be a number, got 'good'"),
    "nan": (line("u", "i", "nan", "1"), "rating must be a number, got 'nan'"),
    "infinite": (line("u", "i", "1e999", "1"), "rating must be a number, got '1e999'"),
    "time": (line("u", "i", "1", "today"), "timestamp must be a whole number, got 'today'"),
    "fraction": (line("u", "i", "1", "1.5"), "timestamp must be a whole number, got '1.5'"),
    "no time": (line("u", "i", "1", ""), "timestamp must be a whole number, got ''"),
    "negative": (line("u", "i", "1", "-5"), "timestamp must be a time in seconds from 1970 to 2100"),
    "too late": (line("u", "i", "1", "4102444800"), "timestamp must be a time in seconds from 1970 to 2100"),
    "much too late": (line("u", "i", "1", "9" * 20), "timestamp must be a time in seconds from 1970 to 2100"),
    "blank id": (line(" ", "i", "1", "1"), "must not be missing or empty"),
    "no user": (line("", "i", "1", "1"), "must not be missing or empty"),
    "no item": (line("u", "", "1", "1"), "must not be missing or empty"),
    "not text": (b"u\xff\ti\t1\t1\n", "expected UTF-8 text, got byte 0xff"),
}


@pytest.mark.parametrize("form", [tsv, csv, jsonl])
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_row_is_fatal_by_default_and_set_aside_on_request(folder, tmp_path, form, fault):
    bad, reason = BAD[fault]
    name, header = form(folder, [line(*GOOD[0]), bad, line(*GOOD[1])])
    with pytest.raises(DataError) as error:
        rows(open_source(folder))
    assert f"{name}, line {2 + header}: " in str(error.value) and reason in str(error.value)
    assert "--on-error=quarantine" in str(error.value)
    refused = Quarantine(tmp_path / "q.jsonl")
    source = open_source(folder, on_error=refused)
    assert [row[0] for row in rows(source)] == ["u1", "u2"]
    rows(source)
    (record,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert refused.counts == {name: 1}, "reading twice does not count twice"
    assert (record["file"], record["line"]) == (name, 2 + header) and reason in record["reason"]
    shown = bad.decode(errors="backslashreplace").rstrip().split("\t")
    assert all(value in record["text"] for value in shown)


@pytest.mark.parametrize("form", [tsv, csv])
@pytest.mark.parametrize(("bad", "got"), [(b"u\ti\t1\n", "got 3"), (b"u\ti\t1\t1\t1\n", "got 5"), (b"u\t\n", "got 2")])
def test_a_wrong_number_of_fields(folder, form, bad, got):
    name, _ = form(folder, [line(*GOOD[0]), bad, line(*GOOD[1])])
    with pytest.raises(DataError, match=rf"{name}, line 3: expected 4 (tab|comma)-separated fields .*{got}"):
        rows(open_source(folder))


def test_a_missing_field_and_an_extra_field_do_not_cancel_out(folder):
    tsv(folder, [b"u\ti\t1\n", b"u\ti\t1\t1\t1\n"])
    with pytest.raises(DataError, match=r"line 2: expected 4 tab-separated fields .*got 3"):
        rows(open_source(folder))


@pytest.mark.parametrize("form", [tsv, csv])
def test_a_last_line_without_a_line_end_is_refused_even_if_it_looks_complete(folder, form):
    name, _ = form(folder, [line(*GOOD[0]), line(*GOOD[1])[:-4]])
    with pytest.raises(DataError, match=rf"{name}, line 3: expected 4 fields and a line end, got the end of the file"):
        rows(open_source(folder))


@pytest.mark.parametrize(
    "text",
    [
        '{"user":"u","item":"i","rating":1,"timest',
        '{"user":"u"} {"user":"v"}\n',
        "[1,2]\n",
        '{"user":"u","item":"i","item":"j"}\n',
    ],
)
def test_truncated_json_and_values_other_than_objects_are_refused(folder, text):
    write(folder / "interactions.jsonl", '{"user":"u","item":"i","rating":1,"timestamp":1}\n' + text)
    with pytest.raises(
        DataError,
        match=r"interactions\.jsonl, line 2: expected (a complete object|an object with named|each field once)",
    ):
        rows(open_source(folder))


@pytest.mark.parametrize("value", ['["u"]', '{"a": 1}', "null"])
def test_an_id_must_be_a_single_value(folder, value):
    good = '{"user":"u","item":"i"}\n'
    write(folder / "interactions.jsonl", good + f'{{"user":{value},"item":"i"}}\n' + good)
    with pytest.raises(DataError, match=r"line 2: user must (be one value|not be missing or empty)"):
        rows(open_source(folder))


@pytest.mark.parametrize("form", [tsv, csv, jsonl])
def test_faults_in_many_chunks_are_all_reported_in_order(folder, tmp_path, monkeypatch, form):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 256)
    lines, wrong = [], []
    for k in range(400):
        if k % 13 == 5:
            wrong.append(k)
            lines.append(line(f"u{k}", "i", "x" if k % 2 else "nan", str(k)) if k % 3 else b"\xfe\n")
        else:
            lines.append(line(f"u{k}", "i", "1", str(k)))
    name, header = form(folder, lines)
    refused = Quarantine(tmp_path / "q.jsonl")
    found = rows(open_source(folder, on_error=refused))
    assert [row[3] for row in found] == [k for k in range(400) if k not in wrong]
    records = [json.loads(text) for text in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [record["line"] - 1 - header for record in records] == wrong
    assert refused.counts == {name: len(wrong)}


def test_no_quarantine_file_is_written_without_malformed_rows(folder, tmp_path):
    tsv(folder, [line(*GOOD[0])])
    rows(open_source(folder, on_error=Quarantine(tmp_path / "q.jsonl")))
    assert not (tmp_path / "q.jsonl").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:-8] + b"\0\0\0\0" + b[-4:]])
def test_a_damaged_gzip_file_is_always_refused(tmp_path, damage):
    path = tmp_path / "log.csv.gz"
    path.write_bytes(damage(gzip.compress(b"user,item\n" + b"a,x\n" * 5000)))
    with pytest.raises(DataError, match=r"log\.csv\.gz must be a complete gzip file, got"):
        rows(open_source(path, on_error=Quarantine(tmp_path / "q.jsonl")))


def test_a_file_with_one_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(reading, "LINE_BYTES", 5000)
    path = write(tmp_path / "log.csv", "user,item\na,x\n" + "a" * 20_000)
    with pytest.raises(DataError, match="line 3: a line must have at most 5,000 bytes"):
        rows(open_source(path))


def test_a_byte_order_mark_and_windows_line_ends_are_removed(tmp_path):
    path = write(tmp_path / "log.csv", b"\xef\xbb\xbfuser,item\r\na,x\r\nb,y\r\n")
    assert [row[:2] for row in rows(open_source(path))] == [("a", "x"), ("b", "y")]
