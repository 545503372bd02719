"""`launch/skypilot.yaml`: valid, and its script repeats what may be repeated. No cloud is needed."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with the extra `dev`")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; it comes with the extra `dev`")

ROOT = Path(__file__).parents[2]
TASK = (ROOT / "launch/skypilot.yaml").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "tests/fixtures/launch/skypilot.json").read_text(encoding="utf-8"))


def check(text: str) -> None:
    """Raise if the task in `text` is not valid."""
    task = yaml.safe_load(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(task)
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [75]
    assert recovery["max_restarts_on_errors"] == 0, "SkyPilot would repeat exit code 2"
    assert list(task["file_mounts"]) == ["/shared"] and "cd /shared" in task["run"]
    assert set(re.findall(r"\$([A-Z][A-Z_]+)", task["run"])) == {
        "MOST_FAILURES",
        "PWD",
        "RUN",
        "SKYPILOT_NODE_IPS",
        "SKYPILOT_NODE_RANK",
        "SKYPILOT_NUM_NODES",
    }
    assert {"MOST_FAILURES", "RUN"} == set(task["envs"])
    (config,) = re.findall(r"configs/\w+\.py", task["run"])
    assert (ROOT / config).is_file()
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)


def test_the_task_is_valid():
    check(TASK)


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("recover_on_exit_codes: [75]", "recover_on_exit_code: [75]"),
        ("recover_on_exit_codes: [75]", "recover_on_exit_codes: [2]"),
        ("max_restarts_on_errors: 0", "max_restarts_on_errors: 3"),
        ("job_recovery:", "recovery:"),
        ("EAGER_NEXT_REGION", "EAGER_NEXT_ZONE"),
        ("use_spot: true", "use_spots: true"),
        ("accelerators: H200:8", "accelerator: H200:8"),
        ("mode: MOUNT_CACHED", "mode: MOUNT_CACHE"),
        ("s3://BUCKET", "s3:/BUCKET"),
        ('MOST_FAILURES: "3"', "MOST_FAILURES: 3"),
        ("$SKYPILOT_NODE_RANK", "$SKYPILOT_RANK"),
        ("h200x8.py", "h200x9.py"),
        ("  done\n", "  don\n"),
    ],
)
def test_a_typo_is_found(correct, wrong):
    assert correct in TASK
    with pytest.raises((jsonschema.ValidationError, AssertionError, KeyError, subprocess.CalledProcessError)):
        check(TASK.replace(correct, wrong))


def test_skypilot_accepts_the_task(tmp_path):
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed; it is too large for the extra `dev`")
    path = tmp_path / "task.yaml"
    path.write_text(TASK.replace("s3://BUCKET", "s3://some-bucket"), encoding="utf-8")
    (resources,) = sky.Task.from_yaml(str(path)).resources
    assert resources.use_spot and resources.job_recovery["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize(
    ("codes", "expected", "pauses"),
    [
        ([0], 0, []),
        ([2], 2, []),
        ([75], 75, []),
        ([1, 137, 0], 0, ["30", "60"]),
        ([1, 2], 2, ["30"]),
        ([7, 8, 9, 10], 10, ["30", "60", "90"]),
    ],
    ids=str,
)
def test_exit_codes(tmp_path, codes, expected, pauses):
    """The script ends with 0, 2 and 75 at once and repeats other failures three times."""
    shared, code = tmp_path / "shared", tmp_path / "code"
    shared.mkdir()
    for path, text in (
        (tmp_path / "bin/sleep", f'echo "$1" >> {tmp_path}/pauses\n'),
        (
            code / ".venv/bin/r2rank",
            f'echo "$PWD|$R2RANK_COORDINATOR|$R2RANK_PROCESSES|$R2RANK_PROCESS|$*" >> {tmp_path}/calls\n'
            f'exit $(sed -n "$(wc -l < {tmp_path}/calls)p" {tmp_path}/codes)\n',
        ),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
    script = yaml.safe_load(TASK)["run"].replace("/shared", str(shared))
    variables = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "RUN": "test",
        "MOST_FAILURES": "3",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = subprocess.run(["bash", "-c", script], cwd=code, env=variables, check=False, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert len(calls) == len(codes)
    config = f"{code}/configs/qwen2_5_3b_h200x8.py"
    assert set(calls) == {f"{shared}|10.0.0.1:12345|2|1|sft --config {config} --run-dir runs/test"}
    written = tmp_path / "pauses"
    assert (written.read_text(encoding="utf-8").split() if written.exists() else []) == pauses
