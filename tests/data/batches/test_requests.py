"""A user's own lists: what a line may contain, and the error if it cannot be used."""

import json
import re

import numpy as np
import pytest

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.requests import read_requests, request_batches, without_history
from r2rank_jax.data.prompts.prompts import Shown
from r2rank_jax.errors import DataError
from tests.support.hostile_titles import TITLES, read_prompt

DAY = 86_400


def write(tmp_path, *records):
    path = tmp_path / "lists.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return path


def decoded(tokenizer, batch, row, item):
    prefix = batch.prefix[row, : batch.prefix_length[row]].tolist()
    return tokenizer.decode([*prefix, *batch.suffix[row, item, : batch.suffix_length[row, item]].tolist()])


def test_details_and_times_reach_the_prompt(tmp_path, make_encoder):
    history = [
        {"title": "Catan", "rating": 5, "timestamp": 1_600_000_000},
        {"title": "Dixit", "year": 2008, "rating": None, "timestamp": 1_600_000_000 + 4 * DAY},
        {"title": "Azul", "rating": 3.5},
    ]
    candidate = {"title": "Go", "genres": ["Games"], "details": {"price": 9.5, "brand": "Nova", "color": None}}
    timed = {"history": history, "candidates": [candidate], "timestamp": 1_600_000_000 + 7 * DAY}
    untimed = {"history": history[:2], "candidates": [{"title": "Go"}]}
    requests = read_requests(write(tmp_path, timed, untimed))
    assert requests[0].history[1] == Shown("Dixit", "2008", None, "3 days before")
    tokenizer = make_encoder().tokenizer
    config = DataConfig(template="products-1", prefix_tokens=400, suffix_tokens=100)
    (batch,) = request_batches(tokenizer, config, requests, 2)
    assert decoded(tokenizer, batch, 0, 0).split("\n")[1:] == [
        "Catan 5, 7 days before",
        "Dixit (2008) -, 3 days before",
        "Azul 3.5",
        "Go; in Games; by Nova; price 9.5",
        "Reason:",
    ]
    lines = decoded(tokenizer, batch, 1, 0).split("\n")
    assert lines[1:3] == ["Catan 5, 4 days before", "Dixit (2008) -, minutes before"]
    (plain,) = request_batches(tokenizer, DataConfig(prefix_tokens=400, suffix_tokens=100), requests, 2)
    text = decoded(tokenizer, plain, 0, 0)
    assert "before" not in text and text.endswith("; Games\nReason:")


def test_hostile_lists_are_encoded_like_any_other(tmp_path, make_encoder):
    """Includes line ends inside a JSON string, escaped unpaired surrogates, and a leading byte order mark."""
    titles = [title for title in TITLES if len(title) < 10_000]
    records = [
        {"id": title, "history": [{"title": title, "rating": 4}], "candidates": [{"title": title, "genres": [title]}]}
        for title in titles
    ]
    path = tmp_path / "lists.jsonl"
    lines = [json.dumps(r, ensure_ascii=bool(re.search("[\ud800-\udfff]", r["id"]))) for r in records]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8", newline="\n")
    requests = read_requests(path)
    assert len(requests) == len(titles)
    "".join(request.id + request.candidates[0].title for request in requests).encode("utf-8")
    tokenizer = make_encoder().tokenizer
    config = DataConfig(prefix_tokens=2000, suffix_tokens=2000)
    for batch in request_batches(tokenizer, config, requests, 16):
        for row in np.flatnonzero(batch.user >= 0):
            assert len(read_prompt(decoded(tokenizer, batch, row, 0), "films-1").history) == 1


GOOD = {"history": [{"title": "A", "rating": 4}], "candidates": [{"title": "B"}]}


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([{"title": "A", "rating": 4, "timestamp": t} for t in (9, 8)], r"not in order.*: \[9, 8, 10\]"),
        ([{"title": "A", "rating": 4, "timestamp": 11}], r"not in order, oldest first and .* last: \[11, 10\]"),
        ([{"title": "A", "timestamp": 1e400}], "inf as timestamp of interaction 1, which is not a number"),
        ([{"title": "A", "timestamp": 1_600_000_000_000}], "1600000000000 as timestamp .* not in seconds"),
        ([{"title": "A", "rating": float("nan")}], "nan as rating of interaction 1, which is not a number"),
        ([{"title": "A", "rating": "good"}], "'good' as rating"),
        ([{"title": "A", "rating": True}], "True as rating"),
        ([{"title": "A", "rating": 10**400}], "as rating of interaction 1, which is not a number"),
        ([{"title": "A"}, {"rating": 4}], "lacks 'title' in interaction 2"),
        ([{"title": ["A"]}], r"\['A'\] as title of interaction 1, which is neither text nor a number"),
        ([{"title": float("nan")}], "nan as title"),
        ([{"title": "A", "year": {"of": 1995}}], "as year of interaction 1"),
        (["A"], "'A' as interaction 1, which must be an object"),
        ({"title": "A"}, "as history, which must be a list"),
        ("A", "'A' as history, which must be a list"),
    ],
)  # fmt: skip
def test_an_unusable_history_is_named_in_the_error(tmp_path, history, reason):
    bad = {"history": history, "candidates": [{"title": "B"}], "timestamp": 10}
    with pytest.raises(DataError, match=rf"lists\.jsonl, line 2: .*{reason}"):
        read_requests(write(tmp_path, GOOD, bad))


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "has no candidates"),
        (None, "None as candidates, which must be a list"),
        ("B", "'B' as candidates, which must be a list"),
        (["B"], "'B' as candidate 1, which must be an object"),
        ([{"title": "B"}, {}], "lacks 'title' in candidate 2"),
        ([{"title": "B", "id": ["b"]}], r"\['b'\] as id"),
        ([{"title": "B", "genres": 5}], "5 as genres of candidate 1, which must be a list"),
        ([{"title": "B", "genres": {"Action": 1}}], "as genres of candidate 1, which must be a list"),
        ([{"title": "B", "genres": [["Action"]]}], r"\['Action'\] as genres of candidate 1"),
        ([{"title": "B", "details": "LEGO"}], "'LEGO' as details of candidate 1, which must be an object"),
        ([{"title": "B", "details": {"brand": ["LEGO"]}}], r"\['LEGO'\] as brand of candidate 1"),
        ([{"id": "m1", "title": "B"}, {"id": "m1", "title": "C"}], r"twice: the id 'm1' \('B'\) and .* 'm1' \('C'\)"),
        ([{"id": 1, "title": "B"}, {"id": 1.0, "title": "C"}], "twice: the id '1'"),
        ([{"id": 1, "title": "B"}, {"title": "C"}], "twice: the id '1'"),
        ([{"title": "B"}, {"title": "C"}, {"title": "B"}], r"twice: the id '0' \('B'\) and the id '2'"),
    ],
)  # fmt: skip
def test_unusable_candidates_are_named_in_the_error(tmp_path, candidates, reason):
    with pytest.raises(DataError, match=rf"lists\.jsonl, line 2: .*{reason}"):
        read_requests(write(tmp_path, GOOD, GOOD | {"candidates": candidates}))


def test_one_value_is_read_as_it_stands_and_none_as_missing(tmp_path, make_encoder):
    """A genre is never its letters; an unrated interaction shows a dash; a table's 1995.0 is a year."""
    candidates = [
        {"title": "Heat", "genres": "Action", "year": 1995.0},
        {"title": "Up", "genres": "Comedy|Drama", "details": None},
        {"title": 1917, "genres": None, "year": None},
        {"title": "Heat", "genres": "Action", "year": 1995.0, "id": "twin"},
    ]
    history = [{"title": "Alien"}, {"title": "Big", "rating": ""}, {"title": "Fargo", "rating": "4.5"}]
    (request,) = read_requests(write(tmp_path, {"history": history, "candidates": candidates}))
    assert [c.genres for c in request.candidates[:3]] == [("Action",), ("Comedy", "Drama"), ()]
    config = DataConfig(template="films-2", prefix_tokens=400, suffix_tokens=100)
    tokenizer = make_encoder().tokenizer
    (batch,) = request_batches(tokenizer, config, [request], 1)
    lines = [decoded(tokenizer, batch, 0, item).split("\n") for item in range(3)]
    assert lines[0][1:4] == ["Alien -", "Big -", "Fargo 4.5"]
    assert [shown[4] for shown in lines] == ["Heat (1995); Action", "Up; Comedy, Drama", "1917"]


def test_a_user_without_a_history_is_set_aside(tmp_path):
    cold = [GOOD | {"id": "ada", "history": []}, GOOD | {"id": "bob", "history": None}]
    requests, set_aside = without_history(read_requests(write(tmp_path, cold[0], GOOD, cold[1])))
    assert [request.id for request in requests] == ["2"]
    assert [request.id for request in set_aside] == ["ada", "bob"]
