"""A line of `metrics.jsonl` as JSON and as a `LoggedStep`."""

import json
import math

from r2rank_jax.report.records import LoggedStep


def test_a_line_keeps_its_format_and_comes_back():
    logged = LoggedStep("rl", 3, 1.23456, {"loss": 0.5, "validation/ndcg@10": 0.25})
    row = logged.to_json()
    assert list(row.items()) == [
        ("phase", "rl"), ("step", 3), ("wall_s", 1.235), ("loss", 0.5), ("validation/ndcg@10", 0.25)
    ]  # fmt: skip
    assert LoggedStep.from_json(json.loads(json.dumps(row))) == LoggedStep("rl", 3, 1.235, logged.values)


def test_unreadable_values_are_dropped():
    assert LoggedStep.from_json({"phase": "rl", "loss": 1.0}) is None
    assert LoggedStep.from_json({"step": 1, "loss": 1.0}) is None
    logged = LoggedStep.from_json({"phase": "rl", "step": 1, "note": "text", "loss": math.nan})
    assert logged is not None and logged.wall_s == 0 and set(logged.values) == {"loss"}
    assert logged.finite("loss") is None and logged.finite("note") is None


def test_later_values_win():
    first, later = LoggedStep("rl", 1, 1.0, {"a": 1.0, "b": 2.0}), LoggedStep("rl", 1, 2.0, {"b": 3.0, "c": 4.0})
    assert first.updated(later) == LoggedStep("rl", 1, 2.0, {"a": 1.0, "b": 3.0, "c": 4.0})
