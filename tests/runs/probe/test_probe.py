"""`r2rank probe` on a tiny run: the form of what it writes, the same bytes again, and what it refuses."""

import shutil

import numpy as np
import pytest

from r2rank_jax import cli
from r2rank_jax.checkpoint.folders import policy_identity
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.evaluation.probes.form import FIELDS, read_probes
from tests.support.command_line import contents, succeed


def refused(capsys, *args):
    capsys.readouterr()
    try:
        code = cli.main([str(a) for a in args])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    message = capsys.readouterr().err
    assert code == 2 and message.startswith("r2rank: ") and message.count("\n") == 1, message
    return message


def test_unknown_phases_and_lists_are_refused(capsys, tiny, tmp_path):
    args = ("probe", "--config", tiny.config, "--run-dir", tmp_path / "run")
    assert "invalid choice: 'dpo'" in refused(capsys, *args, "--phase", "dpo")
    assert "invalid choice: 'train'" in refused(capsys, *args, "--lists", "train")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_phase_that_has_not_run_is_refused(capsys, tiny, sft_run):
    before = contents(sft_run)
    message = refused(capsys, "probe", "--config", tiny.config, "--run-dir", sft_run)
    assert "no checkpoint in" in message and "run `r2rank rl` first" in message
    assert contents(sft_run) == before


@pytest.mark.slow
def test_probes_of_a_tiny_run(tiny, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(rl_run, run_dir)
    before = set(contents(run_dir))
    args = ("probe", "--run-dir", run_dir, "--evaluation.rationales", "2", "--evaluation.validation-users", "30")
    printed = succeed(*args)
    assert set(contents(run_dir)) - before == {"probes.json"}
    result = read_probes(run_dir / "probes.json")

    dataset = load(tiny.data, "leave_one_out")
    assert result["n"] == 30, "the users on whom training validates"
    lists = dataset.candidate_lists("valid").take(np.arange(30))  # all are alike but for the user
    assert (result["phase"], result["lists"], result["metric"], result["rationales"]) == ("rl", "valid", "ndcg@10", 2)
    assert result["data_hash"] == dataset.data_hash and result["commit"]
    assert result["checkpoint"] == {"identity": policy_identity(run_dir / "checkpoints/rl"), "step": 10}
    probes = result["probes"]
    assert set(probes) == set(FIELDS) and not any("skipped" in probe for probe in probes.values())
    assert probes["candidate_order"] == {"scores": lists.items.size * 2, "different": 0, "largest_difference": 0.0}
    assert probes["rationales"]["rescoring_gap"] < 1e-4
    own = [probes[name]["conditions"]["own"]["ndcg"]["mean"] for name in ("history", "rationales")]
    assert own[0] == pytest.approx(own[1])
    assert probes["history"]["changed"]["other_user"] == len(lists)
    assert probes["titles"]["pairs"] == np.count_nonzero(lists.labels <= 0) == 120
    assert sum(group["lists"] for group in probes["groups"]["history_length"]) == len(lists)
    assert all(sentence in printed for sentence in result["findings"]) and "verdict_left_out" in printed

    succeed(*args)
    again = read_probes(run_dir / "probes.json")
    assert (again["probes"], again["findings"]) == (probes, result["findings"]), "everything is drawn by the seed"


@pytest.mark.slow
def test_a_policy_without_rationales_on_the_test_lists(tiny, tmp_path):
    run_dir = tmp_path / "silent"
    silent = ("--config", tiny.config, "--run-dir", run_dir, "--data.rationale-tokens", "0")
    succeed("sft", *silent)
    printed = succeed("probe", *silent, "--phase", "sft", "--lists", "test", "--evaluation.validation-users", "9")
    result = read_probes(run_dir / "probes.json")
    assert (result["phase"], result["lists"], result["rationales"], result["n"]) == ("sft", "test", 0, 40)
    assert {name for name, probe in result["probes"].items() if "skipped" in probe} == {"rationales", "verdicts"}
    assert printed.count("was left out: the policy writes no rationales") == 2
