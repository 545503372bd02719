"""One run, one truth: what the commands refuse, record and say when something is not what a policy was trained on."""

import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from r2rank_jax.files.checksums import SEAL
from tests.support.command_line import COMMAND, contents, environment, metrics, run_cli, succeed, write_tiny
from tests.support.tiny_source import tiny_rows, write_raw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory):
    """The tiny experiment with two splits, and a run that was trained on the first."""
    root = tmp_path_factory.mktemp("two_splits")
    prepare(write_raw(root / "raw"), root / "data", candidates=5, protocols=("leave_one_out", "global_time"))
    synthesize(root / "data", root / "data/traces.jsonl", TemplateTeacher(), lists=24, candidate_items=5, positives=2)
    tiny = write_tiny(root, root / "data")
    succeed("sft", "--config", tiny.config, "--run-dir", root / "run")
    return tiny, root / "run"


def refusal(*args):
    done = run_cli(*args)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("r2rank: "), done.stderr
    return lines[0]


def test_another_split_is_refused_or_evaluated_by_name(two_splits, tmp_path):
    tiny, trained = two_splits
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    args = ("eval", "--config", tiny.config, "--run-dir", run_dir, "--data.split", "global_time")
    message = refusal(*args)
    assert "data.split: leave_one_out -> global_time" in message and "--other-data" in message
    assert not (run_dir / "results.json").exists()

    succeed(*args, "--other-data")
    results = json.loads((run_dir / "results.json").read_text())
    kept, judged = load(tiny.data, "leave_one_out"), load(tiny.data, "global_time")
    lists = judged.candidate_lists("test")
    leaked = 0  # counted from scratch: a positive that is among the user's training interactions
    for user, items, labels in zip(lists.user, lists.items, lists.labels):
        leaked += int(np.isin(items[labels > 0], kept.item[kept.train_rows(int(user))]).sum())
    assert leaked > 0, "the case must be harmful"
    [note] = results["notes"]
    assert f"{leaked} test positives were among the training interactions of sft" in note
    succeed("report", "--run-dir", run_dir)
    assert note.split(".")[0] in (run_dir / "report.html").read_text().replace("&gt;", ">")


def test_results_hold_configuration_seed_hashes_and_versions(two_splits, tmp_path):
    tiny, trained = two_splits
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    succeed("eval", "--run-dir", run_dir)
    results = json.loads((run_dir / "results.json").read_text())
    manifest = json.loads((tiny.data / "manifest.json").read_text())
    assert results["inputs"]["interactions"] == manifest["interactions_sha256"]
    assert results["inputs"]["items"] == manifest["items_sha256"]
    assert results["inputs"]["candidates"] == manifest["protocols"]["leave_one_out"]["sha256"]
    assert len(results["inputs"]["tokenizer"]) == 64
    assert results["configuration"]["data"]["split"] == "leave_one_out" and results["seed"] == 0
    assert {"jax", "flax", "optax", "orbax-checkpoint", "python"} <= set(results["machine"])
    assert results["notes"] == []


def test_another_prepared_folder_is_refused(tiny, rl_run, tmp_path):
    rows = [(user, item, rating, when) for user, item, rating, when in tiny_rows() if (user + item) % 17]
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "data", candidates=5)
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints/rl/10")
    before = contents(run_dir)
    args = ("--config", tiny.config, "--run-dir", run_dir, "--data.directory", tmp_path / "data")
    for command in ("rl", "eval"):
        assert re.search(r"interactions \(SHA-256\): \w{12} -> \w{12}", refusal(command, *args)), command
    assert contents(run_dir) == before


def test_a_moved_folder_and_another_cadence_go_on(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints/sft/10")
    shutil.copytree(tiny.data, tmp_path / "moved")
    moved = ("--data.directory", tmp_path / "moved", "--data.traces", tmp_path / "moved/traces.jsonl")
    cadence = ("--sft.log-every", "2", "--sft.validate-every", "10", "--sft.checkpoint-every", "1")
    printed = succeed("sft", "--config", tiny.config, "--run-dir", run_dir, *moved, *cadence)
    assert "sft: resuming at step 9 of 10" in printed
    [ours], [theirs] = ([line for line in metrics(d, "sft") if line["step"] == 10 and "loss" in line]
                        for d in (run_dir, sft_run))  # fmt: skip
    assert ours == theirs


def test_another_tokenizer_or_other_token_limits_are_refused(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    (tmp_path / "in.jsonl").write_text(
        '{"history": [{"title": "Heat", "rating": 4}], "candidates": [{"id": "a", "title": "Alien"}]}\n'
    )
    args = ("rank", "--config", tiny.config, "--run-dir", run_dir, "--phase", "sft", "--input", tmp_path / "in.jsonl")
    succeed(*args)
    assert "data.rationale_tokens: 8 -> 12" in refusal(*args, "--data.rationale-tokens", "12")
    path = run_dir / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    for command in (
        args,
        ("eval", "--run-dir", run_dir),
        ("export", run_dir, "--phase", "sft", "--out", tmp_path / "x"),
    ):
        assert re.search(r"tokenizer: \w{12} -> \w{12}", refusal(*command)), command
    assert not (tmp_path / "x").exists()


def test_a_finished_phase_can_be_extended(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    more = ("--config", tiny.config, "--run-dir", run_dir, "--sft.steps", "13")
    printed = succeed("sft", *more)
    assert "sft: resuming at step 10 of 13" in printed and "sft: from step 10: sft.steps: 10 -> 13" in printed
    assert [line["step"] for line in metrics(run_dir, "sft") if "loss" in line] == list(range(1, 14))
    assert sealed_steps(run_dir / "checkpoints/sft")[0] == 13
    succeed("eval", "--run-dir", run_dir)
    notes = json.loads((run_dir / "results.json").read_text())["notes"]
    assert notes == ["Settings of sft were changed on the way: from step 10: sft.steps: 10 -> 13."]
    assert "sft.steps must be at least 13" in refusal("sft", *more[:-1], "12")


def test_an_evaluation_says_which_settings_are_not_those_of_the_training(tiny, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    succeed("eval", "--run-dir", run_dir, "--seed", "5", "--rl.optimizer.learning-rate", "0.7")
    notes = json.loads((run_dir / "results.json").read_text())["notes"]
    assert "sft was trained with other settings (training -> evaluation): seed: 0 -> 5." in notes
    assert any(note.startswith("rl was") and "rl.optimizer.learning_rate: " in note for note in notes)


def test_the_control_trains_on_the_traces_of_sft(tiny, rl_run, tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "traces.jsonl"
    shutil.copytree(rl_run, run_dir)
    other.write_text((tiny.data / "traces.jsonl").read_text().replace(" match", " fit", 1))
    message = refusal("sft", "--continued", "--run-dir", run_dir, "--data.traces", other)
    assert "sft --continued must train on the traces of sft" in message
    assert not (run_dir / "checkpoints/sft_continued").exists()


def test_damaged_lines_of_the_log_do_not_end_a_resumption(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    log = run_dir / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'[1, 2]\n{"phase": "sft"}\n{"phase": 1, "step": "x"}\n\xff\xfe\n{"phase": "s')
    succeed("sft", "--config", tiny.config, "--run-dir", run_dir, "--sft.steps", "13")
    assert max(row["step"] for row in metrics(run_dir, "sft")) == 13


def test_sft_stays_as_it_is_once_rl_has_started(tiny, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    before = contents(run_dir)
    message = refusal("sft", "--config", tiny.config, "--run-dir", run_dir, "--sft.steps", "13")
    assert "must stay as it is, because rl started from it" in message
    assert contents(run_dir) == before
    more = ("--rl.steps", "12", "--rl.gradients-every", "6")
    assert "rl: resuming at step 10 of 12" in succeed("rl", "--config", tiny.config, "--run-dir", run_dir, *more)
    measured = [line["step"] for line in metrics(run_dir, "rl") if "gradient/token_cosine" in line]
    assert measured == [12], "what is only logged may change"


def test_a_second_job_is_refused_while_the_first_goes_on(tiny, tmp_path):
    args = ("--config", tiny.config, "--run-dir", tmp_path / "run")
    first = subprocess.Popen(
        [*COMMAND, "sft", *map(str, args)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        writer, deadline = tmp_path / "run/writer.json", time.monotonic() + 100
        while not (writer.is_file() and writer.read_text()):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.01)
        message = refusal("sft", *args)
        assert f"(process {first.pid}, since" in message and "one job at a time may write to" in message
        printed, _ = first.communicate(timeout=150)
        assert first.returncode == 0 and "sft step    10" in printed
    finally:
        first.kill()


def test_an_unfinished_phase_is_evaluated_and_the_results_say_so(tiny, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints/rl/10")
    succeed("eval", "--run-dir", run_dir)
    results = json.loads((run_dir / "results.json").read_text())
    assert results["notes"] == ["rl has not finished: evaluated at step 9 of 10."]
    assert results["training"]["rl"]["step"] == 9 and results["training"]["sft"]["step"] == 10

    printed = succeed("eval", "--run-dir", run_dir, "--step", "9")
    assert "note: sft has not finished: evaluated at step 9 of 10." in printed
    training = json.loads((run_dir / "results.json").read_text())["training"]
    assert {phase: cell["step"] for phase, cell in training.items()} == {"sft": 9, "rl": 9}
    assert "--step must be a checkpoint of a phase" in refusal("eval", "--run-dir", run_dir, "--step", "8")


def test_a_commit_that_lacks_its_seal_is_used_on_restart(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    (run_dir / "checkpoints/sft/10" / SEAL).unlink()
    printed = succeed("sft", "--config", tiny.config, "--run-dir", run_dir)
    assert "checkpoint sft/10 was complete and is sealed now" in printed
    assert "sft: finished at step 10 of 10" in printed
    assert contents(run_dir / "checkpoints") == contents(sft_run / "checkpoints")


def test_a_diverged_run_goes_on_with_a_lower_rate(tiny, tmp_path):
    run_dir = tmp_path / "run"
    args = ("--config", tiny.config, "--run-dir", run_dir, "--sft.steps", "40", "--sft.checkpoint-every", "1")
    rate = "--sft.optimizer.learning-rate"
    message = refusal("sft", *args, rate, "1e30")
    assert "sft diverged: " in message and "run again with a lower sft.optimizer.learning_rate" in message
    [kept] = map(int, re.findall(r"the checkpoint of step (\d+) is kept", message))
    assert sealed_steps(run_dir / "checkpoints/sft")[0] == kept < 40
    assert "sft stopped at step" in refusal("rl", *args)
    assert "sft.head_weight" in refusal("sft", *args, rate, "1e-3", "--sft.head-weight", "0.1")

    printed = succeed("sft", *args, rate, "1e-3")
    assert f"sft: from step {kept}: sft.optimizer.learning_rate: 1e+30 -> 0.001" in printed
    lines = metrics(run_dir, "sft")
    assert lines[-1]["step"] == 40 and not (run_dir / "diverged.sft.json").exists()
    assert all(np.isfinite(value) for line in lines for value in line.values() if not isinstance(value, str))
    succeed("eval", "--run-dir", run_dir)
