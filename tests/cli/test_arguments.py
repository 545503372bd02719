"""Wrong arguments of every command give one line and exit code 2 before any work, and nothing is written."""

import errno
import os
import subprocess

import pytest

from r2rank_jax.cli import entry, main
from r2rank_jax.errors import ConfigError, Stopped
from tests.support.command_line import COMMAND, environment

CONFIG = "configs/quickstart.py"


@pytest.fixture
def refusal(capsys):
    """Runs a command in this process, requires exit code 2 and returns its one line."""

    def run(*args: object) -> str:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        printed = capsys.readouterr().err
        assert code == 2 and printed.startswith("r2rank: ") and printed.count("\n") == 1, printed
        return printed

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rl.steps", "x"], "rl.steps must be a whole number, got 'x'"),
        (["--rl.steps", "3.5"], "rl.steps must be a whole number, got '3.5'"),
        (["--rl.steps", "0"], "rl.steps must be at least 1, got 0"),
        (["--rl.steps", "9" * 5000], "rl.steps must be a whole number, got '999"),
        (["--rl.steps"], "argument --rl.steps: expected one argument"),
        (["--rl.optimizer.learning-rate", "nan"], "rl.optimizer.learning_rate must be a finite number"),
        (["--rl.optimizer.beta2=-0.1"], "rl.optimizer.beta2 must be at least 0 and below 1, got -0.1"),
        (["--sft.optimizer.clip_norm", "-1"], "sft.optimizer.clip_norm must be at least 0 (0 turns clipping off)"),
        (["--evaluation.ks", "1", "zero"], "evaluation.ks must be a whole number, got 'zero'"),
        (["--evaluation.ks", "5", "5"], "evaluation.ks must be a list without repetitions, got [5, 5]"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--model.heads", "0"], "model.heads must be at least 1, got 0"),
        (["--compute.update-gib", "inf"], "compute.update_gib must be a finite number"),
        (["--data.split", "random"], "data.split must be one of leave_one_out, global_time, last_n, cold_users"),
        (["--mesh.data", "3"], "set sft.batch_users to 15 or 18"),
        (["--rl.credt", "shared"], "unknown argument '--rl.credt'; did you mean --rl.credit?"),
        (["--rl.metric-k", "5"], "--rl.metric-k is no longer a field; use rl.reward"),
        (["stray"], "unknown argument 'stray'; see `r2rank plan --help`"),
    ],
)
def test_a_field_that_cannot_hold_its_value(refusal, flags, message):
    assert message in refusal("plan", "--config", CONFIG, "--topology", "cpu:1", *flags)


@pytest.mark.parametrize(
    "args",
    [
        ["export", "run", "--out", "{}/new", "--shard-gib", "nan"],
        ["export", "run", "--out", "{}/new", "--shard-gib", "inf"],
        ["export", "run", "--out", "{}/new", "--shard-gib", "0"],
        ["data", "prepare", "--source", "x", "--out", "{}/new", "--candidates", "-3"],
        ["data", "prepare", "--source", "x", "--out", "{}/new", "--workers", "0"],
        ["data", "prepare", "--source", "x", "--out", "{}/new", "--seed", str(2**32)],
        ["data", "synthesize", "--data", "x", "--out", "{}/new", "--lists", "0"],
        ["data", "synthesize", "--data", "x", "--out", "{}/new", "--history-items", "1.5"],
    ],
    ids=lambda args: " ".join(args[-2:]),
)
def test_a_number_that_a_command_cannot_use(refusal, tmp_path, args):
    message = refusal(*(arg.format(tmp_path) for arg in args))
    assert args[-2] in message and "must be" in message and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["sft", "--config", CONFIG, "--run-dir", "{}/file"],
        ["rl", "--config", CONFIG, "--run-dir", "{}/file/run"],
        ["eval", "--config", CONFIG, "--run-dir", "{}/taken"],
        ["sft", "--config", CONFIG, "--run-dir", "{}/taken"],
        ["report", "--run-dir", "{}/taken"],
        ["rank", "--config", CONFIG, "--input", "none.jsonl", "--output", "{}/taken"],
        ["rank", "--config", CONFIG, "--input", "none.jsonl", "--output", "/dev/null"],
        ["export", "run", "--out", "{}/file/sub"],
        ["model", "import", "folder", "--out", "{}/file/sub"],
        ["model", "fetch", "smollm2-135m-instruct", "--out", "{}/file"],
        ["data", "prepare", "--source", "x", "--out", "{}/file"],
        ["data", "synthesize", "--data", "x", "--out", "{}/taken"],
    ],
    ids=lambda args: f"{args[0]} {args[-1].removeprefix('{}/')}",
)
def test_an_output_that_cannot_be_written(refusal, tmp_path, args):
    (tmp_path / "file").write_text("kept")
    for name in ("results.json", "config.json", "report.html"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    assert " to write, got " in refusal(*(arg.format(tmp_path) for arg in args))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "m", "--temperature", "inf"], "--temperature must be a finite number"),
        (["--model", "m", "--budget-usd", "nan"], "--budget-usd must be a finite number"),
        (["--model", "m", "--draws", "x"], "--draws must be a whole number, got 'x'"),
        (["--model", "m", "--draws", "0"], "--draws must be at least 1, got 0"),
        (["--model", "m", "--show-label", "sometimes"], "--show-label must be one of never, retry, always"),
        (["--model", "m", "--budgt-usd", "1"], "unknown argument '--budgt-usd'; did you mean --budget-usd?"),
        (["--model", "m", "--journal", "/dev/null"], "--journal must be a file to write"),
        (["--draws", "2"], "need --model NAME"),
    ],
)
def test_settings_of_a_teacher(refusal, tmp_path, flags, message):
    command = ["data", "synthesize", "--data", "x", "--out", tmp_path / "out", "--teacher", "http://localhost:1"]
    assert message in refusal(*command, *flags)


def test_flags_that_set_fields():
    from r2rank_jax.cli.overrides import overridden
    from r2rank_jax.config import RunConfig

    flags = ["--rl.no-joint", "--model.qk_norm", "--evaluation.ks", "3", "7", "--compute.update-gib=2", "--rl.steps=30"]
    config = overridden(RunConfig(name="x", pretrained="folder"), [*flags, "--pretrained", "None"], "r2rank sft")
    assert (config.rl.joint, config.model.qk_norm, config.evaluation.ks) == (False, True, (3, 7))
    assert (config.compute.update_gib, config.rl.steps, config.pretrained) == (2.0, 30, None)


@pytest.mark.parametrize(("processes", "process"), [("", "0"), ("two", "0"), ("2", "2"), ("2", "-1")])
def test_a_launcher_that_sets_wrong_variables(refusal, tmp_path, monkeypatch, processes, process):
    monkeypatch.setenv("R2RANK_COORDINATOR", "localhost:1")
    monkeypatch.setenv("R2RANK_PROCESSES", processes)
    monkeypatch.setenv("R2RANK_PROCESS", process)
    message = refusal("sft", "--config", CONFIG, "--run-dir", tmp_path / "run")
    assert "R2RANK_PROCESS" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (OSError(errno.EACCES, "Permission denied"), 2),
        (OSError(errno.ESTALE, "Stale file handle"), 1),  # of a network file system that may be back soon
        (ConnectionResetError("gone"), 1),
        (KeyboardInterrupt(), 75),
        (Stopped("sft stopped as told"), 75),
        (ConfigError("no"), 2),
        (MemoryError(), 1),
    ],
    ids=repr,
)
def test_exit_codes(capsys, monkeypatch, error, code):
    def fail(*args):
        raise error

    monkeypatch.setattr(entry, "_carry_out", fail)
    assert main(["eval"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "model"))

    monkeypatch.setattr(entry, "_carry_out", full)
    assert main(["eval"]) == 2
    assert capsys.readouterr().err == (
        f"r2rank: {tmp_path / 'model'}: No space left on device; mend this and run the command again\n"
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out\nof memory")])
def test_too_little_memory_is_one_line(capsys, monkeypatch, error):
    def too_large(*args):
        raise error

    monkeypatch.setattr(entry, "_carry_out", too_large)
    assert main(["sft"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("r2rank: the memory of this machine does not suffice (") and printed.count("\n") == 1


def test_a_reader_that_closes_the_pipe_sees_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "--help"],
        env=environment(PYTHONUNBUFFERED=""),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == "" and done.returncode == 141
