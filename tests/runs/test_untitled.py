"""The rationales of an evaluation show the template's words for a missing title, as the prompts do."""

import json
from types import SimpleNamespace

import numpy as np

from r2rank_jax.config import DataConfig, EvaluationConfig
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.rollout.scoring import Readings
from r2rank_jax.runs import eval as evaluation
from tests.support.tiny_source import USERS, write_raw


def test_rationales_show_the_templates_words_for_missing_titles(tmp_path):
    prepare(write_raw(tmp_path / "raw"), tmp_path / "data")
    dataset = load(tmp_path / "data", "leave_one_out")
    config = SimpleNamespace(
        data=DataConfig(template="games-1"), evaluation=EvaluationConfig(report_users=USERS), seed=0
    )
    lists = dataset.candidate_lists("test")
    scores = np.broadcast_to(np.float32([0, 5, 4]), (*lists.items.shape, 3))
    rationales = np.broadcast_to(np.int32([[10], [11], [12]]), (*lists.items.shape, 3, 1))
    answers = {"rl": Readings(scores, rationales)}
    inputs = SimpleNamespace(dataset=dataset, config=config, encoder=SimpleNamespace(decode=lambda tokens: f"{tokens}"))
    evaluation._write_rationales(tmp_path / "rationales.jsonl", inputs, lists, answers)
    records = [json.loads(line) for line in (tmp_path / "rationales.jsonl").read_text().splitlines()]
    untitled = {item for item, title in enumerate(dataset.items.title) if not title}
    candidates = [candidate for record in records for candidate in record["candidates"]]
    assert {candidate["item"] for candidate in candidates} & untitled
    assert all((c["title"] == "Unknown game") == (c["item"] in untitled) for c in candidates)
    assert any(shown["title"] == "Unknown game" for record in records for shown in record["history"])
    shown = [candidate["systems"]["rl"] for candidate in candidates]
    assert all(x == {"score": 3.0, "rationale": "[12]"} for x in shown), "the mean, and the rationale nearest to it"
    assert all(shown["title"] for record in records for shown in record["history"])
