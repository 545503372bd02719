"""Items without a title: training and `r2rank rank` show the same words, those of the template."""

import json
from collections import Counter

import pytest

from r2rank_jax.config import DataConfig
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.batches.requests import read_requests, request_batches
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.fitting import fit_prefix, fit_suffix
from r2rank_jax.data.prompts.prompts import Shown, time_words
from r2rank_jax.data.prompts.templates import TEMPLATE_OF_DOMAIN, TEMPLATES
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher

DAY = 86_400


@pytest.fixture
def log(tmp_path):
    """A prepared CSV log. Items 0, 7, 14 and 21 of 24 have no title; item 7 has a year."""
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [f"u{u},i{(u + 5 * n) % 24},{1 + n % 5},{DAY * (10 + n)}\n" for u in range(30) for n in range(12)]
    (raw / "interactions.csv").write_text("user,item,rating,timestamp\n" + "".join(rows))
    items = [f"i{n},{'' if n % 7 == 0 else f'Title {n}'},{1990 if n == 7 else ''},Kind {n % 3}\n" for n in range(24)]
    (raw / "items.csv").write_text("item,title,year,genres\n" + "".join(items))
    prepare(raw, tmp_path / "data", candidates=8)
    return tmp_path / "data"


def prompts_of(tokenizer, batch, row):
    """The prefix and the suffixes of one list as text."""
    prefix = tokenizer.decode(batch.prefix[row, : batch.prefix_length[row]].tolist())
    suffixes = zip(batch.suffix[row], batch.suffix_length[row])
    return prefix, [tokenizer.decode(tokens[:length].tolist()) for tokens, length in suffixes]


@pytest.mark.parametrize(
    ("name", "words"), [("films-2", "Unknown film"), ("films-1", "Unknown film"), ("products-1", "Unknown product")]
)
def test_training_and_requests_show_the_same_text(log, tmp_path, make_encoder, name, words):
    """Whatever the domain of the source: a CSV file has the domain "products" even if it lists films."""
    dataset, tokenizer = load(log, "leave_one_out"), make_encoder().tokenizer
    config = DataConfig(template=name, prefix_tokens=600, suffix_tokens=100)
    lists = dataset.candidate_lists("test")
    trained = Encoder(tokenizer, dataset, config).encode_lists(lists)

    catalog = dataset.items
    assert catalog.title.count("") == 4
    records = []
    for user, position, candidates in zip(lists.user.tolist(), lists.position.tolist(), lists.items.tolist()):
        rows = dataset.history(user, position, config.history_items)
        history = [
            {"title": catalog.title[i], "year": catalog.year[i], "rating": rating, "timestamp": time}
            for i, rating, time in zip(
                *(column[rows].tolist() for column in (dataset.item, dataset.rating, dataset.timestamp))
            )
        ]
        shown = [
            {"title": catalog.title[i] or None, "year": catalog.year[i], "genres": catalog.genres[i]}
            for i in candidates
        ]
        records.append({"history": history, "candidates": shown, "timestamp": int(dataset.timestamp[rows.stop])})
    path = tmp_path / "lists.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    (requested,) = request_batches(tokenizer, config, read_requests(path), len(records))

    seen = set()
    for row in range(len(records)):
        text = prompts_of(tokenizer, trained, row)
        assert text == prompts_of(tokenizer, requested, row)
        seen |= {line.split(";")[0] for part in (text[0], *text[1]) for line in part.splitlines() if "Unknown" in line}
    assert f"{words} (1990)" in seen and words in seen, "as candidates"
    assert all(line.startswith(words) for line in seen)


def test_the_template_teacher_cites_the_templates_words(log, tmp_path):
    for template, words, other in (
        ("products-1", "Unknown product", "film"),
        ("films-2", "Unknown film", "product"),
    ):
        out = tmp_path / f"{template}.jsonl"
        synthesize(log, out, TemplateTeacher(), lists=40, min_history=3, candidate_items=8, template=template)
        dataset = load(log, "leave_one_out")
        texts = " ".join(text for row in read_traces(out, dataset, template).rationales for text in row)
        assert f"like: {words};" in texts and f"Unknown {other}" not in texts


def test_words_for_a_missing_title_are_cut_like_a_title(make_encoder):
    """A missing title longer than its limit stops no run."""
    tokenizer, template = make_encoder().tokenizer, TEMPLATES["products-1"]
    fits = tokenizer.encode([template.instruction + "Unknown -, minutes before\n"])[0]
    ids = fit_prefix(tokenizer, [Shown("", "", None, time_words(0))], len(fits), Counter(), template)
    assert tokenizer.decode(ids).splitlines()[1].startswith("Unk") and len(ids) <= len(fits)
    suffix = tokenizer.encode(["Unknown\nReason:"])[0]
    ids = fit_suffix(tokenizer, "", "", (), len(suffix), Counter(), template=template)
    assert tokenizer.decode(ids).startswith("Unk") and tokenizer.decode(ids).endswith("\nReason:")


def test_every_domain_has_a_template():
    assert {domain: template.missing for domain, template in TEMPLATE_OF_DOMAIN.items()} == {
        "films": "Unknown film",
        "products": "Unknown product",
        "games": "Unknown game",
        "books": "Unknown book",
        "places": "Unknown place",
    }
