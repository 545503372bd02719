"""Files of lists as spreadsheets and other systems write them: compressed, in other encodings, damaged."""

import codecs
import gzip
import json
import random

import pytest

from r2rank_jax.data.batches import request_text
from r2rank_jax.data.batches.requests import read_requests, without_history
from r2rank_jax.errors import DataError

RECORDS = [
    {"id": "ada", "history": [{"title": "Alien", "year": "1979", "rating": 5}], "candidates": [{"title": "Amélie"}]},
    {
        "id": "bob",
        "history": [{"title": "Line\u2028end"}],
        "candidates": [{"id": "m1", "title": "映画", "genres": "A"}],
    },
]
TEXT = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
MUTATIONS = 1000


def written(tmp_path, data, name="lists.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        gzip.compress(TEXT.encode()),
        codecs.BOM_UTF8 + TEXT.encode(),
        gzip.compress(codecs.BOM_UTF8 + TEXT.encode()),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        (TEXT + "\n \n\n").encode(),
        TEXT.rstrip("\n").encode(),
    ],
    ids=["plain", "gzip", "mark", "gzip-mark", "utf16", "utf16be", "utf32", "cr", "crlf", "blank", "no-last-end"],
)
def test_each_form_of_a_file_holds_the_same_lists(tmp_path, data):
    requests = read_requests(written(tmp_path, data))
    assert [request.id for request in requests] == ["ada", "bob"]
    assert [request.candidates[0].title for request in requests] == ["Amélie", "映画"]
    assert requests[1].history[0].title == "Line\u2028end"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            TEXT.encode("utf-8") + TEXT.split("\n")[0].encode("latin-1"),
            r"line 3: expected text in UTF-8, .*0xe9.*`iconv",
        ),
        (TEXT.replace("\n", "\r").split("\r")[0].encode("latin-1"), "line 1: expected text in UTF-8"),
        (TEXT.encode("utf-16-le"), r"line 1: expected text in UTF-8, got a NUL byte; convert .*UTF-16LE"),
        (TEXT.encode("utf-16")[:-1], "line 2: expected text in UTF-16"),
        (TEXT.encode() + b"\0\0\0", "line 3: expected text in UTF-8, got a NUL byte"),
        (gzip.compress(TEXT.encode())[:-9], "must be a complete gzip file.*cut off or damaged"),
        (gzip.compress(TEXT.encode())[:40] + b"?" * 90, "must be a complete gzip file"),
        (b"", "at least one list"),
        (b"\n \r\n", "at least one list"),
        (TEXT.encode() + TEXT.encode()[:30], "line 3: .* is not JSON"),
        (b"[" * 100_000, "line 1: .*nested too deeply"),
        (b'{"id": 1, "id": 2}', "line 1: .* names 'id' twice"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_remedy(tmp_path, data, message):
    with pytest.raises(DataError, match=f"lists.jsonl.*{message}") as caught:
        read_requests(written(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_requests(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="which is not a file"):
        read_requests(tmp_path)


def test_a_small_gzip_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(request_text, "TEXT_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1,000 bytes of text"):
        read_requests(written(tmp_path, gzip.compress(b"\n" * 1_000_000)))


def _mutated(rng):
    """A valid file with one to three faults in its bytes or its values."""
    values = [None, True, -1, 1e400, float("nan"), 10**400, "", "x", "\ud800", [], [[]], {}, {"title": "x"}, [None]]
    records = json.loads(json.dumps(RECORDS))
    for _ in range(rng.randrange(3)):
        place = records[rng.randrange(2)]
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(list(keys))
            if rng.random() < 0.4:
                place[key] = rng.choice(values)
                break
            place = place[key]
    text = "\n".join(json.dumps(record, ensure_ascii=rng.random() < 0.5) for record in records)
    data = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-16-be", "utf-32", "latin-1"]), "replace")
    data = gzip.compress(data, mtime=0) if rng.random() < 0.3 else data
    for _ in range(rng.randrange(3)):
        at, length = rng.randrange(len(data) + 1), rng.randrange(12)
        data = data[:at] + rng.randbytes(rng.randrange(6)) + data[at + length :]
    return data


def test_any_mutated_file_is_read_or_refused_in_one_line(tmp_path):
    rng, read = random.Random(0), 0
    for case in range(MUTATIONS):
        data = _mutated(rng)
        try:
            requests, _ = without_history(read_requests(written(tmp_path, data)))
            read += 1
        except DataError as error:
            assert "\n" not in str(error) and "lists.jsonl" in str(error), (case, data)
        else:  # what the answer repeats can be written
            "".join(c.id + c.title for request in requests for c in request.candidates).encode()
    assert MUTATIONS / 10 < read < MUTATIONS * 9 / 10, "the test must see both ends"
