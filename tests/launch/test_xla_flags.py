"""`launch/xla_flags.sh`: flags of one platform, in front of those that are set, and known to the installed jaxlib."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "xla_flags.sh"
VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}


def source(platform: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Source the script under `set -eu`, as a launcher does, and print both variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}
    command = f'set -eu; source {SCRIPT} {platform}; echo "${{XLA_FLAGS:-}}"; echo "${{LIBTPU_INIT_ARGS:-}}"'
    return subprocess.run(
        ["bash", "-c", command], env=inherited | settings, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("platform", VARIABLES)
def test_flags_of_the_platform_come_before_those_that_are_set(platform):
    own = "--xla_own=1 --xla_other=2"
    for settings, end in (({}, "=true"), ({VARIABLES[platform]: own}, f"=true {own}")):
        done = source(platform, **settings)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        flags, other = done.stdout.splitlines() if platform == "gpu" else reversed(done.stdout.splitlines())
        assert other == "" and flags.startswith("--xla") and flags.endswith(end)


@pytest.mark.parametrize("platform", ["", "rocm"])
def test_an_unknown_platform_ends_the_launcher(platform):
    done = source(platform)
    assert done.returncode == 2 and done.stdout == ""
    assert f"must be gpu or tpu, got '{platform}'; source launch/xla_flags.sh gpu" in done.stderr


def test_the_installed_jaxlib_knows_the_flags_for_gpus():
    """It ends a process at a flag that it does not know, on every platform. libtpu's flags need libtpu."""
    flags = source("gpu").stdout.splitlines()[0]
    for more, known in (("", True), (" --xla_gpu_no_such_flag=true", False)):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags + more}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode == 0) == known, done.stderr
        assert known or "xla_gpu_no_such_flag" in done.stderr
