"""What is gathered of each arm: its counted cost, and its probes."""

import json
from types import SimpleNamespace

import pytest

from r2rank_jax.config import RunConfig, with_values
from r2rank_jax.errors import ExperimentError
from r2rank_jax.evaluation.probes.form import FIELDS, SCHEMA
from r2rank_jax.experiments.cost import cost
from r2rank_jax.experiments.design import Arm, Experiment
from r2rank_jax.experiments.jobs import evaluation_jobs, training_jobs
from r2rank_jax.experiments.probed import probed
from r2rank_jax.experiments.tables import probes as probes_table
from r2rank_jax.runs.control import ranking_flops, rl_step_flops, sft_step_flops

DESIGN = Experiment(
    name="x",
    title="x",
    config=with_values(RunConfig(name="x"), {"data.traces": "t", "data.candidate_items": 6, "sft.steps": 10}),
    seeds=(0, 1),
    arms=(
        Arm(name="sft", phase="sft", asks=""),
        Arm(name="rl", phase="rl", start="sft", values={"rl.steps": 3}, asks=""),
        Arm(name="control", phase="sft_continued", start="rl", asks=""),
        Arm(name="direct", phase="sft", values={"data.rationale_tokens": 0, "data.traces": "u"}, asks=""),
        Arm(name="direct_rl", phase="rl", start="direct", values={"rl.steps": 3}, asks=""),
    ),
    probes=("rl", "control"),
)


def test_the_cost_of_an_arm_is_that_of_all_its_phases():
    steps = {"sft": 10, "rl": 3, "control": 8, "direct": 10, "direct_rl": 3}
    minutes = {"sft": [1.0, 3.0], "rl": [10.0, 10.0], "control": [4.0, 6.0], "direct": [0.5, 0.5], "direct_rl": [1, 1]}
    training = {name: {"minutes": minutes[name], "steps": [count, count]} for name, count in steps.items()}

    def of(name, ndcg):
        arm = DESIGN.arm(name)
        return cost(DESIGN, arm, training, ndcg, traced_items={"t": 4, "u": 5}, candidates=20)

    config = DESIGN.config_of(DESIGN.arm("rl"), 0)
    sft = sft_step_flops(config, traced_items=4)
    curve = {"greedy": 0.3, "1": 0.25, "4": 0.5}
    rl = of("rl", curve)
    assert rl["training_flops"] == pytest.approx(10 * sft + 3 * rl_step_flops(config)) and rl["minutes"] == 12
    control = of("control", curve)
    assert control["training_flops"] == pytest.approx(18 * sft) and control["minutes"] == 7, "without RL"
    assert [(row["rationales"], row["ndcg"]) for row in rl["readings"]] == list(curve.items())
    flops = [row["list_flops"] for row in rl["readings"]]
    assert flops[0] == flops[1] == ranking_flops(config, items=20, rationales=1)
    assert flops[2] == ranking_flops(config, items=20, rationales=4) > flops[1]

    direct = DESIGN.config_of(DESIGN.arm("direct_rl"), 0)
    expected = 10 * sft_step_flops(direct, traced_items=5) + 3 * rl_step_flops(direct)
    assert direct.data.rationale_tokens == 0
    assert of("direct_rl", {"none": 0.3})["training_flops"] == pytest.approx(expected)
    assert of("direct_rl", {"none": 0.3})["readings"][0]["list_flops"] < flops[0]


def test_policies_of_one_directory_are_evaluated_together_and_probed_apart(tmp_path):
    jobs = {job.name: job for job in evaluation_jobs(DESIGN, tmp_path)}
    assert len(jobs) == 2 * 4 + 2 * 2
    assert jobs["seed1/rl test"].arguments == ("eval", "--phase", "rl", "--phase", "sft_continued")
    assert jobs["seed1/rl test"].config == DESIGN.config_of(DESIGN.arm("rl"), 1)
    one, two = (jobs[f"seed0/{name} probes"] for name in ("rl", "control"))
    assert one.directory == two.directory and one.done != two.done and one.config == two.config
    assert two.arguments[:5] == ("probe", "--phase", "sft_continued", "--lists", "test")
    done = [job.done for job in (*jobs.values(), *training_jobs(DESIGN, tmp_path))]
    assert len(done) == len(set(done)), "no job overwrites another's record"
    training = {job.name: job for job in training_jobs(DESIGN, tmp_path)}
    assert training["seed1/direct_rl"].start == tmp_path / "seed1/direct"
    assert training["seed1/control"].after == ("seed1/rl",) and training["seed1/control"].start is None


def written(path, ndcg, *, skipped=False, candidates="c"):
    """A `probes.json` in which each condition has an NDCG of its own, from `ndcg` on."""

    def cell(mean):
        return {"mean": mean, "ci95": [mean - 0.1, mean + 0.2], "n": 40}

    def conditions(first, *names):
        own = {"own": {"ndcg": cell(first)}}
        changed = {name: first + 0.01 * place for place, name in enumerate(names, start=1)}
        return own | {name: {"ndcg": cell(value), "difference": cell(0.0)} for name, value in changed.items()}

    probes = {name: {"skipped": "not here"} for name in FIELDS}
    probes["history"] = {"conditions": conditions(ndcg, "shuffled", "other_user"), "changed": {}}
    probes["labels"] = {"ndcg": cell(ndcg / 2), "analytic_random": None}
    if not skipped:
        names = ("exchanged", "deleted", "first_half", "verdict_only", "verdict_left_out")
        probes["rationales"] = {"conditions": conditions(ndcg + 0.1, *names), "rescoring_gap": 0.0}
    empty = ("commit", "command", "rationales", "score_reads", "configuration", "seed", "machine", "notes")
    whole = {"schema": SCHEMA, "phase": "rl", "lists": "test", "metric": "ndcg@10", "n": 40, "probes": probes}
    whole |= {"findings": [], "data_hash": "d", "candidate_hash": candidates}
    whole |= {"checkpoint": {"identity": "0", "step": 1}, **dict.fromkeys(empty)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole))


def test_probes_are_means_over_seeds(tmp_path):
    dataset = SimpleNamespace(data_hash="d", candidate_hash="c")
    for seed, ndcg in ((0, 0.4), (1, 0.6)):
        written(tmp_path / f"seed{seed}/rl/probe-rl/probes.json", ndcg)
    result = probed(DESIGN, tmp_path, DESIGN.arm("rl"), dataset)
    assert result["metric"] == "ndcg@10" and result["n"] == 40
    means = {name: cell["mean"] for name, cell in result["conditions"].items()}
    expected = {"own": 0.5, "exchanged": 0.61, "deleted": 0.62, "verdict_only": 0.64, "other_user": 0.52}
    assert means == pytest.approx(expected)
    assert result["conditions"]["deleted"]["seeds"] == pytest.approx([0.52, 0.72])
    assert result["chance"]["mean"] == pytest.approx(0.25) and result["chance"]["ci95"] == pytest.approx([0.15, 0.45])
    row = "| rl | 0.500 (0.400, 0.600) | 0.610 (0.510, 0.710) | 0.620 (0.520, 0.720) | 0.640 (0.540, 0.740) |"
    assert probes_table({"rl": result})[2] == f"{row} 0.520 (0.420, 0.620) | 0.250 [0.150, 0.450] |"

    written(tmp_path / "seed1/rl/probe-rl/probes.json", 0.6, skipped=True)
    assert list(probed(DESIGN, tmp_path, DESIGN.arm("rl"), dataset)["conditions"]) == ["own", "other_user"]
    written(tmp_path / "seed1/rl/probe-rl/probes.json", 0.6, candidates="other")
    with pytest.raises(ExperimentError, match=r"probes\.json was measured on other lists"):
        probed(DESIGN, tmp_path, DESIGN.arm("rl"), dataset)
