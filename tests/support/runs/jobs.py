"""Jobs of two real processes, started by launch/local.sh."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.command_line import COMMAND, environment

LAUNCH = Path(__file__).parents[3] / "launch/local.sh"
LIMIT_S = 240


@contextmanager
def job(log: Path, *arguments: object, command: str = " ".join(COMMAND), **settings: str) -> Iterator[subprocess.Popen]:
    """`launch/local.sh 2 ARGUMENTS`, which writes to `log`; killed at the end."""
    env = environment(R2RANK_COMMAND=command, R2RANK_TIMEOUT_S=str(LIMIT_S), **settings)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(LAUNCH), "2", *map(str, arguments)], env=env, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        process.terminate()
        process.wait(timeout=30)


def wait_for(log: Path, text: str) -> None:
    """Wait until a job has printed a text."""
    deadline = time.monotonic() + LIMIT_S
    while text not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.05)
