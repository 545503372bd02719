"""Lists whose positives and negatives differ in what they lack: prepare warns, the audit reports a fault."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.audit.folder import audit
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.missing import count_missing, differences, missing_texts
from tests.support.sources.tables import write


def counts(positives, negatives, untitled_positives, untitled_negatives):
    return Counter(
        {"positive": positives, "negative": negatives}
        | {"positive title": untitled_positives, "negative title": untitled_negatives}
        | {f"{kind} {text}": 0 for kind in ("positive", "negative") for text in ("year", "genres")}
    )


def test_candidates_are_counted_by_label_and_missing_text():
    items = pl.DataFrame(
        {"title": ["A", " ", "C"], "year": ["", "1990", ""], "genres": [["x"], [], ["y"]]},
        schema_overrides={"genres": pl.List(pl.String)},
    )
    missing = missing_texts(items)
    assert missing.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    counted = count_missing(missing, np.array([[0, 1], [1, 2]]), np.array([[0, 1], [2, 0]]))
    assert counted == {
        **{"positive": 2, "positive title": 2, "positive year": 0, "positive genres": 2},
        **{"negative": 2, "negative title": 0, "negative year": 2, "negative genres": 0},
    }


@pytest.mark.parametrize(
    ("given", "separable"),
    [
        (counts(100, 1900, 100, 0), True),
        (counts(100, 1900, 0, 1900), True),
        (counts(1000, 19000, 120, 0), True),
        (counts(1000, 19000, 90, 0), False),  # less than a tenth
        (counts(10, 20, 2, 0), False),  # chance
        (counts(100, 1900, 50, 950), False),
        (counts(0, 0, 0, 0), False),
    ],
)
def test_a_difference_counts_if_it_is_large_and_not_chance(given, separable):
    assert ("title" in differences(given)) == separable


def test_prepare_warns_and_the_audit_reports_a_fault(tmp_path, capfd):
    # The table names the items by other ids, so no item of an interaction has a title, and all others have.
    log = "".join(f"u{user},i{(user + k) % 8},{1_000_000_000 + k}\n" for user in range(20) for k in range(5))
    write(tmp_path / "raw/interactions.csv", "user,item,timestamp\n" + log)
    write(tmp_path / "raw/items.csv", "item,title\n" + "".join(f"I{k},Thing {k}\n" for k in range(60)))
    prepare(tmp_path / "raw", tmp_path / "out", candidates=5)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert len(told) == 2 and "100% of 40 positives but" in told[0] and "have no title" in told[0]
    findings = audit(tmp_path / "out")
    assert findings.faults == 2 and "candidates_separable" in findings.text(), findings.text()
    assert main(["data", "audit", str(tmp_path / "out")]) == 1


def test_titles_that_meet_give_no_warning(tmp_path, capfd):
    log = "".join(f"{user}.0,{(user + k) % 8}.0,{1_000_000_000 + k}\n" for user in range(20) for k in range(5))
    write(tmp_path / "raw/interactions.csv", "user,item,timestamp\n" + log)
    write(tmp_path / "raw/items.csv", "item,title\n" + "".join(f"{k},Thing {k}\n" for k in range(60)))
    prepare(tmp_path / "raw", tmp_path / "out", candidates=5)
    assert "WARNING" not in capfd.readouterr().err
    assert audit(tmp_path / "out").faults == 0
