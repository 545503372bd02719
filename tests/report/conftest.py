"""A made-up run directory with all files of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2rank_jax import config as configuration
from r2rank_jax.evaluation import results as evaluation_results
from tests.support.runs.report_runs import final_results, logged_steps, report_users, write_lines


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run."""
    directory = tmp_path / "quickstart"
    directory.mkdir()
    config = configuration.to_json(configuration.RunConfig(name="quickstart"))
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_lines(directory / "metrics.jsonl", logged_steps())
    write_lines(directory / "rationales.jsonl", report_users())
    evaluation_results.write_results(directory / "results.json", final_results())
    return directory
