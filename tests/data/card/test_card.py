"""The card of a small folder: its numbers match the folder, its page is complete, and its bytes are reproducible."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from r2rank_jax import cli
from r2rank_jax.data.audit.folder import audit
from r2rank_jax.data.card.figures import history_lengths, over_time, popularity, ratings
from r2rank_jax.data.card.writing import write_card
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.folder import candidate_file, interactions_file
from r2rank_jax.data.prepared.settings import PROTOCOLS
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.errors import DataError
from tests.support.tiny_source import tiny_rows, write_raw

START_S = 880_000_000
FILES = ("card.json", "card.md", "figures/*.svg")


def spread_rows():
    """The usual rows, spread over 70 days instead of a few minutes."""
    return [(user, item, rating, START_S + 5000 * (time - START_S)) for user, item, rating, time in tiny_rows()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a repeated interaction, several buckets and all protocols."""
    root = tmp_path_factory.mktemp("card")
    rows = spread_rows()
    prepare(
        write_raw(root / "raw", [*rows, rows[0]]),
        root / "data",
        protocols=PROTOCOLS,
        bucket_rows=200,
        last_n=2,
        describe=write_card,
    )
    return root / "data"


@pytest.fixture(scope="module")
def card(folder):
    return json.loads((folder / "card.json").read_text())


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for pattern in FILES for path in sorted(folder.glob(pattern))}


def test_the_numbers_match_the_rows(folder, card):
    rows = spread_rows()
    lengths = Counter(user for user, *_ in rows)
    assert (card["users"], card["interactions"]) == (40, len(rows))
    assert card["steps"][1]["dropped"] == {"duplicate": 1}
    assert card["history_lengths"]["mean"] == round(len(rows) / 40, 2)
    assert card["history_lengths"]["max"] == max(lengths.values())
    assert card["ratings"] == {str(r): n for r, n in sorted(Counter(rating for *_, rating, _ in rows).items())}
    popular = sorted(Counter(item for _, item, *_ in rows).values(), reverse=True)
    assert card["popularity"]["share_of_top_10_percent"] == round(sum(popular[:6]) / len(rows), 4)
    assert card["catalogue"]["titles_missing"] == 2
    times = [time for *_, time in rows]
    assert card["time_span"]["days"] == (max(times) - min(times)) // 86_400


def test_the_numbers_match_the_lists_and_their_histories(folder, card):
    for protocol in PROTOCOLS:
        data, part = load(folder, protocol), card["protocols"][protocol]
        assert part["sha256"] == data.candidate_hash
        for name in ("valid", "test"):
            lists = data.candidate_lists(name)
            assert part[name]["lists"] == len(lists) > 0
            assert part[name]["positives_among_negatives"] == part[name]["relevant_items_seen_in_history"] == 0
            assert part[name]["history_lengths"]["max"] == lists.position.max()


def test_a_leak_is_shown_in_bold(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / candidate_file("leave_one_out", 0)
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    sequence = pl.read_parquet(folder / interactions_file(0)).filter(pl.col("user") == record["user"])["item"].to_list()
    record["items"][record["labels"].index(0)] = sequence[-1]
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    write_card(tmp_path / "data")
    card = json.loads((tmp_path / "data/card.json").read_text())
    assert card["protocols"]["leave_one_out"]["valid"]["positives_among_negatives"] == 1
    assert "| **1** |" in (tmp_path / "data/card.md").read_text()


def test_the_page_shows_every_figure_and_has_well_formed_tables(folder):
    text = (folder / "card.md").read_text()
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(images) == sorted(str(path.relative_to(folder)) for path in folder.glob("figures/*.svg"))
    assert len(images) == 5
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "None" not in text and "nan" not in text


def test_figures_are_valid_svg_with_real_text(folder):
    for path in folder.glob("figures/*.svg"):
        root = ET.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert [node for node in root.iter() if node.tag.endswith("text")], "text, not outlines of letters"


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path, capfd):
    shutil.copytree(folder, tmp_path / "data")
    stale = tmp_path / "data/figures/ratings.svg"
    stale.write_text("old")
    assert cli.main(["data", "card", str(tmp_path / "data")]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'data/card.md'}\n"
    assert content(tmp_path / "data") == content(folder)


def test_lengths_in_tokens(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    data = load(folder, "leave_one_out")
    texts = [data.items.shown(item, "Unknown film") for item in range(len(data.items))]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_card(tmp_path / "data", tmp_path / "tokenizer.json")
    lengths = json.loads((tmp_path / "data/card.json").read_text())["text"]
    each = np.array([len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts])
    assert lengths["tokens"]["title and year of an item"]["max"] == each.max()
    longest = 0
    for protocol in PROTOCOLS:
        data = load(folder, protocol)
        for name in ("valid", "test"):
            lists = data.candidate_lists(name)
            for user, position in zip(lists.user.tolist(), lists.position.tolist()):
                longest = max(longest, each[data.item[data.history(user, position, 10)]].sum())
    assert lengths["tokens"]["history of at most 10 titles"]["max"] == longest
    assert set(lengths) == {"tokens", "characters", "words"}


def test_figures_without_variation_are_not_drawn(tmp_path):
    rows = [(u, i, 3, 880_000_000 + u) for u in range(1, 6) for i in range(1, 6)]
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "data", describe=write_card)
    assert {path.name for path in (tmp_path / "data/figures").iterdir()} == {
        "history_lengths.svg", "popularity.svg", "candidates.svg",
    }  # fmt: skip
    assert "time.svg" not in (tmp_path / "data/card.md").read_text()


def test_figures_of_extreme_values():
    assert history_lengths(np.array([1])) and history_lengths(np.array([1, 1_000_000]))
    assert popularity(np.array([5])) and popularity(np.zeros(3, int))
    assert over_time(Counter({5: 1}), {}) is None
    for span in (2, 200, 6000):
        assert b"<svg" in over_time(Counter({10_000: 1, 10_000 + span: 2}), {"cut 1": 10_001})
    assert ratings({}) is None and ratings({str(r): 1 for r in range(13)}) is None


def test_a_faulty_folder_is_refused_and_the_old_card_stays(folder, tmp_path, capfd):
    shutil.copytree(folder, tmp_path / "data")
    before = content(tmp_path / "data")
    path = tmp_path / "data" / candidate_file("last_n", 1)
    good = path.read_text()
    for bad in (good.replace('"user":', '"user":9', 1), good.replace('"items"', '"item"', 1), good[:30]):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"`r2rank data audit` finds no fault, got\nFAULT (.|\n)*line 1"):
            write_card(tmp_path / "data")
    with pytest.raises(DataError, match=r"must name a tokenizer\.json, got nowhere"):
        write_card(folder, tokenizer=Path("nowhere"))
    assert content(tmp_path / "data") == before
    assert cli.main(["data", "card", str(tmp_path)]) == 2
    assert "has no manifest.json" in capfd.readouterr().err


def test_a_source_without_ratings_times_and_titles(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [f"u{u}\ti{(u * 7 + i * 3) % 30}\n" for u in range(9) for i in range(1 + u)]
    (tmp_path / "raw/bare.inter").write_text("user_id:token\titem_id:token\n" + "".join(rows))
    prepare(tmp_path / "raw", tmp_path / "data", protocols=["leave_one_out"], candidates=5, describe=write_card)
    card, text = json.loads((tmp_path / "data/card.json").read_text()), (tmp_path / "data/card.md").read_text()
    assert card["time_span"] is None and card["ratings"] == {}
    assert card["catalogue"] == {"titles_missing": card["items"], "titles_repeated": 0, "genres_missing": card["items"]}
    assert "without times. " in text and "The source has no times" in text and "1970" not in text
    findings = audit(tmp_path / "data")
    assert findings.faults == 0, findings.text()


def test_the_card_shows_the_statistics_of_a_run_file(tmp_path):
    ranked = [{"user": str(user), "items": [str(item) for item in range(1, 61)]} for user in range(1, 20)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
    settings = {"negatives": "run", "run": str(tmp_path / "run.jsonl"), "protocols": ["leave_one_out"]}
    prepare(write_raw(tmp_path / "raw"), tmp_path / "data", describe=write_card, **settings)
    run = json.loads((tmp_path / "data/card.json").read_text())["protocols"]["leave_one_out"]["run"]
    text = (tmp_path / "data/card.md").read_text()
    # 19 of 40 users have a ranking of all items, which contains both of their positives.
    assert (run["positives"], run["positives_found"]) == (80, 38)
    assert "a retriever's top items that the user never interacted with" in text
    assert "| positives | positives found |" in text and "| 80 | 38 |" in text
