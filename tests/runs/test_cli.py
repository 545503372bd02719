"""Wrong input gives exit code 2 and a message with a remedy, before anything is written."""

import dataclasses
import io
import json
import re
import shutil
import sys

import pytest

from r2rank_jax import cli
from r2rank_jax.data.prepared.folder import candidate_file
from r2rank_jax.runs import sft
from tests.support.command_line import contents, run_cli
from tests.support.tiny_source import write_raw


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs `r2rank ARGS` in this process, where an exception that is not an expected one would show itself, requires
    exit code 2 and returns the message."""
    monkeypatch.setenv("COLUMNS", "400")  # messages of field checks are shown in a box, which would break lines

    def run(*args: object) -> str:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in args])
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        message = capsys.readouterr().err
        assert code == 2, message
        return message

    return run


@pytest.fixture
def refused_in_one_line(refused):
    def run(*args: object) -> str:
        message = refused(*args)
        assert message.startswith("r2rank: ") and message.count("\n") == 1, message
        return message

    return run


def test_an_unknown_override_names_the_nearest(tiny, tmp_path, refused):
    message = refused("sft", "--config", tiny.config, "--run-dir", tmp_path / "run", "--rl.credt", "shared")
    assert "--rl.credt" in message and re.search(r"--rl\.credit\b", message)
    assert not (tmp_path / "run").exists()


def test_a_value_of_the_wrong_kind_names_its_field(tiny, tmp_path, refused):
    assert "sft.steps must be a whole number" in refused(
        "sft", "--config", tiny.config, "--run-dir", tmp_path / "run", "--sft.steps", "x"
    )
    assert "data.candidate_items must be at least 2 (something to rank), got 1" in refused(
        "rl", "--config", tiny.config, "--run-dir", tmp_path / "run", "--data.candidate-items", "1"
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_configuration_file(tiny, tmp_path, refused_in_one_line):
    missing = tiny.config.parent / "absent.py"
    message = refused_in_one_line("sft", "--config", missing, "--run-dir", tmp_path / "run")
    assert str(missing) in message and str(tiny.config) in message, "it names files nearby"
    assert "needs --config FILE" in refused_in_one_line("rl", "--run-dir", tmp_path / "run")
    (tmp_path / "empty.py").write_text("")
    assert "must define `config() -> RunConfig`" in refused_in_one_line("sft", "--config", tmp_path / "empty.py")
    assert not (tmp_path / "run").exists()


def test_a_missing_data_directory(tiny, tmp_path, refused_in_one_line):
    args = ("sft", "--config", tiny.config, "--run-dir", tmp_path / "run", "--data.directory", tmp_path / "absent")
    message = refused_in_one_line(*args)
    assert str(tmp_path / "absent") in message and "r2rank data prepare" in message
    assert not (tmp_path / "run").exists()


def test_a_truncated_data_file(tmp_path, refused_in_one_line):
    raw = write_raw(tmp_path / "raw")
    path = raw / "tiny.inter"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:100], lines[100].rsplit("\t", 1)[0]]))
    message = refused_in_one_line("data", "prepare", "--source", raw, "--out", tmp_path / "data")
    assert "tiny.inter" in message and "line 101" in message
    assert [f.name for f in tmp_path.iterdir()] == ["raw"], "no folder, not even a temporary one"


def test_a_truncated_traces_file(own_tiny, tmp_path, refused_in_one_line):
    path = own_tiny.data / "traces.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    message = refused_in_one_line("sft", "--config", own_tiny.config, "--run-dir", tmp_path / "run")
    assert "traces.jsonl, line 22: expected 24 lists" in message
    assert not (tmp_path / "run").exists()


def test_traces_for_another_template(own_tiny, tmp_path, refused_in_one_line):
    arguments = ("--config", own_tiny.config, "--run-dir", tmp_path / "run", "--data.template", "films-2")
    message = refused_in_one_line("sft", *arguments)
    assert "written for data.template=films-2, got traces for films-1; run `r2rank data synthesize --tem" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "eval"])
def test_one_changed_byte_of_the_candidates(own_tiny, sft_run, tmp_path, refused_in_one_line, command):
    path = own_tiny.data / candidate_file("leave_one_out")
    content = bytearray(path.read_bytes())
    place = content.index(b'"items":') + len(b'"items":[')
    content[place] = ord("1") if content[place] != ord("1") else ord("2")  # still JSON, still an item
    path.write_bytes(content)
    run_dir, before = tmp_path / "run", {}
    if command == "eval":
        shutil.copytree(sft_run, run_dir)
        before = contents(run_dir)
    message = refused_in_one_line(command, "--config", own_tiny.config, "--run-dir", run_dir)
    assert "hash does not match its manifest" in message and path.name in message
    assert run_dir.exists() == (command == "eval") and contents(run_dir) == before


@pytest.mark.slow
def test_a_run_directory_of_another_configuration(tiny, sft_run, tmp_path, refused_in_one_line):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    before = contents(run_dir)
    args = ("--config", tiny.config, "--run-dir", run_dir)
    message = refused_in_one_line("sft", *args, "--model.mlp-width", "48", "--sft.head-weight", "0.4")
    assert "model.mlp_width: 32 -> 48" in message and "sft.head_weight: 0.5 -> 0.4" in message
    assert "--run-dir" in message
    # Equal shapes: without the comparison these would load and be wrong.
    for command in ("rl", "eval"):
        assert "model.rope_theta: 10000.0 -> 50.0" in refused_in_one_line(command, *args, "--model.rope-theta", "50")
    message = refused_in_one_line("eval", *args, "--model.vocabulary", "300")
    assert "model.vocabulary=300 must hold the run directory's tokenizer of 400 tokens" in message
    assert contents(run_dir) == before, "config.json and metrics.jsonl too"


def test_a_run_directory_of_other_traces(tiny, sft_run, tmp_path, refused_in_one_line, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    before = contents(run_dir)
    read = sft.read_traces
    monkeypatch.setattr(sft, "read_traces", lambda *args: dataclasses.replace(read(*args), digest="0" * 64))
    message = refused_in_one_line("sft", "--config", tiny.config, "--run-dir", run_dir)
    assert "trained on traces with SHA-256" in message and "choose another --run-dir" in message
    assert contents(run_dir) == before


def test_a_mesh_that_does_not_divide_the_batch(tiny, tmp_path, refused):
    message = refused("sft", "--config", tiny.config, "--run-dir", tmp_path / "run", "--mesh.data", "3")
    assert "sft.batch_users=4 must be divisible by mesh.data x mesh.fsdp = 3" in message
    assert "set sft.batch_users to 3 or 6" in message
    assert not (tmp_path / "run").exists()


def test_a_mesh_larger_than_the_machine(tiny, tmp_path, refused_in_one_line):
    args = ("sft", "--config", tiny.config, "--run-dir", tmp_path / "run", "--mesh.tensor", "16")
    assert "needs 16 devices, found 8" in refused_in_one_line(*args)
    assert not (tmp_path / "run").exists()


def test_phases_in_the_wrong_order(tiny, tmp_path, refused_in_one_line):
    args = ("--config", tiny.config, "--run-dir", tmp_path / "run")
    assert "run `r2rank sft` first" in refused_in_one_line("rl", *args)
    assert "`r2rank sft` writes it" in refused_in_one_line("sft", "--continued", *args)
    assert "`r2rank sft` writes it" in refused_in_one_line("eval", *args)
    assert str(tmp_path / "run") in refused_in_one_line("report", "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_control_before_rl(tiny, sft_run, tmp_path, refused_in_one_line):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    before = contents(run_dir)
    message = refused_in_one_line("sft", "--continued", "--config", tiny.config, "--run-dir", run_dir)
    assert "run `r2rank rl` first" in message
    assert contents(run_dir) == before


GOOD = {"history": [{"title": "Heat", "rating": 5}], "candidates": [{"id": "m1", "title": "Alien"}]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"history": [', "line 2"),
        (json.dumps(GOOD | {"candidates": []}), "line 2.*no candidates"),
        (json.dumps({"history": GOOD["history"]}), "line 2.*lacks 'candidates'"),
        (json.dumps([1]), "line 2"),
        (json.dumps(GOOD | {"history": [{"title": "Heat", "rating": "good"}]}), "line 2.*good"),
    ],
    ids=["malformed", "no_candidates", "missing_field", "not_an_object", "rating"],
)
def test_rank_names_the_line(tiny, sft_run, tmp_path, refused_in_one_line, line, expected):
    (tmp_path / "in.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    message = refused_in_one_line(
        *("rank", "--config", tiny.config, "--run-dir", sft_run, "--phase", "sft"),
        *("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"),
    )
    assert re.search(expected, message) and "in.jsonl" in message
    assert not (tmp_path / "out.jsonl").exists()


def test_rank_sets_users_without_a_history_aside(tiny, sft_run, tmp_path, refused_in_one_line, capsys, monkeypatch):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    args = ("rank", "--config", tiny.config, "--run-dir", sft_run, "--phase", "sft", "--input", source, "--output", out)
    cold = GOOD | {"id": "ada", "history": []}
    source.write_text(json.dumps(cold) + "\n" + json.dumps(GOOD) + "\n")
    assert cli.main([*map(str, args)]) == 0
    assert capsys.readouterr().err == (
        "r2rank: set aside 1 of 2 lists, of users with an empty history: 'ada'; rank these by popularity\n"
    )
    answer = out.read_bytes()
    assert [json.loads(line)["id"] for line in answer.splitlines()] == ["2"]
    source.write_text(json.dumps(cold) + "\n")
    assert "holds 1 of 1 lists, of users with an empty history: 'ada'" in refused_in_one_line(*args)
    source.write_text(json.dumps(GOOD | {"id": "Zoë"}) + "\n")
    assert "--output must be another file" in refused_in_one_line(*args[:-1], source)
    assert json.loads(source.read_text()) == GOOD | {"id": "Zoë"}
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert cli.main([*map(str, args[:-2])]) == 0
    assert json.loads(printed.getvalue())["id"] == "Zoë", "also on a terminal that cannot show the letter"
    assert out.read_bytes() == answer, "a refusal leaves the earlier answer whole"


@pytest.mark.slow
def test_a_new_process_gives_exit_code_and_one_line(tiny, tmp_path):
    done = run_cli("rl", "--config", tiny.config, "--run-dir", tmp_path / "run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"r2rank: no checkpoint in {tmp_path}/run/checkpoints/sft; run `r2rank sft` first\n"
    assert run_cli("data", "prepare").returncode == 2, "errors of argparse, too"


def test_help_shows_commands_and_fields():
    top = run_cli("--help")
    assert top.returncode == 0
    for name in ("data", "sft", "rl", "eval", "rank", "report"):
        assert re.search(rf"^ +{name} ", top.stdout, re.MULTILINE), name
    shown = run_cli("sft", "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    for field in ("--continued", "--run-dir", "--sft.steps", "--model.width", "--data.directory", "--mesh.data"):
        assert field in shown.stdout
    # The docstrings of a section and of a field, which help to choose a value.
    assert "Devices along each mesh axis" in shown.stdout and "Weight of the head's loss" in shown.stdout
