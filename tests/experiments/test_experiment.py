"""`r2rank experiment`: a grid of arms and seeds, trained once, evaluated once, gathered and written to a page."""

import json
import shutil

import numpy as np
import pytest

from r2rank_jax.config import RunConfig
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from r2rank_jax.errors import ConfigError
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.experiments.design import Arm, Experiment
from tests.support.command_line import run_cli, succeed, write_tiny
from tests.support.tiny_source import write_raw

EXPERIMENT = """
import runpy
from r2rank_jax.config import with_values
from r2rank_jax.experiments.design import Arm, Experiment


def experiment():
    config = runpy.run_path({config!r})["config"]()
    values = {{"model.score_reads": "words", "evaluation.rationales": 2, "sft.steps": 4, "rl.steps": 4}}
    return Experiment(
        name="tiny",
        title="A tiny experiment",
        config=with_values(config, values),
        seeds=(0, 1),
        arms=(
            Arm(name="sft", phase="sft", asks="where RL starts"),
            Arm(name="rl", phase="rl", start="sft", asks="everything"),
            Arm(name="sft_continued", phase="sft_continued", start="rl", asks="the same work"),
            Arm(name="mute", phase="rl", start="sft", values={{"rl.token_weight": {weight}}}, asks="scores only"),
        ),
        baselines=("popularity", "item_knn"),
        comparisons=(("rl", "sft"), ("rl", "mute"), ("rl", "item_knn")),
        notes=("Nothing is learned in four steps.",),
    )
"""


def arm(name="sft", phase="sft", **values):
    return Arm(name=name, phase=phase, asks="nothing", **values)


def designed(*arms, **values):
    return Experiment(name="x", title="x", config=RunConfig(name="x"), seeds=(0,), arms=arms, **values)


def test_an_impossible_design_is_refused():
    with pytest.raises(ConfigError, match="different names"):
        designed(arm(), arm())
    with pytest.raises(ConfigError, match="must start from an earlier sft arm, got start='sft'"):
        designed(arm("rl", "rl", start="sft"), arm())
    with pytest.raises(ConfigError, match="must start from none"):
        designed(arm(), arm("other", start="sft"))
    with pytest.raises(ConfigError, match="unknown field"):
        designed(arm(values={"rl.weight": 1}))
    with pytest.raises(ConfigError, match="comparisons must name"):
        designed(arm(), comparisons=(("sft", "ease"),))
    design = designed(
        arm(values={"seed": 7}),
        arm("rl", "rl", start="sft", values={"rl.steps": 3}),
        arm("c", "sft_continued", start="rl"),
    )
    assert design.config_of(design.arm("c"), 5).rl.steps == 3 and design.config_of(design.arm("rl"), 5).seed == 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment: its file, and the arguments that name its folders."""
    root = tmp_path_factory.mktemp("experiment")
    prepare(write_raw(root / "raw"), root / "data", candidates=5)
    synthesize(root / "data", root / "data/traces.jsonl", TemplateTeacher(), lists=24, candidate_items=5, positives=2)
    tiny = write_tiny(root, root / "data")
    file = root / "experiment.py"
    file.write_text(EXPERIMENT.format(config=str(tiny.config), weight=0.0))
    places = ("--runs", root / "runs", "--results", root / "results", "--page", root / "RESULTS.md")
    first = succeed("experiment", file, *places, "--jobs", 2, "--train-only", timeout=400)
    assert "seed1/mute: done" in first and not (root / "results").exists(), "the test lists are not scored yet"
    second = succeed("experiment", file, *places, timeout=400)
    assert "seed0/sft: started" not in second and second.count("test: done") == 6  # sft, rl with its control, mute
    return root, file, places


@pytest.mark.slow
def test_results_are_means_over_seeds_of_what_each_run_measured(finished):
    root, _, _ = finished
    results = read_results(root / "results/tiny.json")
    assert set(results["systems"]) == {"popularity", "item_knn", "sft", "rl", "sft_continued", "mute"}
    for name, place in (("rl", "rl"), ("sft_continued", "rl"), ("mute", "mute"), ("sft", "sft")):
        phase = "rl" if name == "mute" else name
        each = [
            json.loads((root / f"runs/tiny/seed{seed}/{place}/results.json").read_text())["systems"][phase]["ndcg@10"]
            for seed in (0, 1)
        ]
        cell = results["systems"][name]["ndcg@10"]
        assert cell["mean"] == pytest.approx(np.mean([x["mean"] for x in each])) and cell["n"] == each[0]["n"]
        assert results["seeds"][name]["ndcg@10"] == pytest.approx([x["mean"] for x in each])
    assert set(results["rationale_curve"]["rl"]) == {"greedy", "1", "2"}
    assert results["baselines"]["item_knn"]["trials"][0].keys() == {"setting", "validation"}
    assert [row["b"] for row in results["comparisons"] if row["metric"] == "ndcg@10"] == ["sft", "mute", "item_knn"]
    page = (root / "RESULTS.md").read_text()
    assert (
        f"{results['systems']['rl']['ndcg@10']['mean']:.3f} [" in page and "Nothing is learned in four steps." in page
    )


@pytest.mark.slow
def test_the_page_is_rebuilt_from_the_results_alone(finished, tmp_path):
    root, _, _ = finished
    shutil.copytree(root / "results", tmp_path / "results")
    succeed("experiment", "--page-only", "--results", tmp_path / "results", "--page", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_bytes() == (root / "RESULTS.md").read_bytes()
    (tmp_path / "results/other.json").write_text("{}")
    refused = run_cli("experiment", "--page-only", "--results", tmp_path / "results", "--page", tmp_path / "page.md")
    assert refused.returncode == 2 and "results must hold" in refused.stderr
    assert (tmp_path / "page.md").read_bytes() == (root / "RESULTS.md").read_bytes()


@pytest.mark.slow
def test_another_configuration_or_other_lists_are_refused(finished):
    root, file, places = finished
    changed = root / "changed.py"
    changed.write_text(file.read_text().replace('"rl.token_weight": 0.0', '"rl.token_weight": 0.1'))
    refused = run_cli("experiment", changed, *places)
    assert refused.returncode == 2 and "seed0/mute was run with other settings" in refused.stderr
    assert "rl.token_weight: 0.0 -> 0.1" in refused.stderr

    results = root / "runs/tiny/seed0/sft/results.json"
    original = results.read_text()
    results.write_text(original.replace(json.loads(original)["candidate_hash"], "0" * 64))
    refused = run_cli("experiment", file, *places)
    results.write_text(original)
    assert refused.returncode == 2 and "was evaluated on other lists (candidate_hash 000000000000" in refused.stderr


@pytest.mark.slow
def test_a_failed_run_is_named_with_its_reason_and_the_others_go_on(finished, tmp_path):
    _, file, _ = finished
    broken = tmp_path / "broken.py"
    broken.write_text(file.read_text().replace('"rl.token_weight": 0.0', '"mesh.data": 64, "rl.batch_users": 64'))
    places = ("--runs", tmp_path / "runs", "--results", tmp_path / "results", "--page", tmp_path / "RESULTS.md")
    failed = run_cli("experiment", broken, *places, timeout=400)
    assert failed.returncode == 2 and "2 of 8 jobs failed: seed0/mute, seed1/mute" in failed.stderr
    assert "mesh" in failed.stderr and "seed1/sft_continued: done" in failed.stdout
    assert not (tmp_path / "RESULTS.md").exists()


def test_wrong_files_are_refused_in_one_line(tmp_path):
    for content, reason in (
        (None, "must be a Python file"),
        ("x = 1", "must define experiment()"),
        ("def experiment():\n    return 3", "must return an Experiment, got int"),
        ("def experiment():\n    raise KeyError(3)", "raised KeyError"),
    ):
        file = tmp_path / "x.py"
        if content is not None:
            file.write_text(content)
        refused = run_cli("experiment", file, "--results", tmp_path / "r", "--page", tmp_path / "p.md")
        assert refused.returncode == 2 and reason in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
