import json

import pytest

from r2rank_jax.data.sources.source import Quarantine, open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write

META_2014 = (
    "{'asin': '0001048791', 'salesRank': {'Books': 6334800}, 'imUrl': 'http://x/1.jpg', 'categories': [['Books', "
    "'Plays'], ['Books', 'Drama']], 'title': 'The Crucible: Performed by Stuart Pankin, Jerome Dempsey &amp; Cast'}\n"
    "{'asin': '0000143561', 'categories': [['Movies & TV', 'Movies']], 'description': '3Pack DVD set - \\'Italian\\' "
    "\\/ more', 'price': 12.99, 'related': {'also_viewed': ['B0036FO6SI']}, 'brand': u'Caf\\xe9'}\n"
)
RATINGS_2014 = "A39HTATAQ9V7YF,0001048791,5.0,1369699200\nA3JM6GV9MNOF9X,0000143561,3.0,1355443200\n"


def test_2014_metadata_is_a_python_literal_and_ratings_are_user_item(folder):
    write(folder / "ratings_Books.csv", RATINGS_2014)
    write(folder / "meta_Books.json.gz", META_2014)
    source = open_source(folder)
    assert (source.name, source.domain, source.time_unit) == ("amazon-2014/Books", "books", "s")
    assert rows(source) == [
        ("A39HTATAQ9V7YF", "0001048791", 5.0, 1369699200),
        ("A3JM6GV9MNOF9X", "0000143561", 3.0, 1355443200),
    ]
    table = items(source)
    assert table["0001048791"]["title"] == "The Crucible: Performed by Stuart Pankin, Jerome Dempsey & Cast"
    assert table["0001048791"]["genres"] == ["Books", "Plays", "Drama"]
    assert table["0000143561"]["title"] == ""
    assert table["0000143561"]["details"] == [("brand", "Café"), ("price", "12.99")]
    assert source.counts["texts with HTML entities"] == 1 and source.counts["items without a title"] == 1


def test_metadata_is_never_evaluated(folder, tmp_path):
    write(folder / "ratings_Books.csv", RATINGS_2014)
    evil = "{'asin': '0000000001', 'title': open('%s', 'w').write('x')}\n" % (tmp_path / "pwned")
    write(folder / "meta_Books.json.gz", META_2014 + evil + "{'asin': " + "[" * 5000 + "\n" + "{'asin': 1}}\n")
    refused = Quarantine(tmp_path / "quarantine.jsonl")
    assert len(items(open_source(folder, on_error=refused))) == 2
    assert refused.counts == {"meta_Books.json.gz": 3}
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["reviews_Video_Games.json.gz", "reviews_Video_Games_5.json.gz"])
def test_2014_reviews_are_json_or_literals(folder, name):
    review = {
        "reviewerID": "A2HD75EMZR8QLN",
        "asin": "0700099867",
        "reviewerName": "123",
        "helpful": [8, 12],
        "reviewText": "Installing the game was a struggle\nbut",
        "overall": 1.0,
        "summary": "Pay to unlock content? I don't think so.",
        "unixReviewTime": 1341792000,
        "reviewTime": "07 9, 2012",
    }
    wanted = [("A2HD75EMZR8QLN", "0700099867", 1.0, 1341792000)]
    for text in (json.dumps(review), repr(review)):
        write(folder / name, text + "\n")
        source = open_source(folder)
        assert source.name == "amazon-2014/Video_Games" and source.domain == "games"
        assert rows(source) == wanted
        assert items(source) == {} and source.notes == ("no table of items: no item has a title",)


META_2018 = [
    {
        "category": ["Video Games", "PC", "</span></span>"],
        "title": "Mass Effect<span id='x",
        "brand": "EA",
        "price": "$7.86",
    }
    | {"asin": "B000000001", "rank": ["#1 in Games"], "main_cat": "Video Games", "also_buy": []},
    {"category": [], "title": "var aPageStart = (new Date()).getTime();", "brand": "", "asin": "B000000002"}
    | {"price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget"},
    {"category": [], "title": "Tom &amp;amp; Jerry &lt;3", "asin": "B000000003", "price": ""},
    {"category": [], "title": "Second row of one id", "asin": "B000000001"},
]


def test_2018_ratings_are_item_user_and_metadata_has_remains_of_markup(folder):
    write(
        folder / "Video_Games.csv",
        "B000000001,A1HP7NVNPFMA4N,5.0,1444262400\nB000000002,A1JGAP0185YJI6,4.0,1437004800\n",
    )
    write(folder / "meta_Video_Games.json.gz", "".join(json.dumps(row) + "\n" for row in META_2018))
    source = open_source(folder)
    assert source.name == "amazon-2018/Video_Games"
    assert rows(source) == [
        ("A1HP7NVNPFMA4N", "B000000001", 5.0, 1444262400),
        ("A1JGAP0185YJI6", "B000000002", 4.0, 1437004800),
    ]
    table = items(source)
    assert table["B000000001"]["title"] == "Mass Effect" and table["B000000001"]["genres"] == ["Video Games", "PC"]
    assert table["B000000001"]["details"] == [("brand", "EA"), ("price", "$7.86")]
    assert table["B000000002"]["title"] == "" and table["B000000002"]["details"] == []
    assert table["B000000003"]["title"] == "Tom & Jerry <3"
    counted = {
        "texts with HTML entities": 1,
        "texts with HTML markup": 3,
        "items without a title": 1,
        "prices that are none": 1,
        "item rows that repeat an id: the first was kept": 1,
    }
    assert source.counts == counted
    items(source)
    assert source.counts == counted, "a second reading counts anew"


def test_2018_reviews(folder):
    review = {
        "overall": 5.0,
        "vote": "2",
        "verified": True,
        "reviewTime": "10 17, 2015",
        "reviewerID": "A1HP7NVNPFMA4N",
    }
    review |= {"asin": "0700026657", "style": {"Size:": " M"}, "reviewText": "x", "unixReviewTime": 1445040000}
    write(folder / "Video_Games_5.json.gz", json.dumps(review) + "\n")
    source = open_source(folder)
    assert source.name == "amazon-2018/Video_Games"
    assert rows(source) == [("A1HP7NVNPFMA4N", "0700026657", 5.0, 1445040000)]


def test_the_column_order_of_another_edition_is_refused(folder):
    # The first user id happens to be as long as an item id, so the first line does not show the swap.
    write(folder / "ratings_X.csv", "B000000001,A000000001,5.0,1\nB000000002,A1HP7NVNPFMA4N,5.0,1\n")
    with pytest.raises(DataError, match=r"users and items look swapped .*name the file as its edition does"):
        rows(open_source(folder))


USER = "AGKASBHYZPGTEPO6LWZPVJWB2BVA"
REVIEW_2023 = {
    "rating": 5.0,
    "title": "Headline of the review, not of the product",
    "text": "line\nend \u2028 and \ud83d\ude00",
    "images": [{"small_image_url": "x"}],
    "asin": "B00VARIANT",
    "parent_asin": "B00PARENT1",
    "user_id": USER,
    "timestamp": 1595007831000,
    "helpful_vote": 0,
    "verified_purchase": True,
}
META_2023 = {
    "main_category": "Books",
    "title": "Chaucer",
    "subtitle": "Hardcover",
    "author": {"avatar": "x", "name": "Peter Ackroyd", "about": []},
    "price": 8.23,
    "store": "Peter Ackroyd (Author)",
    "categories": ["Books", "Literature & Fiction", "History &amp; Criticism"],
    "details": {"Publication date": "January 4, 2005", "Dimensions": "1"},
    "parent_asin": "B00PARENT1",
    "bought_together": None,
}


def test_2023_joins_on_parent_asin_and_keeps_milliseconds(folder):
    write(
        folder / "Books.jsonl.gz",
        json.dumps(REVIEW_2023) + "\n" + json.dumps(REVIEW_2023 | {"timestamp": 1595007831001}),
    )
    others = [
        {"parent_asin": "B00PARENT2", "title": None, "price": "—", "author": None, "store": None, "categories": []},
        {"parent_asin": "B00PARENT3", "title": "T\ud800x", "price": None, "author": "A. Name", "details": {}},
    ]
    write(folder / "meta_Books.jsonl.gz", "".join(json.dumps(row) + "\n" for row in [META_2023, *others]))
    source = open_source(folder)
    assert (source.name, source.domain, source.time_unit) == ("amazon-2023/Books", "books", "ms")
    assert rows(source) == [
        (USER, "B00PARENT1", 5.0, 1595007831000),
        (USER, "B00PARENT1", 5.0, 1595007831001),
    ]
    table = items(source)
    assert table["B00PARENT1"] == {
        "item": "B00PARENT1",
        "title": "Chaucer",
        "year": "2005",
        "genres": ["Books", "Literature & Fiction", "History & Criticism"],
        "details": [("author", "Peter Ackroyd"), ("store", "Peter Ackroyd (Author)"), ("price", "8.23")],
    }
    assert table["B00PARENT2"]["title"] == "" and table["B00PARENT2"]["details"] == []
    assert table["B00PARENT3"]["title"] == "T�x", "an unpaired surrogate is replaced"
    assert table["B00PARENT3"]["details"] == [("author", "A. Name")]


HEADER = "user_id,parent_asin,rating,timestamp"


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("history", [True, False])
def test_2023_benchmark_parts_are_read_in_order_as_one_source(folder, header, history):
    parts = {
        "train": [("B000000001", 1, ""), ("B000000002", 2, "B000000001")],
        "valid": [("B000000003", 3, "B000000001 B000000002")],
        "test": [("B000000004", 4, "B000000001 B000000002 B000000003")],
    }
    for name, lines in parts.items():
        head = HEADER + ",history\n" if history else HEADER + "\n"
        text = (head if header else "") + "".join(
            f"{USER},{item},5.0,159500783100{time}" + (f",{before}\n" if history else "\n")
            for item, time, before in lines
        )
        write(folder / f"Gift_Cards.{name}.csv.gz", text)
    source = open_source(folder)
    assert source.name == "amazon-2023/Gift_Cards"
    assert rows(source) == [(USER, f"B00000000{k}", 5.0, 1595007831000 + k) for k in (1, 2, 3, 4)]


def test_two_formats_of_one_category_are_refused(folder):
    write(folder / "Books.jsonl.gz", json.dumps(REVIEW_2023) + "\n")
    write(folder / "Books.csv", HEADER + f"\n{USER},B000000001,5.0,1595007831000\n")
    with pytest.raises(DataError, match="got files of 2: amazon-2023, amazon-2023"):
        open_source(folder)
    assert rows(open_source(folder / "Books.csv")) == [(USER, "B000000001", 5.0, 1595007831000)]


def test_a_category_that_is_one_text_is_one_genre(folder):
    write(folder / "Toys.csv", "0000000001,A1,5.0,1369699200\n")
    write(folder / "meta_Toys.json", '{"asin": "0000000001", "title": "T", "category": "Action"}\n')
    assert items(open_source(folder))["0000000001"]["genres"] == ["Action"]
