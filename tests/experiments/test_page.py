"""RESULTS.md is what the results say."""

from pathlib import Path

import pytest

from r2rank_jax.experiments.page import page

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_built_from_the_committed_results():
    if not (ROOT / "results").exists():
        pytest.skip("no results have been committed")
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == page(ROOT / "results")
