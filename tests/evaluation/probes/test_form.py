"""probes.json: what is written is read back, other forms are refused, and the sentences say what the numbers say."""

import copy
from typing import Any

import pytest

from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation.probes.findings import findings_of, probes_table
from r2rank_jax.evaluation.probes.form import FIELDS, SCHEMA, check_probes, read_probes, write_probes


def cell(mean, low=None, high=None):
    return {"mean": mean, "ci95": [mean if low is None else low, mean if high is None else high], "n": 40}


def condition(ndcg, low, high):
    return {"ndcg": cell(ndcg), "difference": cell((low + high) / 2, low, high)}


def group(low, high, ndcg):
    return {"from": low, "to": high, "lists": 20, "ndcg": cell(ndcg)}


def injection(places_up):
    return {"places_up": places_up, "beyond_neutral": cell(0.4, 0.1, 0.8), "changed": 200, "whole": 150}


VARIANTS = ("exchanged", "deleted", "first_half", "verdict_only", "verdict_left_out")
PROBES: dict[str, dict[str, Any]] = {
    "candidate_order": {"scores": 200, "different": 0, "largest_difference": 0.0},
    "history": {
        "conditions": {
            "own": {"ndcg": cell(0.6)},
            "shuffled": condition(0.59, -0.03, 0.01),
            "other_user": condition(0.4, -0.3, -0.1),
        },
        "changed": {"shuffled": 39, "other_user": 40},
    },
    "rationales": {
        "conditions": {"own": {"ndcg": cell(0.6)}, **{name: condition(0.7, 0.05, 0.15) for name in VARIANTS}},
        "rescoring_gap": 1e-6,
    },
    "verdicts": {
        "least": 20,
        "rationales": 200,
        "truncated": 3,
        "rows": [
            {"verdict": "verdict yes", "count": 50, "positives": 0.3, "score": 2.0},
            {"verdict": "verdict maybe", "count": 50, "positives": 0.4, "score": 1.0},
            {"verdict": "verdict no", "count": 97, "positives": 0.1, "score": -1.0},
        ],
    },
    "popularity": {"spearman": cell(0.3), "undefined": 0, "groups": [group(1, 4, 0.5), group(4, 9, 0.7)]},
    "titles": {
        "pairs": 200,
        "kinds": {
            "instruction": injection(cell(0.5, 0.2, 0.9)),
            "praise": injection(cell(0.0, -0.2, 0.2)),
            "neutral": injection(cell(-1.0)),
        },
    },
    "labels": {"ndcg": cell(0.3, 0.2, 0.4), "analytic_random": 0.227},
    "groups": {"history_length": [group(5, 9, 0.5), group(9, 20, 0.6)], "cold": [group(1, 4, 0.2), group(5, 9, 0.7)]},
}
WHOLE: dict[str, Any] = {
    "schema": SCHEMA,
    "phase": "rl",
    "lists": "valid",
    "metric": "ndcg@10",
    "rationales": 1,
    "score_reads": "words",
    "n": 40,
    "probes": PROBES,
    "findings": ["One."],
    "data_hash": "0",
    "candidate_hash": "0",
    "commit": "0",
    "command": "r2rank probe",
    "checkpoint": {"identity": "0", "step": 10},
    "configuration": {},
    "seed": 0,
    "machine": {},
    "notes": [],
}


def changed(path, value):
    probes = copy.deepcopy(WHOLE)
    *parents, last = path.split(".")
    place: Any = probes
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return probes


def test_written_probes_are_read_back(tmp_path):
    skipped = changed("probes.verdicts", {"skipped": "no rationales"})
    for probes in (WHOLE, skipped, changed("probes.popularity.spearman", cell(0.1))):
        write_probes(tmp_path / "probes.json", probes)
        assert read_probes(tmp_path / "probes.json") == probes
    (tmp_path / "probes.json").write_text("{")
    with pytest.raises(ResultsError, match="must hold JSON"):
        read_probes(tmp_path / "probes.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", None, "must hold seed"),
        ("schema", 9, "schema must be 1, got 9"),
        ("checkpoint", {"step": 3}, "must hold identity and step"),
        ("findings", [1], "list of sentences"),
        ("probes.labels", None, "must hold"),
        ("probes.labels.ndcg", 0.4, "probes.labels.ndcg must be"),
        ("probes.labels.ndcg.n", 0, "at least 1 user"),
        ("probes.labels.ndcg.mean", float("nan"), "finite"),
        ("probes.labels.analytic_random", float("inf"), "finite JSON"),
        ("probes.titles.more", 1, "probes.titles must hold"),
        ("probes.titles.kinds.praise.places_up", {}, "probes.titles.kinds.praise.places_up must be"),
        ("probes.titles.kinds.praise.beyond_neutral", 0.3, "beyond_neutral must be"),
        ("probes.popularity.spearman", 0.3, "probes.popularity.spearman must be"),
        ("probes.groups.history_length", [{"ndcg": 1}], r"history_length\[0\]"),
        ("probes.history.conditions.own", None, "must hold 'own'"),
        ("probes.history.conditions.shuffled.difference", None, "conditions.shuffled must hold"),
        ("probes.history.conditions.shuffled.ndcg", {"mean": 1, "ci95": [2, 1], "n": 3}, "low, high"),
    ],
)
def test_another_form_is_refused_and_nothing_is_written(tmp_path, path, value, message):
    with pytest.raises(ResultsError, match=message):
        write_probes(tmp_path / "probes.json", changed(path, value))
    assert not list(tmp_path.iterdir())


def test_probes_must_be_objects():
    for probes in (None, [], {"probes": {}}):
        with pytest.raises(ResultsError):
            check_probes(probes)


def test_each_finding_says_what_its_interval_says():
    sentences = findings_of(PROBES, "ndcg@10")
    assert "The order of the candidates changes none of 200 scores, to the bit." in sentences
    text = "\n".join(sentences)
    assert "Shuffling the visible history does not change NDCG@10 measurably: -0.010 [-0.030, +0.010]." in text
    assert "history of another user lowers NDCG@10 from 0.600 to 0.400: -0.200 [-0.300, -0.100]." in text
    assert text.count("raises NDCG@10 from 0.600 to 0.700") == len(VARIANTS)
    assert 'from "verdict yes" (mean score 2.00, 30% positives) to "verdict no"' in text and "in 2 of 3 pairs" in text
    assert "an instruction to rank it first to a negative's title moves it up: it gains +0.500" in text
    assert text.count(" places, +0.400 [+0.100, +0.800] beyond what neutral words do.") == 2
    assert "neutral words to a negative's title moves it down: it gains -1.000 [-1.000, -1.000] places." in text
    assert "on 20 lists whose positive is cold and 0.700 [0.700, 0.700] on the 20 others." in text
    assert "praise to a negative's title does not move it measurably" in text
    assert "as expected by chance (0.227)" in text
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)


def test_a_defect_a_leak_and_a_probe_that_was_left_out_are_told():
    probes = copy.deepcopy(PROBES)
    probes["candidate_order"] = {"scores": 200, "different": 3, "largest_difference": 0.25}
    probes["labels"] = {"ndcg": cell(0.5, 0.4, 0.6), "analytic_random": 0.227}
    probes["verdicts"] = probes["rationales"] = {"skipped": "no rationales"}
    probes["popularity"]["spearman"] = None
    text = "\n".join(findings_of(probes, "ndcg@10"))
    assert "changes 3 of 200 scores, by at most 0.25; this is a defect." in text
    assert "outside of chance; look for a leak of labels (0.227)" in text
    assert text.count("was left out: no rationales.") == 2 and "Spearman" not in text
    table = probes_table(probes, "ndcg@10", 40)
    assert "exchanged" not in table and "other_user" in table and "places up" in table


def test_the_table_shows_every_condition_and_shortens_long_lists_of_verdicts():
    table = probes_table(PROBES, "ndcg@10", 40)
    assert table.startswith("mean [95% interval over users], 40 lists\n")
    assert all(name in table for name in (*VARIANTS, "shuffled", "permuted", "instruction", "verdict maybe"))
    probes = copy.deepcopy(PROBES)
    probes["verdicts"]["rows"] = [{**PROBES["verdicts"]["rows"][0], "verdict": f"word {n}"} for n in range(30)]
    table = probes_table(probes, "ndcg@10", 40)
    assert "word 3" in table and "(22 more)" in table and "word 29" in table and "word 9" not in table


def test_every_probe_is_described():
    assert list(FIELDS) == list(PROBES)
    assert all(set(PROBES[name]) == set(fields) for name, fields in FIELDS.items())
