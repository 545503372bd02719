"""An interrupted preparation resumes where it stopped and produces the same bytes."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from r2rank_jax.data.card.writing import write_card
from r2rank_jax.data.prepare import prepare as preparation
from r2rank_jax.errors import STOPPED, DataError
from r2rank_jax.files.seals import SEAL, read_seal, sealed, work_folder
from tests.support.tiny_source import write_raw

SETTINGS = {"bucket_rows": 60, "k_core": 5, "candidates": 10, "negatives": "popularity"}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
prepare = partial(preparation.prepare, describe=write_card)  # as in `r2rank data prepare`


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "raw")


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(raw, out, **SETTINGS)
    return digest(out)


class Killed(BaseException):
    """Like a kill: no error handler catches it."""


@pytest.mark.slow
def test_an_interruption_after_any_seal_leads_to_the_same_bytes(raw, whole, tmp_path, monkeypatch):
    """Interrupt each run after its first new seal: every run does one more step and repeats none."""
    written = []

    def seal_once(folder, work):
        new = read_seal(folder) is None
        facts = sealed(folder, work)
        if new:
            written.append(str(folder))
            raise Killed
        return facts

    for module in ("prepare", "user_buckets", "candidates"):
        monkeypatch.setattr(f"r2rank_jax.data.prepare.{module}.sealed", seal_once)
    out, runs = tmp_path / "out", 0
    while not out.exists():
        try:
            prepare(raw, out, **SETTINGS)
        except Killed:
            runs += 1
    assert digest(out) == whole
    # read, catalog, core, table; four steps of 16 buckets
    assert runs == len(written) == len(set(written)) == 4 + 4 * 16
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the work folder is gone"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_times_lead_to_the_same_bytes(raw, whole, tmp_path, sent):
    """Send a signal once a given number of steps is sealed; the exact moment is random."""
    out, work = tmp_path / "out", tmp_path / ".out.preparing"
    command = [sys.executable, "-m", "r2rank_jax.cli", "data", "prepare", "--source", str(raw), "--out", str(out)]
    command += [*FLAGS, "--workers", "2"]
    for seals in (0, *sorted(random.Random(5).sample(range(1, 60), 5))):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not ((work / "identity.json").is_file() and _seals(work) >= seals):
            time.sleep(0.002)
        os.kill(process.pid, sent)  # only the command: its workers must end by themselves
        process.wait(timeout=60)
        # A signal can also come before the command has begun to handle it.
        assert process.returncode in (-sent, -signal.SIGKILL if sent == signal.SIGKILL else STOPPED)
        assert not out.exists(), "it was too fast to be stopped"
        assert not _living(process.pid, within_s=10), "workers outlived the command"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digest(out) == whole


def _seals(work):
    return sum(SEAL in files for _, _, files in os.walk(work))  # unlike rglob, tolerates folders that disappear


def _living(session, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        left = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.getsid(int(name)) == session:
                    with open(f"/proc/{name}/stat") as file:
                        if file.read().rsplit(")", 1)[1].split()[0] != "Z":
                            left.append(name)
            except OSError:
                continue
        if not left:
            return []
        time.sleep(0.05)
    return left


def test_a_step_with_a_damaged_seal_is_repeated(tmp_path):
    def work(value):
        def write(folder):
            (folder / "file").write_text(value)
            return {"value": value}

        return write

    assert sealed(tmp_path / "step", work("first")) == {"value": "first"}
    assert sealed(tmp_path / "step", work("second")) == {"value": "first"}, "done once"
    (tmp_path / "step/file").write_text("torn")
    assert sealed(tmp_path / "step", work("third")) == {"value": "third"}
    (tmp_path / "step/file").unlink()
    assert sealed(tmp_path / "step", work("fourth")) == {"value": "fourth"}


def test_other_settings_start_over(raw, whole, tmp_path, monkeypatch):
    """Files left by a preparation with another seed must not be used."""

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr("r2rank_jax.data.prepare.prepare._assemble", killed)
    with pytest.raises(Killed):
        prepare(raw, tmp_path / "out", **SETTINGS, seed=9)
    assert len(list((tmp_path / ".out.preparing/candidates/leave_one_out").iterdir())) == 16
    monkeypatch.undo()
    prepare(raw, tmp_path / "out", **SETTINGS)
    assert digest(tmp_path / "out") == whole


def test_two_preparations_at_the_same_time_are_refused(tmp_path):
    with (
        work_folder(tmp_path / "out", {}),
        pytest.raises(DataError, match="is being prepared by another process"),
        work_folder(tmp_path / "out", {}),
    ):
        pass


def test_several_processes_write_the_same_bytes_as_one(raw, whole, tmp_path):
    prepare(raw, tmp_path / "out", workers=2, **SETTINGS)
    assert digest(tmp_path / "out") == whole


def test_ray_writes_the_same_bytes_as_one_process(raw, whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra data-ray is not installed")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        prepare(raw, tmp_path / "out", ray=True, **SETTINGS)
        with pytest.raises(DataError, match="negatives need as many items"):
            prepare(raw, tmp_path / "none", ray=True, **(SETTINGS | {"candidates": 60}))
    finally:
        ray.shutdown()
    assert digest(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_says_how_to_install_ray(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"--ray needs Ray Data.*pip install 'r2rank-jax\[data-ray\]'"):
        prepare(raw, tmp_path / "out", ray=True)
    assert not (tmp_path / "out").exists()
