"""`r2rank experiment`: arms trained once, evaluated once, gathered and written to a page."""

import contextlib
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest

from r2rank_jax import cli
from r2rank_jax.config import DataConfig, RunConfig
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from r2rank_jax.errors import ExperimentError
from r2rank_jax.evaluation.probes.form import read_probes
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.experiments.datasets import require_same_interactions
from r2rank_jax.experiments.design import Arm, Experiment, Protocol
from tests.support.command_line import environment, write_tiny
from tests.support.tiny_source import tiny_rows, write_raw

EXPERIMENT = """
import runpy
from r2rank_jax.config import with_values
from r2rank_jax.experiments.design import Arm, Experiment, Preparation, Protocol

NO_REASONING = {{"data.rationale_tokens": 0, "model.mlp_width": 24}}  # which also compiles fast
CRITIC = {{"model.critic": True, "sft.critic_users": 4}}


def experiment():
    config = runpy.run_path({root!r} + "/tiny.py")["config"]()
    values = {{"sft.steps": 3, "rl.steps": 2}}  # the control does 3 steps, too, whose program then is the same
    raw, popular = {root!r} + "/raw", {root!r} + "/popular"
    command = ("data", "prepare", "--source", raw, "--out", popular, "--candidates", "5", "--negatives", "popularity")
    return Experiment(
        name="tiny",
        title="A tiny experiment",
        config=with_values(config, values),
        seeds=(0,),
        arms=(
            Arm(name="direct", phase="sft", values=NO_REASONING | CRITIC, asks="no words"),
            Arm(name="direct_rl", phase="rl", start="direct", values={{"rl.reward": "recall@1"}}, asks="RL of scores"),
            Arm(name="control", phase="sft_continued", start="direct_rl", asks="the same work"),
        ),
        baselines=("popularity", "item_knn"),
        comparisons=(("direct_rl", "direct"), ("direct_rl", "control"), ("direct_rl", "item_knn")),
        probes=("direct_rl",),
        also=(
            Protocol(
                name="popular",
                title="popular negatives",
                directory=popular,
                data=(Preparation(command=command, makes=popular),),
                notes=("Popular negatives are harder.",),
            ),
        ),
        notes=("Nothing is learned in three steps.",),
    )
"""
ARMS = {
    "direct": ("direct", "sft"),
    "direct_rl": ("direct_rl", "rl"),
    "control": ("direct_rl", "sft_continued"),
}
"""Arm -> its directory and phase."""


def command(*arguments):
    """Run `r2rank experiment` in this process; what it starts are processes of their own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["experiment", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment: its folder, file, and the arguments that name its folders."""
    root = tmp_path_factory.mktemp("experiment")
    prepare(write_raw(root / "raw"), root / "data", candidates=5)
    synthesize(root / "data", root / "data/traces.jsonl", TemplateTeacher(), lists=24, candidate_items=5, positives=2)
    write_tiny(root, root / "data")
    file = root / "experiment.py"
    file.write_text(EXPERIMENT.format(root=str(root)))
    places = ("--runs", root / "runs", "--results", root / "results", "--page", root / "RESULTS.md")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XLA_FLAGS", "PJRT_NPROC"):
            patch.delenv(name, raising=False)
        for name, value in environment().items():
            patch.setenv(name, value)
        (root / "without").mkdir()  # TensorBoard's writer imports PyTorch where it is installed, which takes seconds
        (root / "without/torch.py").write_text("raise ImportError")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "without"), *sys.path]))
        code, out, err = command(file, *places, "--train-only")
        assert code == 0, (out, err)
        assert "seed0/direct_rl: done" in out and not (root / "results").exists(), "the test lists are not scored yet"
        code, out, err = command(file, *places)
        assert code == 0, (out, err)
        assert "seed0/direct: started" not in out
        assert [out.count(f"{kind}: done") for kind in ("test", "popular", "probes")] == [2, 2, 1]
        yield root, file, places


@pytest.mark.slow
def test_results_are_what_each_run_measured(finished):
    root, _, _ = finished
    for name, place in (("tiny", "."), ("tiny_popular", "also-popular")):
        results = read_results(root / f"results/{name}.json")
        assert list(results["systems"]) == ["popularity", "item_knn", *ARMS, "direct_critic"]
        for arm, (directory, phase) in ARMS.items():
            run = read_results(root / "runs/tiny/seed0" / directory / place / "results.json")
            assert results["systems"][arm]["ndcg@10"]["mean"] == pytest.approx(run["systems"][phase]["ndcg@10"]["mean"])
            assert results["candidate_hash"] == run["candidate_hash"]
        run = read_results(root / "runs/tiny/seed0/direct" / place / "results.json")
        critic = results["systems"]["direct_critic"]["ndcg@10"]["mean"]
        assert critic == pytest.approx(run["systems"]["critic"]["ndcg@10"]["mean"])
        assert critic != results["systems"]["direct"]["ndcg@10"]["mean"]
        baseline = run["systems"]["popularity"]["ndcg@10"]["mean"]
        assert results["systems"]["popularity"]["ndcg@10"]["mean"] == pytest.approx(baseline)
        pairs = [row["b"] for row in results["comparisons"] if row["metric"] == "ndcg@10"]
        assert pairs == ["direct", "control", "item_knn"]
    own, popular = (read_results(root / f"results/{name}.json") for name in ("tiny", "tiny_popular"))
    assert own["candidate_hash"] != popular["candidate_hash"] and own["data_hash"] == popular["data_hash"]
    assert len(own["baselines"]["item_knn"]["trials"]) > 1 and own["baselines"] == popular["baselines"]
    assert own["notes"] == ["Nothing is learned in three steps."] and popular["notes"] == [
        "Popular negatives are harder."
    ]


@pytest.mark.slow
def test_an_arm_is_trained_with_the_settings_of_the_arm_that_it_starts_from(finished):
    root, _, _ = finished
    config = json.loads((root / "runs/tiny/seed0/direct_rl/config.json").read_text())
    assert config["data"]["rationale_tokens"] == 0 and config["model"]["mlp_width"] == 24
    assert config["rl"]["reward"] == "recall@1" and config["sft"]["steps"] == 3


@pytest.mark.slow
def test_costs_and_probes_are_those_of_the_runs(finished):
    root, _, _ = finished
    results = read_results(root / "results/tiny.json")
    cost = results["cost"]
    work = {name: arm["training_flops"] for name, arm in cost.items()}
    assert list(cost) == list(ARMS) and work["control"] == pytest.approx(work["direct_rl"], rel=0.3), "in whole steps"
    assert cost["direct_rl"]["minutes"] > cost["direct"]["minutes"] > 0
    ndcg = results["systems"]["direct_rl"]["ndcg@10"]["mean"]
    assert [(row["rationales"], row["ndcg"]) for row in cost["direct_rl"]["readings"]] == [("none", ndcg)]

    measured = read_probes(root / "runs/tiny/seed0/direct_rl/probe-rl/probes.json")
    assert measured["lists"] == "test" and measured["candidate_hash"] == results["candidate_hash"]
    probed = results["probes"]["direct_rl"]
    assert list(results["probes"]) == ["direct_rl"] and list(probed["conditions"]) == ["own", "other_user"]
    assert probed["conditions"]["own"]["mean"] == pytest.approx(ndcg)
    assert probed["chance"]["ci95"] == measured["probes"]["labels"]["ndcg"]["ci95"]
    assert read_results(root / "results/tiny_popular.json")["probes"] == {}


@pytest.mark.slow
def test_the_page_is_rebuilt_from_the_results_alone(finished, tmp_path):
    root, _, _ = finished
    original = (root / "RESULTS.md").read_text()
    results = read_results(root / "results/tiny.json")
    for shown in (
        f"{results['systems']['direct_rl']['ndcg@10']['mean']:.3f} [",
        "the same 5\ncandidates",
        "Nothing is learned in three steps.",
        "## A tiny experiment: popular negatives",
        "`results/tiny_popular.json`: seeds 0;",
        f"| direct_rl | {results['cost']['direct_rl']['training_flops']:.3g} |",
        "| does not apply |",
        f"({results['probes']['direct_rl']['conditions']['other_user']['seeds'][0]:.3f})",
    ):
        assert shown in original, shown
    shutil.copytree(root / "results", tmp_path / "results")
    places = ("--page-only", "--results", tmp_path / "results", "--page", tmp_path / "page.md")
    assert command(*places)[0] == 0
    assert (tmp_path / "page.md").read_text() == original
    (tmp_path / "results/other.json").write_text("{}")
    code, _, err = command(*places)
    assert code == 2 and "results must hold" in err
    assert (tmp_path / "page.md").read_text() == original


@pytest.mark.slow
def test_another_configuration_or_other_lists_are_refused(finished, tmp_path):
    root, file, places = finished
    changed = tmp_path / "changed.py"
    changed.write_text(file.read_text().replace('"rl.reward": "recall@1"', '"rl.reward": "mrr"'))
    code, _, err = command(changed, *places)
    assert code == 2 and "seed0/direct_rl was run with other settings" in err and "rl.reward: recall@1 -> mrr" in err

    for measured in ("direct/results.json", "direct_rl/also-popular/results.json", "direct_rl/probe-rl/probes.json"):
        path = root / "runs/tiny/seed0" / measured
        original = path.read_text()
        path.write_text(original.replace(json.loads(original)["candidate_hash"], "0" * 64))
        code, _, err = command(file, *places)
        path.write_text(original)
        assert code == 2 and f"{path} was measured on other lists (candidate_hash 000000000000" in err


@pytest.mark.slow
def test_a_second_seed_is_averaged_and_nothing_is_run_again(finished, tmp_path):
    """The second seed is a copy of the first with other metrics; both have a curve as several rationales would give."""
    root, file, _ = finished
    runs = tmp_path / "runs"
    shutil.copytree(root / "runs", runs)
    shutil.copytree(runs / "tiny/seed0", runs / "tiny/seed1")
    for done in (runs / "tiny/seed1").rglob("done-*.json"):
        content = json.loads(done.read_text())
        content["config"]["seed"] = 1
        done.write_text(json.dumps(content))
    for seed, factor in ((0, 1), (1, 0.5)):
        path = runs / f"tiny/seed{seed}/direct_rl/by_list.npz"
        with np.load(path) as arrays:
            changed = {name: x * factor if name.startswith("system/rl/") else x for name, x in arrays.items()}
        ndcg = changed["system/rl/ndcg@10"]
        np.savez(path, **changed, **{"curve/rl/greedy": ndcg / 2, "curve/rl/2": ndcg})
    both = tmp_path / "both.py"
    both.write_text(file.read_text().replace("seeds=(0,)", "seeds=(0, 1)"))
    code, out, err = command(both, "--runs", runs, "--results", tmp_path / "results", "--page", tmp_path / "page.md")
    assert code == 0 and "started" not in out and "tuning" not in out, (out, err)
    before, after = (read_results(folder / "results/tiny.json") for folder in (root, tmp_path))
    one, two = (results["systems"]["direct_rl"]["ndcg@10"] for results in (before, after))
    assert two["mean"] == pytest.approx(0.75 * one["mean"]) and two["n"] == one["n"], "intervals are over users"
    assert after["seeds"]["direct_rl"]["ndcg@10"] == pytest.approx([one["mean"], one["mean"] / 2])
    assert after["systems"]["control"] == before["systems"]["control"], "which has the same directory"
    assert list(after["rationale_curve"]) == ["direct_rl"]
    curve = {count: cell["mean"] for count, cell in after["rationale_curve"]["direct_rl"].items()}
    assert curve == pytest.approx({"greedy": two["mean"] / 2, "2": two["mean"]})


def test_a_protocol_must_differ_in_its_candidates_only(tmp_path):
    prepare(write_raw(tmp_path / "raw"), tmp_path / "data", candidates=5)
    prepare(tmp_path / "raw", tmp_path / "popular", candidates=5, negatives="popularity")
    prepare(write_raw(tmp_path / "fewer", tiny_rows()[:-40]), tmp_path / "other", candidates=5)

    def require(folder):
        protocol = Protocol(name="p", title="p", directory=str(tmp_path / folder))
        config = RunConfig(name="x", data=DataConfig(directory=str(tmp_path / "data")))
        arms = (Arm(name="sft", phase="sft", asks=""),)
        require_same_interactions(
            Experiment(name="x", title="x", config=config, seeds=(0,), arms=arms, also=(protocol,))
        )

    require("popular")
    with pytest.raises(ExperimentError, match="must have other candidates"):
        require("data")
    with pytest.raises(ExperimentError, match="must have the interactions of"):
        require("other")


def test_wrong_files_are_refused_in_one_line(tmp_path):
    for content, reason in (
        (None, "must be a Python file"),
        ("x = 1", "must define `experiment() -> Experiment`"),
        ("def experiment():\n    return 3", "must return an Experiment, got int"),
        ("def experiment():\n    raise KeyError(3)", "raised KeyError"),
    ):
        file = tmp_path / "x.py"
        if content is not None:
            file.write_text(content)
        code, _, err = command(file, "--results", tmp_path / "r", "--page", tmp_path / "p.md")
        assert code == 2 and reason in err and err.count("\n") == 1, err
