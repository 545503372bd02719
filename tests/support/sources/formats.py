"""A tiny valid folder of every format that a reader exists for: kind -> file name -> content."""

from __future__ import annotations

import io
import json

import polars as pl

ITEMS = 8
ROWS = [
    (user, (user * 3 + k) % ITEMS, 1 + k % 5, 1_000_000_000 + 60 * (user + 7 * k))
    for user in range(4)
    for k in range(4)
]
GENRE_FLAGS = "|".join("1" if k in (1, 5) else "0" for k in range(19))


def _asin(item: int) -> str:
    return f"B{item:09d}"


def _user(user: int) -> str:
    return f"A{user:013d}"


def _lines(*values: object) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def _objects(records: list[dict[str, object]]) -> bytes:
    return _lines(*(json.dumps(record) for record in records))


def _log(mark: str) -> bytes:
    names = ("user", "item", "rating", "timestamp", "title", "genres")
    rows = [(f"u{u}", f"i{i}", r, t, f"Thing {i}", "Action|Drama") for u, i, r, t in ROWS]
    return _lines(mark.join(names), *(mark.join(map(str, row)) for row in rows))


def _table() -> bytes:
    return _lines("item,title,year,genres,brand", *(f'i{i},"Thing, no {i}",1999,A|B,Acme' for i in range(ITEMS)))


def _parquet() -> bytes:
    rows = [(*row, f"Thing {row[1]}") for row in ROWS]
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp", "title"], orient="row")
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="uncompressed")
    return buffer.getvalue()


_DAY = "2018-07-07"
_RECORDS = [{"user": f"u{u}", "item": i, "rating": r, "timestamp": t, "title": f"T{i}"} for u, i, r, t in ROWS]
_AMAZON = [{"user_id": _user(u), "parent_asin": _asin(i), "rating": r, "timestamp": t * 1000} for u, i, r, t in ROWS]
_REVIEWS_2014 = [{"reviewerID": _user(u), "asin": _asin(i), "overall": r, "unixReviewTime": t} for u, i, r, t in ROWS]
_META_2014 = [{"asin": _asin(i), "title": f"T{i}", "price": 1.5, "categories": [["Toys", "A"]]} for i in range(ITEMS)]
_META_2018 = [{"asin": _asin(i), "title": f"T{i}", "price": "$1.50", "category": ["Toys"]} for i in range(ITEMS)]
_META_2023 = [
    {"parent_asin": _asin(i), "title": f"T{i}", "store": "Acme", "categories": ["Toys"], "author": {"name": "N"}}
    | {"details": {"Release date": "May 1, 1999"}}
    for i in range(ITEMS)
]
SOURCES: dict[str, dict[str, bytes]] = {
    "plain csv": {"interactions.csv": _log(","), "items.csv": _table()},
    "plain tsv": {"interactions.tsv": _log("\t")},
    "plain jsonl": {
        "interactions.jsonl": _objects([dict(record) for record in _RECORDS]),
        "items.jsonl": _objects([{"item": i, "title": f"T{i}", "genres": ["A"], "brand": None} for i in range(ITEMS)]),
    },
    "plain parquet": {"interactions.parquet": _parquet()},
    "recbole": {
        "x.inter": _lines(
            "user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(map(str, row)) for row in ROWS)
        ),
        "x.item": _lines(
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            *(f"{i}\tFilm {i}, The\t1990\tComedy Drama" for i in range(ITEMS)),
        ),
    },
    "movielens 100k": {
        "u.data": _lines(*("\t".join(map(str, row)) for row in ROWS)),
        "u.item": _lines(*(f"{i}|Film {i} (1995)|01-Jan-1995||http://x|{GENRE_FLAGS}" for i in range(ITEMS))),
    },
    "movielens 1m": {
        "ratings.dat": _lines(*("::".join(map(str, row)) for row in ROWS)),
        "movies.dat": _lines(*(f"{i}::Film {i} (1995)::Drama|War" for i in range(ITEMS))),
    },
    "movielens latest": {
        "ratings.csv": _lines("userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ROWS)),
        "movies.csv": _lines("movieId,title,genres", *(f'{i},"Film {i}, The (1995)",Drama|War' for i in range(ITEMS))),
    },
    "amazon 2014": {
        "ratings_Toys.csv": _lines(*(f"{_user(u)},{_asin(i)},{r}.0,{t}" for u, i, r, t in ROWS)),
        "meta_Toys.json": _lines(*(repr(item) for item in _META_2014)),
    },
    "amazon 2014 reviews": {
        "reviews_Toys.json": _lines(*(repr(review) for review in _REVIEWS_2014)),
        "meta_Toys.json": _lines(*(repr(item) for item in _META_2014)),
    },
    "amazon 2018": {
        "Toys.csv": _lines(*(f"{_asin(i)},{_user(u)},{r}.0,{t}" for u, i, r, t in ROWS)),
        "meta_Toys.json": _objects([dict(item) for item in _META_2018]),
    },
    "amazon 2023": {
        "Toys.csv": _lines(
            "user_id,parent_asin,rating,timestamp,history",
            *(f"{_user(u)},{_asin(i)},{r}.0,{t}000," for u, i, r, t in ROWS),
        ),
        "meta_Toys.jsonl": _objects([dict(item) for item in _META_2023]),
    },
    "amazon 2023 reviews": {
        "Toys.jsonl": _objects([dict(review) for review in _AMAZON]),
        "meta_Toys.jsonl": _objects([dict(item) for item in _META_2023]),
    },
    "yelp": {
        "yelp_academic_dataset_review.json": _objects(
            [
                {"user_id": _user(u), "business_id": _asin(i), "stars": r, "date": f"{_DAY} 22:09:{k:02d}"}
                for k, (u, i, r, _) in enumerate(ROWS)
            ]
        ),
        "yelp_academic_dataset_business.json": _objects(
            [{"business_id": _asin(i), "name": f"T{i}", "city": "P", "categories": "Food, Bar"} for i in range(ITEMS)]
        ),
    },
    "steam": {
        "steam_reviews.json": _lines(
            *(
                repr({"username": f"u{u}", "product_id": f"{i}", "date": _DAY, "early_access": False})
                for u, i, *_ in ROWS
            )
        ),
        "steam_games.json": _lines(
            *(repr({"id": f"{i}", "title": f"G{i}", "genres": ["Action"], "price": 1.5}) for i in range(ITEMS))
        ),
    },
}
