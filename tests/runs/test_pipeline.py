"""The commands of the README, from data to report, and the properties that users rely on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import read, with_values
from r2rank_jax.data.batches.pipeline import evaluation_batches
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.rollout.scoring import make_scorer, score_lists
from r2rank_jax.runs.control import steps_of_same_work
from r2rank_jax.runs.inputs import open_inputs
from r2rank_jax.sharding import abstract_params, make_mesh
from tests.support.command_line import contents, metrics, run_cli, succeed

SYSTEMS = {"random", "popularity", "item_knn", "sft", "sft_continued", "rl"}
METRICS = {f"{name}@{k}" for name in ("ndcg", "hr") for k in (1, 5, 10)} | {"mrr"}


@pytest.fixture(scope="module")
def finished(tiny, rl_run, tmp_path_factory):
    """A run directory after every command of the pipeline; read only."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(rl_run, run_dir)
    for command in (("sft", "--continued"), ("eval",)):
        succeed(*command, "--config", tiny.config, "--run-dir", run_dir)
    succeed("report", "--run-dir", run_dir)
    return run_dir


@pytest.mark.slow
def test_results_and_report(tiny, finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results["systems"]) == SYSTEMS
    users = len(load(tiny.data, "leave_one_out").candidate_lists("test"))
    for name, system in results["systems"].items():
        assert set(system) >= METRICS, name
        for metric in METRICS:
            value = system[metric]
            low, high = value["ci95"]
            assert value["n"] == users and 0 <= low <= value["mean"] <= high <= 1, (name, metric, value)
    manifest = json.loads((tiny.data / "manifest.json").read_text())
    assert results["data_hash"] == manifest["interactions_sha256"]
    assert results["candidate_hash"] == manifest["protocols"]["leave_one_out"]["sha256"]
    assert results["commit"]
    page = (finished / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and "http" + "s://cdn" not in page
    assert read(finished / "config.json").name == "tiny"


@pytest.mark.slow
def test_a_control_of_fewer_lists_a_step_does_rls_work_too(tiny, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    args = ("--config", tiny.config, "--run-dir", run_dir, "--sft.batch-users", "2")
    printed = succeed("sft", "--continued", *args)
    rl = read(run_dir / "config.json")
    steps = steps_of_same_work(with_values(rl, {"sft.batch_users": 2}), rl, traced_items=5)
    assert f"sft_continued: {steps} further steps have as many floating point operations as RL's 10" in printed
    assert steps > steps_of_same_work(rl, rl, traced_items=5)


@pytest.mark.slow
def test_sft_trains_its_critic_and_the_control_may_leave_it_as_it_is(tiny, tmp_path):
    args = ("--config", tiny.config, "--run-dir", tmp_path / "run", "--model.critic", "--sft.steps", "2")
    refused = run_cli("sft", *args)
    assert refused.returncode == 2 and "needs sft.critic_users of at least 1, got 0" in refused.stderr
    assert not (tmp_path / "run").exists()
    for command in (("sft",), ("rl", "--rl.steps", "1")):
        succeed(*command, *args, "--sft.critic-users", "4")
    succeed("sft", "--continued", *args)
    heads = []
    for phase in ("sft", "sft_continued"):
        config = read(tmp_path / "run/config.json")
        like = abstract_params(make_mesh(config.mesh), config.model)
        heads.append(load_policy(tmp_path / "run/checkpoints" / phase, like, config).params)
    np.testing.assert_allclose(heads[0]["critic_head"], heads[1]["critic_head"], rtol=1e-6)  # the average rounds
    assert np.any(heads[0]["critic_head"]) and np.any(heads[0]["score_head"] != heads[1]["score_head"])


@pytest.mark.slow
def test_every_phase_logged_and_the_control_did_rls_work(finished):
    last = {}
    for phase in ("sft", "sft_continued", "rl"):
        lines = metrics(finished, phase)
        assert any("validation/ndcg@5" in line for line in lines), phase
        assert all(np.isfinite(value) for line in lines for name, value in line.items() if name != "phase")
        last[phase] = lines[-1]["step"]
    config = read(finished / "config.json")
    assert last["sft_continued"] == steps_of_same_work(config, config, traced_items=5) > last["rl"]
    training = json.loads((finished / "results.json").read_text())["training"]
    assert {phase: cell["steps"] for phase, cell in training.items()} == last
    rationales = [json.loads(line) for line in (finished / "rationales.jsonl").read_text().splitlines()]
    assert len(rationales) == 2
    assert all(
        set(c["systems"]) == {"sft", "sft_continued", "rl"} and c["systems"]["rl"]["rationale"] is not None
        for r in rationales
        for c in r["candidates"]
    )


@pytest.mark.slow
def test_a_finished_phase_stays_as_it_is(tiny, finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    before, lines = contents(run_dir / "checkpoints"), (run_dir / "metrics.jsonl").read_bytes()
    for command in (("sft",), ("rl",)):
        printed = succeed(*command, "--config", tiny.config, "--run-dir", run_dir)
        assert f"{command[0]}: finished at step 10 of 10" in printed
    assert contents(run_dir / "checkpoints") == before
    assert (run_dir / "metrics.jsonl").read_bytes() == lines


def requests(seed: int) -> list[dict]:
    """Lists of different lengths, which a batch must mask, with two candidates of equal text."""
    rng = np.random.default_rng(seed)
    lists_of_users = []
    for user, length in enumerate((7, 4, 1)):
        candidates = [
            {
                "id": f"c{n}",
                "title": f"Film {chr(65 + n)}",
                "year": str(1950 + n),
                "genres": ["Drama", "Horror"][n % 2 :],
            }
            for n in range(length)
        ]
        if user == 0:
            candidates[3] = candidates[0] | {"id": "twin"}
            candidates[4] = {"id": "nothing", "title": ""}
        history = [{"title": f"Seen {n}", "year": "1960", "rating": 3 + n % 3} for n in range(user + 1)]
        lists_of_users.append(
            {"id": f"u{user}", "history": history, "candidates": [candidates[i] for i in rng.permutation(length)]}
        )
    return lists_of_users


@pytest.mark.slow
def test_rank_gives_each_candidate_the_same_score_in_any_order(tiny, rl_run, tmp_path):
    orders, rankings = [], []
    for seed in (0, 1):
        user_lists = requests(seed)
        orders.append([[c["id"] for c in r["candidates"]] for r in user_lists])
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in user_lists))
        args = ("rank", "--config", tiny.config, "--run-dir", rl_run, "--input", tmp_path / "in.jsonl")
        if seed == 0:
            succeed(*args, "--output", tmp_path / "out.jsonl")
            text = (tmp_path / "out.jsonl").read_text()
        else:
            text = succeed(*args)
        lists = [json.loads(line) for line in text.splitlines()]
        assert [r["id"] for r in lists] == ["u0", "u1", "u2"]
        for ranked, request in zip(lists, user_lists):
            scores = [c["score"] for c in ranked["ranking"]]
            assert scores == sorted(scores, reverse=True)
            assert sorted(c["id"] for c in ranked["ranking"]) == sorted(c["id"] for c in request["candidates"])
        rankings.append([{c["id"]: (c["score"], c["rationale"]) for c in r["ranking"]} for r in lists])
    assert orders[0] != orders[1]
    assert rankings[0] == rankings[1]
    assert rankings[0][0]["twin"] == rankings[0][0]["c0"], "equal text must have equal scores"
    assert len({score for score, _ in rankings[0][0].values()}) > 3, "the test must tell candidates apart"


@pytest.mark.slow
def test_without_reasoning_the_same_commands_train_and_rank(tiny, tmp_path):
    """`data.rationale_tokens=0`: the head reads the items; one forward ranks a list."""
    run_dir = tmp_path / "silent"
    silent = ("--config", tiny.config, "--run-dir", run_dir, "--data.rationale-tokens", "0")
    succeed("sft", *silent)
    succeed("rl", *silent)
    sft, rl = metrics(run_dir, "sft"), metrics(run_dir, "rl")
    assert all(line["rationale_loss"] == 0 for line in sft if "rationale_loss" in line)
    assert all(line["kl"] == line["rationale_tokens"] == line["truncated"] == 0 for line in rl if "kl" in line)
    assert all(line["skipped"] == 0 and line["grad_norm"] > 0 for line in [*sft, *rl] if "grad_norm" in line)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in requests(0)))
    text = succeed("rank", *silent, "--input", tmp_path / "in.jsonl")
    ranked = [candidate for line in text.splitlines() for candidate in json.loads(line)["ranking"]]
    assert {candidate["rationale"] for candidate in ranked} == {""}
    assert len({candidate["score"] for candidate in ranked}) > 3


@pytest.mark.slow
def test_scores_of_a_permuted_batch_are_the_permuted_scores(rl_run):
    config = read(rl_run / "config.json")
    mesh = make_mesh(config.mesh)
    inputs = open_inputs(config, rl_run)
    params = load_policy(rl_run / "checkpoints/rl", abstract_params(mesh, config.model), config).params
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)
    batches = list(evaluation_batches(inputs.dataset, inputs.encoder, "test", batch_users=8))

    rng = np.random.default_rng(0)
    shuffled, orders = [], []
    for batch in batches:
        order = rng.permuted(np.tile(np.arange(5), (8, 1)), axis=1)
        rows = np.arange(8)[:, None]
        fields = ("items", "suffix", "suffix_length", "labels", "mask")
        shuffled.append(dataclasses.replace(batch, **{f: np.asarray(getattr(batch, f))[rows, order] for f in fields}))
        orders.append(order[np.asarray(batch.user) >= 0])
    order = np.concatenate(orders)

    readings = score_lists(scorer, mesh, params, iter(batches))
    other = score_lists(scorer, mesh, params, iter(shuffled))
    assert readings.scores.shape == (40, 5, 1) and len(np.unique(readings.scores)) > 20, "it must tell items apart"
    np.testing.assert_array_equal(other.scores, np.take_along_axis(readings.scores, order[..., None], axis=1))
    order = order[..., None, None]
    np.testing.assert_array_equal(other.rationales, np.take_along_axis(readings.rationales, order, axis=1))
    assert jax.device_get(params["score_head"]).any()
