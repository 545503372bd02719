"""Run directories in an object store: whatever is interrupted, another machine finds a whole commit."""

import shutil

import pytest

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.errors import CheckpointError, StorageError
from r2rank_jax.files.checksums import damage, write_seal
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.runs.session.stored import StoredRun
from tests.support.command_line import contents
from tests.support.object_stores import s3_store


@pytest.fixture(scope="module")
def store():
    with s3_store() as running:
        yield running


@pytest.fixture
def address(store):
    return store.new()


def commit(run_dir, step, *, phase="rl", text="", best=None):
    """What Checkpoints leaves behind, without Orbax."""
    folder = run_dir / "checkpoints" / phase / str(step)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state/d").mkdir(parents=True)
    (folder / "state/d/arrays").write_text(f"{phase} {step} {text}")
    (folder / "extras").mkdir()
    (folder / "extras/metadata").write_text(f'{{"best": {{"step": {best}}}}}' if best else "{}")
    write_seal(folder)
    return folder


def on_machine(address, folder, *, writing=True):
    return StoredRun(address, folder, writing=writing)


def fetched(address, folder, *, writing=False):
    run = on_machine(address, folder, writing=writing)
    with run.opened():
        pass
    return run.folder


def test_another_machine_finds_files_and_commits(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.json").write_text("{}")
        (run.folder / "tensorboard/rl").mkdir(parents=True)
        (run.folder / "tensorboard/rl/events").write_bytes(b"\0")
        (run.folder / "metrics.jsonl").write_text("step 1\n")
        send_commit(commit(run.folder, 1, phase="sft"))
        send_commit(commit(run.folder, 2))
        (run.folder / "metrics.jsonl").write_text("step 1\nstep 2\n")
    assert contents(fetched(address, tmp_path / "two")) == contents(run.folder)
    assert run.config().read_text() == "{}"


def test_a_machine_that_has_most_of_a_run_fetches_what_changed(address, tmp_path, monkeypatch):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        commit(run.folder, 1)
        (run.folder / "large").write_text("of a model")
        (run.folder / "metrics.jsonl").write_text("1\n")
        send_commit(run.folder / "checkpoints/rl/1")
    fetched(address, tmp_path / "two")
    with (again := on_machine(address, tmp_path / "one")).opened():
        (again.folder / "metrics.jsonl").write_text("2\n")
    asked = []
    fetch = ObjectFolder.fetch
    monkeypatch.setattr(
        ObjectFolder, "fetch", lambda self, files, *rest: asked.extend(files) or fetch(self, files, *rest)
    )
    assert (fetched(address, tmp_path / "two") / "metrics.jsonl").read_text() == "2\n"
    assert asked == ["metrics.jsonl"]


def test_what_was_not_sent_is_not_committed(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        send_commit(commit(run.folder, 1))
    commit(run.folder, 2)  # a kill came before it was sent
    (run.folder / "metrics.jsonl").write_text("1\n2\n")
    other = on_machine(address, tmp_path / "two")
    with other.opened() as send_commit:
        send_commit(commit(other.folder, 2, text="of the other machine"))
    again = fetched(address, tmp_path / "one", writing=True)
    assert (again / "checkpoints/rl/2/state/d/arrays").read_text() == "rl 2 of the other machine"
    assert not (again / "metrics.jsonl").exists()


class KilledError(BaseException):
    """Nothing that follows happens, as after kill -9."""


def _killed_at(request, monkeypatch):
    """Make request number `request` to the store, and all later ones, not happen. Returns a counter of requests."""
    made = []
    ask = ObjectFolder._ask

    def counted(self, what, *rest, **options):
        if not what.startswith(("list", "read")):
            if len(made) >= request:
                raise KilledError
            made.append(what)
        return ask(self, what, *rest, **options)

    monkeypatch.setattr(ObjectFolder, "_ask", counted)
    monkeypatch.setattr("r2rank_jax.files.objects.AT_ONCE", 1)
    return made


@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "step that is committed again"])
def test_a_kill_at_any_request_leaves_a_whole_commit(store, tmp_path, monkeypatch, same_step):
    request, outcomes = 0, []
    while True:
        address = store.new()
        run = on_machine(address, tmp_path / f"{request}")
        with run.opened() as send_commit:
            for step in (1, 2, 3):
                (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                (run.folder / "metrics.jsonl").write_text("step\n" * step)
                send_commit(commit(run.folder, step))
        new = 3 if same_step else 4
        (run.folder / "metrics.jsonl").write_text("step\n" * new)
        shutil.rmtree(run.folder / "checkpoints/rl/1")  # as Checkpoints does
        with monkeypatch.context() as patch:
            made = _killed_at(request, patch)
            killed = False
            try:
                run.send_commit(commit(run.folder, new, text="new"))
            except KilledError:
                killed = True
        there = fetched(address, tmp_path / f"{request}-there", writing=True) / "checkpoints/rl"
        step = sealed_steps(there)[0]
        assert damage(there / str(step)) is None
        arrays = (there / str(step) / "state/d/arrays").read_text()
        assert arrays in {"rl 4 new", "rl 3 new", "rl 3 ", "rl 2 "} - ({"rl 2 "} if not same_step else set())
        assert "metrics.jsonl" in ObjectFolder(address).tags()
        unsealed = [name for name in ObjectFolder(address).tags("checkpoints/") if f"/{step}/" not in name]
        assert all(f"rl/{old}/seal.json" in str(unsealed) for old in {name.split("/")[2] for name in unsealed})
        outcomes.append(arrays)
        if not killed:
            break
        request += 1
    assert len(made) >= 5 and len(set(outcomes)) >= 2 and outcomes[-1] == f"rl {new} new"


def test_superfluous_commits_are_deleted_and_the_best_stays(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        for step in (1, 2, 3, 4):
            folder = commit(run.folder, step, best=1)
            for old in (step - 2,):
                if old > 1:
                    shutil.rmtree(run.folder / f"checkpoints/rl/{old}")
            send_commit(folder)
    names = {name.split("/")[2] for name in ObjectFolder(address).tags("checkpoints/")}
    assert names == {"1", "3", "4"}
    assert sealed_steps(fetched(address, tmp_path / "two") / "checkpoints/rl") == [4, 1]
    other = on_machine(address, tmp_path / "three")
    with other.opened() as send_commit:  # this machine has never had commit 3
        send_commit(commit(other.folder, 5, best=1))
    assert {name.split("/")[2] for name in ObjectFolder(address).tags("checkpoints/")} == {"1", "4", "5"}


@pytest.mark.parametrize("what", ["content", "missing", "added", "seal"])
def test_a_damaged_commit_is_named_and_the_one_before_it_is_used(address, tmp_path, capsys, what):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        send_commit(commit(run.folder, 1))
        send_commit(commit(run.folder, 2))
    objects = ObjectFolder(address)
    if what == "missing":
        objects.delete(["checkpoints/rl/2/state/d/arrays"])
    else:
        place = {"content": "state/d/arrays", "added": "state/d/more", "seal": "seal.json"}[what]
        objects.write(f"checkpoints/rl/2/{place}", b"other")
    there = fetched(address, tmp_path / "two", writing=True) / "checkpoints/rl"
    assert sealed_steps(there) == [1]
    assert "checkpoints/rl/2/ is damaged" in capsys.readouterr().out
    with (again := on_machine(address, tmp_path / "two")).opened() as send_commit:
        send_commit(commit(again.folder, 2))
    assert sealed_steps(fetched(address, tmp_path / "three") / "checkpoints/rl") == [2]


def test_commits_that_diverged_are_kept_but_not_used(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        send_commit(commit(run.folder, 1))
        send_commit(commit(run.folder, 2))
        shutil.move(run.folder / "checkpoints/rl/2", run.folder / "checkpoints/rl.diverged.2")
        (run.folder / "diverged.rl.json").write_text("{}")
    there = fetched(address, tmp_path / "two", writing=True)
    assert sealed_steps(there / "checkpoints/rl") == [1] and (there / "diverged.rl.json").exists()
    assert "checkpoints/rl.diverged.2/state/d/arrays" in ObjectFolder(address).tags()
    with (again := on_machine(address, tmp_path / "two")).opened():
        (again.folder / "diverged.rl.json").unlink()
    assert not (fetched(address, tmp_path / "three") / "diverged.rl.json").exists()


def test_a_reader_neither_deletes_nor_locks_and_adds_what_it_made(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as send_commit:
        send_commit(commit(run.folder, 1))
        ObjectFolder(address).write("checkpoints/rl/2/state/d/arrays", b"being sent")
        reader = on_machine(address, tmp_path / "one", writing=False)
        with reader.opened():
            assert reader.folder != run.folder
            (reader.folder / "results.json").write_text("{}")
        assert "checkpoints/rl/2/state/d/arrays" in ObjectFolder(address).tags()
        (run.folder / "metrics.jsonl").write_text("1\n")
        send_commit(commit(run.folder, 3))
    assert {"results.json", "metrics.jsonl"} <= ObjectFolder(address).tags().keys()


def test_one_job_at_a_time_writes(address, tmp_path):
    with (
        on_machine(address, tmp_path / "one").opened(),
        pytest.raises(CheckpointError, match="one job at a time may write"),
        on_machine(address, tmp_path / "two").opened(),
    ):
        pass


def test_a_writer_that_lost_its_claim_sends_no_seal(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with pytest.raises(StorageError, match="another one took over"), run.opened() as send_commit:
        send_commit(commit(run.folder, 1))
        ObjectFolder(address).write("writer/9.json", b"{}")
        send_commit(commit(run.folder, 2))
    assert sealed_steps(fetched(address, tmp_path / "two") / "checkpoints/rl") == [1]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "checkpoints/rl/1/../../../../outside"])
def test_an_object_whose_name_leaves_the_folder_is_refused(address, tmp_path, monkeypatch, name):
    objects = {"checkpoints/rl/1/seal.json": "2 a", name: "2 b"}  # clients for S3 make no such names
    monkeypatch.setattr(ObjectFolder, "tags", lambda self, under="": objects)
    monkeypatch.setattr(ObjectFolder, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(StorageError, match="must hold a run directory, got an object named"):
        on_machine(address, tmp_path / "one", writing=False).fetch()
