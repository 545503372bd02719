import json

import pytest

from r2rank_jax.data.sources.source import Quarantine, open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write

REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
REVIEW = (
    '{{"review_id":"KU_O5udG6zpxOg-VcAEodg","user_id":"mh_-eMZ6K5RLWhZyISBhwA","business_id":"XQfwVwDr-v0ZS3_CbbE5Xw",'
    '"stars":3.0,"useful":0,"funny":0,"cool":0,"text":"If you decide to eat here, \\"date\\": beware","date":"{}"}}\n'
)
BUSINESS = {"business_id": "XQfwVwDr-v0ZS3_CbbE5Xw", "name": "Turning Point of North Wales", "address": "1 &amp; 2"}
BUSINESS |= {"city": "North Wales", "state": "PA", "postal_code": "19454", "latitude": 40.2, "stars": 3.0}
BUSINESS |= {"attributes": None, "categories": "Restaurants, Breakfast & Brunch, Food", "hours": None}


def test_yelp_has_dates_as_text_and_categories_in_one(folder):
    write(folder / REVIEWS, REVIEW.format("2018-07-07 22:09:11") + REVIEW.format("1970-01-02 00:00:00"))
    write(
        folder / BUSINESSES,
        json.dumps(BUSINESS) + "\n" + json.dumps(BUSINESS | {"business_id": "b", "categories": None}),
    )
    source = open_source(folder)
    assert (source.name, source.domain, source.time_unit) == ("yelp", "places", "s")
    who = ("mh_-eMZ6K5RLWhZyISBhwA", "XQfwVwDr-v0ZS3_CbbE5Xw", 3.0)
    assert rows(source) == [(*who, 1531001351), (*who, 86400)]
    table = items(source)
    assert table["XQfwVwDr-v0ZS3_CbbE5Xw"]["genres"] == ["Restaurants", "Breakfast & Brunch", "Food"]
    assert table["XQfwVwDr-v0ZS3_CbbE5Xw"]["details"] == [("city", "North Wales"), ("state", "PA")]
    assert table["b"]["genres"] == []


def test_yelp_of_older_editions_has_days(folder):
    write(folder / f"{REVIEWS}.gz", REVIEW.format("1970-01-02"))
    write(folder / f"{BUSINESSES}.gz", json.dumps(BUSINESS) + "\n")
    source = open_source(folder)
    assert [row[3] for row in rows(source)] == [86400] and "times are days" in source.notes[0]


def test_a_date_in_another_format_is_malformed(folder):
    write(folder / REVIEWS, REVIEW.format("2018-07-07 22:09:11") + REVIEW.format("07/07/2018"))
    write(folder / BUSINESSES, json.dumps(BUSINESS) + "\n")
    with pytest.raises(DataError, match=r"line 2: date must be a date as 2024-05-31 .*, got '07/07/2018'"):
        rows(open_source(folder))


STEAM_REVIEWS = (
    "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0, "
    "u'date': u'2017-12-17', u'text': u'This would not be \\xe9 \\ud83d\\ude00 {', u'page': 1}\n"
    "{u'username': u'Ariman1', u'hours': 51.1, u'user_id': u'76561198007483075', u'product_id': u'725280', "
    "u'date': u'1970-01-02', u'found_funny': 2, u'text': u\"don't\", u'compensation': u'Product received for free'}\n"
)
STEAM_GAMES = (
    "{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Casual'], u'app_name': u'Lost Summoner Kitty', u'title': "
    "u'Lost Summoner Kitty\\u2122', u'release_date': u'2018-01-04', u'tags': [u'Strategy'], u'price': 4.99, u'id': "
    "u'725280', u'developer': u'Kotoshiro', u'early_access': False}\n"
    "{u'app_name': u'Only App &amp; Name', u'id': u'12', u'price': u'Free To Play', u'tags': [u'Indie']}\n"
    "{u'app_name': u'Only App &amp; Name again', u'id': u'12'}\n"
)


def test_steam_has_python_2_literals_days_and_no_rating(folder):
    write(folder / "steam_reviews.json.gz", STEAM_REVIEWS)
    write(folder / "steam_games.json.gz", STEAM_GAMES)
    source = open_source(folder)
    assert (source.name, source.domain) == ("steam", "games")
    assert rows(source) == [("Chaos Syren", "725280", None, 1513468800), ("Ariman1", "725280", None, 86400)]
    assert any("no ratings" in note for note in source.notes) and any("days" in note for note in source.notes)
    table = items(source)
    assert table["725280"] == {
        "item": "725280",
        "title": "Lost Summoner Kitty™",
        "year": "2018",
        "genres": ["Action", "Casual"],
        "details": [("developer", "Kotoshiro"), ("publisher", "Kotoshiro"), ("price", "4.99")],
    }
    assert table["12"]["title"] == "Only App & Name" and table["12"]["genres"] == ["Indie"]
    assert source.counts["item rows that repeat an id: the first was kept"] == 1


def test_a_steam_game_without_an_id_is_set_aside_and_a_truncated_literal_refused(folder, tmp_path):
    write(folder / "steam_reviews.json.gz", STEAM_REVIEWS[:-30])
    write(folder / "steam_games.json.gz", STEAM_GAMES + "{u'app_name': u'No id'}\n")
    with pytest.raises(DataError, match=r"steam_reviews\.json\.gz, line 2: expected a complete object"):
        rows(open_source(folder))
    refused = Quarantine(tmp_path / "q.jsonl")
    assert len(items(open_source(folder, on_error=refused))) == 2
    (record,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert record["reason"] == "id must not be missing or empty" and record["line"] == 4
