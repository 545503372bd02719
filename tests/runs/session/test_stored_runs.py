"""Commands on run directories in an object store; `benchmarks/check_store.py` kills many more of them."""

import json
import shutil
import signal
import subprocess
import time

import polars as pl
import pytest

from r2rank_jax.config import read
from r2rank_jax.errors import REFUSED, STOPPED
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.runs.session.stored import StoredRun
from tests.support.command_line import COMMAND, contents, environment, metrics, run_cli, succeed
from tests.support.runs.jobs import LIMIT_S, job, wait_for
from tests.support.runs.stops import differences
from tests.support.runs.store_kills import Phase, fetched, kill_often, put_run
from tests.support.servers.object_stores import STORES


def on_machine(folder):
    return environment(R2RANK_WORK_DIR=str(folder))


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
@pytest.mark.parametrize(("phase", "scheme"), [("sft", "gs"), ("rl", "s3")])
def test_kills_during_saves_change_nothing(tiny, sft_run, tmp_path, phase, scheme):
    settings = (f"--{phase}.checkpoint-every", "1")
    with STORES[scheme]() as other:
        sft = sft_run if phase == "rl" else None
        outcome = kill_often(Phase(phase, tiny.config, settings), other, tmp_path, kills=2, seed=0, sft=sft)
    assert outcome.problems == []


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_two_processes_stop_and_go_on_elsewhere(tiny, store, tmp_path):
    address, log = store.new(), tmp_path / "log"
    arguments = ("sft", "--config", tiny.config, "--mesh.data", "2", "--sft.steps", "60", "--run-dir")
    with job(log, *arguments, address, R2RANK_WORK_DIR=str(tmp_path / "one")) as running:
        wait_for(log, "sft step    10")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=LIMIT_S) == STOPPED, log.read_text(encoding="utf-8")[-2000:]
    with job(log, *arguments, address, R2RANK_WORK_DIR=str(tmp_path / "two")) as running:
        assert running.wait(timeout=LIMIT_S) == 0, log.read_text(encoding="utf-8")[-2000:]
    with job(log, *arguments, tmp_path / "undisturbed") as running:
        assert running.wait(timeout=LIMIT_S) == 0, log.read_text(encoding="utf-8")[-2000:]
    assert differences(tmp_path / "undisturbed", fetched(address, tmp_path / "three"), "sft") == []


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_two_hosts_that_share_no_work_folder_are_refused(tiny, store, tmp_path):
    address, log, wrapper = store.new(), tmp_path / "log", tmp_path / "wrapper"
    own_folder = 'R2RANK_WORK_DIR="$R2RANK_WORK_DIR/$R2RANK_PROCESS"'
    wrapper.write_text(f'#!/usr/bin/env bash\n{own_folder} exec {" ".join(COMMAND)} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    arguments = ("sft", "--config", tiny.config, "--mesh.data", "2", "--run-dir", address)
    with job(log, *arguments, command=str(wrapper), R2RANK_WORK_DIR=str(tmp_path / "work")) as running:
        assert running.wait(timeout=LIMIT_S) == REFUSED
    assert "set R2RANK_WORK_DIR to a folder that all hosts share" in log.read_text(encoding="utf-8")
    assert ObjectFolder(address).tags() == {}


def test_readers_give_what_they_give_on_a_disk(rl_run, address, tmp_path):
    disk, lists = tmp_path / "disk", tmp_path / "lists.jsonl"
    shutil.copytree(rl_run, disk)
    put_run(rl_run, address, tmp_path / "one")
    title = pl.read_parquet(read(rl_run / "config.json").data.directory + "/items.parquet")["title"][0]
    candidates = [{"id": str(n), "title": f"{title} {n}"} for n in range(3)]
    lists.write_text(json.dumps({"id": "a", "history": [{"title": title, "rating": 5}], "candidates": candidates}))
    env, claims = on_machine(tmp_path / "two"), ObjectFolder(address).tags("writer/")
    ranked = []
    for run_dir in (disk, address):
        succeed("eval", "--run-dir", run_dir, env=env)
        succeed("report", "--run-dir", run_dir, env=env)
        ranked.append(succeed("rank", "--run-dir", run_dir, "--input", lists, env=env))
        succeed("export", run_dir, "--out", tmp_path / f"export-{run_dir == disk}", env=env)
    assert ranked[0] == ranked[1]
    found = fetched(address, tmp_path / "three")
    systems = [json.loads((folder / "results.json").read_text(encoding="utf-8"))["systems"] for folder in (disk, found)]
    assert systems[0] == systems[1] and (found / "report.html").exists() and (found / "rationales.jsonl").exists()
    exports = [contents(tmp_path / f"export-{on_disk}") for on_disk in (True, False)]
    weights = [{k: v for k, v in export.items() if k.endswith(".safetensors")} for export in exports]
    assert weights[0] == weights[1] and weights[0]
    assert ObjectFolder(address).tags("writer/") == claims


def test_a_second_job_is_refused_and_names_the_first(tiny, store, tmp_path):
    address = store.new()
    first = StoredRun(address, tmp_path / "one", use="write")
    with first.opened():
        done = run_cli("sft", "--config", tiny.config, "--run-dir", address, env=on_machine(tmp_path / "two"))
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1
    assert "r2rank: one job at a time may write to s3://bucket/" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sft", "--run-dir", "{address}"), "needs --config FILE"),
        (("report", "--run-dir", "{address}"), "must be a run, but nothing is there"),
        (("rank", "--run-dir", "{address}", "--input", "lists.jsonl"), "needs --config FILE"),
        (("export", "{address}", "--out", "{out}"), "must be a run, but nothing is there"),
        (("report", "--run-dir", "s3://missing-bucket/run"), "bucket does not exist; check its name"),
        (("report", "--run-dir", "ftp://bucket/run"), "must be s3://BUCKET/NAME or gs://BUCKET/NAME"),
        (("report", "--run-dir", "s3://"), "must be s3://BUCKET/NAME or gs://BUCKET/NAME"),
    ],
)
def test_what_cannot_be_is_one_line(store, tmp_path, arguments, message):
    address = store.new()
    filled = [argument.format(address=address, out=tmp_path / "out") for argument in arguments]
    done = run_cli(*filled, env=on_machine(tmp_path / "work"))
    assert done.returncode == REFUSED and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert ObjectFolder(address).tags() == {}


def test_a_refused_command_leaves_a_run_as_it_was(sft_run, tiny, store, tmp_path):
    address = store.new()
    put_run(sft_run, address, tmp_path / "one")
    before = ObjectFolder(address).tags()
    command = ("sft", "--config", tiny.config, "--run-dir", address, "--seed", "7")
    done = run_cli(*command, env=on_machine(tmp_path / "two"))
    assert done.returncode == REFUSED, done.stderr
    after = ObjectFolder(address).tags()
    assert {n: t for n, t in after.items() if "writer/" not in n} == {
        n: t for n, t in before.items() if "writer/" not in n
    }


def test_sft_and_rl_on_two_machines_equal_those_on_a_disk(rl_run, tiny, store, tmp_path):
    address = store.new()
    for phase in ("sft", "rl"):
        succeed(phase, "--config", tiny.config, "--run-dir", address, env=on_machine(tmp_path / phase))
    found = fetched(address, tmp_path / "three")
    assert differences(rl_run, found, "sft") == differences(rl_run, found, "rl") == []
    assert metrics(found, "rl") == metrics(rl_run, "rl")


def test_an_interrupted_reader_leaves_the_store_as_it_was(rl_run, address, tmp_path):
    put_run(rl_run, address, tmp_path / "one")
    before = ObjectFolder(address).tags()
    command = [*COMMAND, "eval", "--run-dir", address]
    with subprocess.Popen(command, env=on_machine(tmp_path / "two"), stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "two").glob("*/read/checkpoints/*/*")):  # then it computes for seconds
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == STOPPED and err.count("\n") == 1 and "interrupted" in err
    assert ObjectFolder(address).tags() == before
