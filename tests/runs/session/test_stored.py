"""Run directories in an object store: whatever is interrupted, another machine finds a whole commit."""

import shutil
from contextlib import suppress

import pytest

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.errors import CheckpointError, StorageError, UsageError
from r2rank_jax.files.checksums import damage, write_seal
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.runs.session.one_writer import one_writer
from r2rank_jax.runs.session.stored import StoredRun
from tests.support.command_line import contents


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


def on_machine(address, folder, *, use="write", **needs):
    return StoredRun(address, folder, use=use, **needs)


def fetched(address, folder, *, use="read", **needs):
    run = on_machine(address, folder, use=use, **needs)
    with run.opened():
        pass
    return run.folder


def test_another_machine_finds_files_and_commits(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.json").write_text("{}")
        (run.folder / "tensorboard/rl").mkdir(parents=True)
        (run.folder / "tensorboard/rl/events").write_bytes(b"\0")
        (run.folder / "metrics.jsonl").write_text("step 1\n")
        mirror.send_commit(commit(run.folder, 1, phase="sft"))
        mirror.send_commit(commit(run.folder, 2))
        (run.folder / "metrics.jsonl").write_text("step 1\nstep 2\n")
    assert contents(fetched(address, tmp_path / "two")) == contents(run.folder)
    assert run.config().read_text() == "{}"


def test_a_machine_that_has_most_of_a_run_fetches_what_changed(address, tmp_path, monkeypatch):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        commit(run.folder, 1)
        (run.folder / "large").write_text("of a model")
        (run.folder / "metrics.jsonl").write_text("1\n")
        mirror.send_commit(run.folder / "checkpoints/rl/1")
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
    with run.opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
    commit(run.folder, 2)  # a kill came before it was sent
    (run.folder / "metrics.jsonl").write_text("1\n2\n")
    other = on_machine(address, tmp_path / "two")
    with other.opened() as mirror:
        mirror.send_commit(commit(other.folder, 2, text="of the other machine"))
    again = fetched(address, tmp_path / "one", use="write")
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


@pytest.mark.slow
@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "step that is committed again"])
def test_a_kill_at_any_request_leaves_a_whole_commit(store, tmp_path, monkeypatch, same_step):
    new, outcomes, made, killed = 3 if same_step else 4, [], [], True
    while killed:
        address, name = store.new(), str(len(outcomes))
        run, killed = on_machine(address, tmp_path / name), False
        with monkeypatch.context() as patch, suppress(KilledError), run.opened() as mirror:
            for step in (1, 2, 3):
                (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                (run.folder / "metrics.jsonl").write_text("step\n" * step)
                mirror.send_commit(commit(run.folder, step))
            (run.folder / "metrics.jsonl").write_text("step\n" * new)
            shutil.rmtree(run.folder / "checkpoints/rl/1")  # as Checkpoints does
            made, killed = _killed_at(len(outcomes), patch), True
            mirror.send_commit(commit(run.folder, new, text="new"))
            killed = False
        objects = ObjectFolder(address)
        objects.delete(objects.tags("writer/"))  # the process that held it was killed
        there = fetched(address, tmp_path / f"{name}-there", use="write") / "checkpoints/rl"
        step = sealed_steps(there)[0]
        assert damage(there / str(step)) is None
        arrays = (there / str(step) / "state/d/arrays").read_text()
        assert arrays in ({"rl 3 new", "rl 3 ", "rl 2 "} if same_step else {"rl 4 new", "rl 3 "})
        names = objects.tags()
        steps = {name.split("/")[2] for name in names if name.startswith("checkpoints/")}
        assert all(f"checkpoints/rl/{kept}/seal.json" in names for kept in steps) and "metrics.jsonl" in names
        outcomes.append(arrays)
    assert len(made) >= 5 and len(set(outcomes)) >= 2 and outcomes[-1] == f"rl {new} new"


def test_superfluous_commits_are_deleted_and_the_best_stays(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        for step in (1, 2, 3, 4):
            folder = commit(run.folder, step, best=1)
            for old in (step - 2,):
                if old > 1:
                    shutil.rmtree(run.folder / f"checkpoints/rl/{old}")
            mirror.send_commit(folder)
    names = {name.split("/")[2] for name in ObjectFolder(address).tags("checkpoints/")}
    assert names == {"1", "3", "4"}
    assert sealed_steps(fetched(address, tmp_path / "two") / "checkpoints/rl") == [4, 1]
    other = on_machine(address, tmp_path / "three")
    with other.opened() as mirror:
        assert sealed_steps(other.folder / "checkpoints/rl") == [4, 3, 1]  # as on the first machine
        shutil.rmtree(other.folder / "checkpoints/rl/3")
        mirror.send_commit(commit(other.folder, 5, best=1))
    assert {name.split("/")[2] for name in ObjectFolder(address).tags("checkpoints/")} == {"1", "4", "5"}


@pytest.mark.parametrize("what", ["content", "missing", "added", "seal"])
def test_a_damaged_commit_is_named_and_the_one_before_it_is_used(address, tmp_path, capsys, what):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
        mirror.send_commit(commit(run.folder, 2))
    objects = ObjectFolder(address)
    if what == "missing":
        objects.delete(["checkpoints/rl/2/state/d/arrays"])
    else:
        place = {"content": "state/d/arrays", "added": "state/d/more", "seal": "seal.json"}[what]
        objects.write(f"checkpoints/rl/2/{place}", b"other")
    there = fetched(address, tmp_path / "two", use="write") / "checkpoints/rl"
    assert sealed_steps(there) == [1]
    assert "checkpoints/rl/2 is damaged" in capsys.readouterr().out
    with (again := on_machine(address, tmp_path / "two")).opened() as mirror:
        mirror.send_commit(commit(again.folder, 2))
    assert sealed_steps(fetched(address, tmp_path / "three") / "checkpoints/rl") == [2]


def test_commits_that_diverged_are_kept_but_not_used(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
        mirror.send_commit(commit(run.folder, 2))
        shutil.move(run.folder / "checkpoints/rl/2", run.folder / "checkpoints/rl.diverged.2")
        (run.folder / "diverged.rl.json").write_text("{}")
    there = fetched(address, tmp_path / "two", use="write")
    assert sealed_steps(there / "checkpoints/rl") == [1] and (there / "diverged.rl.json").exists()
    assert "checkpoints/rl.diverged.2/state/d/arrays" in ObjectFolder(address).tags()
    with (again := on_machine(address, tmp_path / "two")).opened():
        (again.folder / "diverged.rl.json").unlink()
    assert not (fetched(address, tmp_path / "three") / "diverged.rl.json").exists()


def test_a_reader_neither_deletes_nor_locks_and_adds_what_it_made(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
        ObjectFolder(address).write("checkpoints/rl/2/state/d/arrays", b"being sent")
        reader = on_machine(address, tmp_path / "one", use="read")
        with reader.opened():
            assert reader.folder != run.folder
            (reader.folder / "results.json").write_text("{}")
        assert "checkpoints/rl/2/state/d/arrays" in ObjectFolder(address).tags()
        (run.folder / "metrics.jsonl").write_text("1\n")
        mirror.send_commit(commit(run.folder, 3))
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
    with pytest.raises(StorageError, match="another one took over"), run.opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
        ObjectFolder(address).write("writer/9.json", b"{}")
        mirror.send_commit(commit(run.folder, 2))
    assert sealed_steps(fetched(address, tmp_path / "two") / "checkpoints/rl") == [1]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "checkpoints/rl/1/../../../../outside"])
def test_an_object_whose_name_leaves_the_folder_is_refused(address, tmp_path, monkeypatch, name):
    objects = {"checkpoints/rl/1/seal.json": "2 a", name: "2 b"}  # clients for S3 make no such names
    monkeypatch.setattr(ObjectFolder, "tags", lambda self, under="": objects)
    monkeypatch.setattr(ObjectFolder, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(StorageError, match="must hold a run directory, got an object named"):
        on_machine(address, tmp_path / "one", use="read")._fetch_once()


@pytest.mark.parametrize("use", ["write", "read", "look"])
def test_remains_of_an_interrupted_command_are_removed(address, tmp_path, use):
    with (run := on_machine(address, tmp_path / "one")).opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
    checkpoints = tmp_path / f"one/{run.folder.parent.name}/{use}/checkpoints"
    for name in (".rl.1.fetched", "rl.replaced.1", "rl.damaged.2", "rl.diverged.3", "sft"):
        (checkpoints / name / "state").mkdir(parents=True)
        (checkpoints / name / "seal.json").write_text("{}")
    (checkpoints / "file").write_text("")
    found = fetched(address, tmp_path / "one", use=use) / "checkpoints"
    assert [entry.name for entry in found.iterdir()] == ["rl"] and sealed_steps(found / "rl") == [1]


def test_a_reader_begins_again_if_what_it_fetches_is_deleted(address, tmp_path, monkeypatch):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run.folder / "diverged.rl.json").write_text("{}")
        mirror.send_commit(commit(run.folder, 1))
        fetch, deleted = ObjectFolder.fetch, []

        def deleted_before(self, files, *rest):
            if len(deleted) < 2 and files:
                deleted.append(list(files))
                (run.folder / "diverged.rl.json").unlink(missing_ok=True)
                if len(deleted) == 2:
                    shutil.rmtree(run.folder / "checkpoints/rl")
                    commit(run.folder, 3)
                mirror.send_commit(commit(run.folder, 2 * len(deleted)))
            return fetch(self, files, *rest)

        monkeypatch.setattr(ObjectFolder, "fetch", deleted_before)
        found = fetched(address, tmp_path / "two")
    assert sealed_steps(found / "checkpoints/rl") == [4] and not (found / "diverged.rl.json").exists()


def test_objects_stay_if_a_work_folder_is_emptied(address, tmp_path):
    run = on_machine(address, tmp_path / "one")
    with run.opened() as mirror:
        commit(run.folder, 1)
        (run.folder / "config.json").write_text("{}")
        mirror.send_commit(run.folder / "checkpoints/rl/1")
    for use in ("write", "read"):
        with (again := on_machine(address, tmp_path / "one", use=use)).opened():
            shutil.rmtree(again.folder)
    assert "config.json" in ObjectFolder(address).tags()
    assert (fetched(address, tmp_path / "one") / "config.json").exists()


def test_a_run_without_a_sound_commit_is_not_started_anew(address, tmp_path):
    with (run := on_machine(address, tmp_path / "one")).opened() as mirror:
        mirror.send_commit(commit(run.folder, 1))
    ObjectFolder(address).write("checkpoints/rl/1/state/d/arrays", b"other")
    with pytest.raises(CheckpointError, match=r"must match its checksums, none of 1 does; delete them there"):
        fetched(address, tmp_path / "two", use="write")


def test_results_that_could_not_be_sent_are_sent_by_the_next_reader(address, tmp_path, monkeypatch):
    fetched(address, tmp_path / "one", use="write")
    ObjectFolder(address).write("config.json", b"{}")
    reader = on_machine(address, tmp_path / "two", use="read")
    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match=f"no answer; the files are in {reader.folder}"),
        reader.opened(),
    ):
        (reader.folder / "results.json").write_text("{}")
        patch.setattr(ObjectFolder, "write", lambda *_: (_ for _ in ()).throw(StorageError("no answer")))
    fetched(address, tmp_path / "two")
    assert "results.json" in ObjectFolder(address).tags()


def test_readers_on_one_machine_have_folders_of_their_own(address, tmp_path):
    ObjectFolder(address).write("config.json", b"{}")
    first = on_machine(address, tmp_path, use="read")
    with one_writer(first.folder), first.opened():
        second = on_machine(address, tmp_path, use="read")
        with one_writer(second.folder), second.opened():
            assert second.folder != first.folder
    assert on_machine(address, tmp_path, use="read").folder == first.folder


def test_a_reader_fetches_what_it_needs(address, tmp_path):
    with (run := on_machine(address, tmp_path / "one")).opened() as mirror:
        for phase in ("sft", "rl"):
            for step in (1, 2, 3):
                mirror.send_commit(commit(run.folder, step, phase=phase, best=1))
    steps = {"read": [3, 1], "look": [3, 2, 1], "write": [3, 2, 1]}
    for use, found in steps.items():
        folder = fetched(address, tmp_path / use, use=use) / "checkpoints"
        assert [sealed_steps(folder / phase) for phase in ("sft", "rl")] == [found, found]
        assert (folder / "rl/3/state").exists() == (use != "look")
    folder = fetched(address, tmp_path / "some", phases=["rl"], step=2) / "checkpoints"
    assert sealed_steps(folder / "rl") == [3, 2, 1] and not (folder / "sft").exists()


def test_a_reader_of_nothing_is_refused(address, tmp_path):
    with pytest.raises(UsageError, match="must be a run, but nothing is there"):
        fetched(address, tmp_path)
