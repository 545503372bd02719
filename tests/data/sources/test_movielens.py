import pytest

from r2rank_jax.data.sources.public.films import without_year
from r2rank_jax.data.sources.source import open_source
from r2rank_jax.errors import DataError
from tests.support.sources.tables import items, rows, write

U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|"
    "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Cité des enfants perdus, La (1995)|01-Jan-1995||http://x|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0|0\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|"
    "0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "9|No Year Told|03-Feb-1994||http://x|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|1\n"
)
U_DATA = "196\t1\t3\t881250949\n186\t2\t3\t891717742\n196\t267\t1\t881250949\n"


def ml_100k(folder, data=U_DATA, table=U_ITEM):
    write(folder / "u.data", data)
    write(folder / "u.item", table.encode("latin-1"))
    write(folder / "u.user", "1|24|M|technician|85711\n")
    return folder


def test_100k_has_tabs_pipes_latin_1_and_24_columns(folder):
    source = open_source(ml_100k(folder))
    assert (source.name, source.domain, source.time_unit) == ("ml-100k", "films", "s")
    assert rows(source) == [
        ("196", "1", 3.0, 881250949),
        ("186", "2", 3.0, 891717742),
        ("196", "267", 1.0, 881250949),
    ]
    table = items(source)
    assert table["1"] == {
        "item": "1",
        "title": "Toy Story",
        "year": "1995",
        "genres": ["Animation", "Children's", "Comedy"],
        "details": [],
    }
    assert table["2"]["title"] == "La Cité des enfants perdus"
    assert (table["267"]["title"], table["267"]["year"], table["267"]["genres"]) == ("", "", [])
    assert table["1412"]["title"] == "Land Before Time III: The Time of the Great Giving"
    assert (table["9"]["year"], table["9"]["genres"]) == ("1994", ["Western"])
    assert source.counts["items without a title"] == 1


def test_1m_has_double_colons_and_latin_1(folder):
    write(folder / "ratings.dat", "1::1193::5::978300760\r\n1::661::3::978302109\r\n")
    movies = "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n661::Misérables, Les (1995)::Drama|Musical\n"
    write(folder / "movies.dat", movies.encode("latin-1"))
    source = open_source(folder)
    assert source.name == "ml-1m"
    assert rows(source) == [("1", "1193", 5.0, 978300760), ("1", "661", 3.0, 978302109)]
    assert items(source)["661"]["title"] == "Les Misérables"
    assert items(source)["661"]["genres"] == ["Drama", "Musical"]


def test_10m_is_utf_8_with_half_stars(folder):
    write(folder / "ratings.dat", "1::122::4.5::838985046\n")
    write(folder / "movies.dat", "122::Misérables, Les (1995)::Drama\n")
    write(folder / "tags.dat", "15::4973::excellent!::1215184630\n")
    source = open_source(folder)
    assert source.name == "ml-10m"
    assert rows(source) == [("1", "122", 4.5, 838985046)]
    assert items(source)["122"]["title"] == "Les Misérables"


MOVIES = (
    "movieId,title,genres\r\n"
    "1,Toy Story (1995),Adventure|Animation|Children\r\n"
    '11,"American President, The (1995)",Comedy|Drama|Romance\r\n'
    '29,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Sci-Fi\r\n'
    '40697,"""Great Performances"" Cats (1998)",Musical\r\n'
    "171749,Death Note: Desu nôto (2006–2007),(no genres listed)\r\n"
    "7,Ready Player One,Action\r\n"
)
RATINGS = "userId,movieId,rating,timestamp\r\n1,11,4.0,964982703\r\n1,1,4.5,964981247\r\n"


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-20m", "ml-25m", "ml-32m"])
def test_later_releases_are_csv_with_quoted_titles(tmp_path, name):
    folder = tmp_path / name
    write(folder / "ratings.csv", RATINGS)
    write(folder / "movies.csv", MOVIES)
    source = open_source(folder)
    assert source.name == name
    assert rows(source) == [("1", "11", 4.0, 964982703), ("1", "1", 4.5, 964981247)]
    table = items(source)
    assert table["11"]["title"] == "The American President"
    assert table["29"]["title"] == "The City of Lost Children"
    assert table["40697"]["title"] == '"Great Performances" Cats'
    assert (table["171749"]["title"], table["171749"]["year"]) == ("Death Note: Desu nôto", "2006")
    assert table["171749"]["genres"] == []
    assert (table["7"]["title"], table["7"]["year"]) == ("Ready Player One", "")


def test_gzipped_files_are_read(folder):
    write(folder / "ratings.csv.gz", RATINGS)
    write(folder / "movies.csv.gz", MOVIES)
    assert len(rows(open_source(folder))) == 2 and len(items(open_source(folder))) == 6


def test_an_error_names_the_missing_file(folder):
    write(folder / "u.data", U_DATA)
    with pytest.raises(DataError, match=r"must hold u\.data and u\.item \(or u\.item\.gz\), got no u\.item"):
        open_source(folder)


def test_an_unexpected_header_is_refused(folder):
    write(folder / "ratings.csv", RATINGS.replace("userId", "user"))
    write(folder / "movies.csv", MOVIES)
    with pytest.raises(DataError, match=r"ratings\.csv, line 1: expected the header userId,movieId,.* got 'user,"):
        open_source(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5|Short (1990)|0|0\n", r"u\.item, line 6: expected 24 \|-separated fields .* got 4"),
        ("5|Odd (1990)|01-Jan-1990||u|" + "|".join(["0"] * 18 + ["x"]) + "\n", "line 6: expected an id and 19 genres"),
        ("1|Again (1990)|01-Jan-1990||u|" + "|".join(["0"] * 19) + "\n", "line 6: item_id '1' repeats"),
        ("5|Cut (1990)|01-Jan-1990||u|" + "|".join(["0"] * 19), "line 6: expected 24 fields and a line end"),
    ],
)
def test_malformed_items_are_reported_by_line(folder, line, message):
    source = open_source(ml_100k(folder, table=U_ITEM + line))
    with pytest.raises(DataError, match=message):
        items(source)


def test_years_by_hand():
    assert without_year("Toy Story (1995)") == ("Toy Story", "1995")
    assert without_year("Fawlty Towers (1975-1979) ") == ("Fawlty Towers", "1975")
    assert without_year("2001: A Space Odyssey") == ("2001: A Space Odyssey", "")
    assert without_year("(500) Days of Summer (2009)") == ("(500) Days of Summer", "2009")
    assert without_year("Doctor Who (2005- )") == ("Doctor Who", "2005")
