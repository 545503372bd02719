"""Checkpoints: which are valid, which are deleted, how they load on another mesh, and which are refused."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.checkpoint.folders import policy_identity, sealed_steps
from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import MeshConfig, ModelConfig, OptimizerConfig, RunConfig, to_json
from r2rank_jax.errors import CheckpointError
from r2rank_jax.files.checksums import SEAL, write_seal
from r2rank_jax.phases import Best, PhaseRecord
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.train.state import abstract_state, fresh_state

MODEL = ModelConfig(vocabulary=32, width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp_width=32)
OPTIMIZER = OptimizerConfig(ema_decay=0.9)
CONFIG = RunConfig(name="test", model=MODEL)
ONE, EIGHT = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)


@functools.cache
def first_state():
    return fresh_state(make_mesh(ONE), MODEL, OPTIMIZER, 10, 0)


def make_state(seed):
    """A state in which every leaf depends on the seed."""
    return jax.tree.map(lambda x: x + np.asarray(seed, x.dtype), first_state())


def like(mesh=ONE):
    return abstract_state(make_mesh(mesh), MODEL, OPTIMIZER, 10)


def record(step, **other):
    values = {"phase": "sft", "iterator": {"next": step}, "steps": 10, "finished": True, "has_average": True}
    return PhaseRecord(config=to_json(CONFIG), wall_s=1.5 * step, **(values | other))


def save(folder, *steps, keep=2, **other):
    """Commit a different state at every step."""
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), record(step, **({"phase": folder.name} | other)))
    checkpoints.close()


def equal(a, b):
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize(
    "which",
    [largest, lambda f: f / "state/_METADATA", lambda f: f / "extras/metadata", lambda f: f / SEAL],
    ids=["arrays", "state_metadata", "extras", "seal"],
)
@pytest.mark.parametrize("place", [0, 0.5], ids=["first", "middle"])
def test_a_flipped_bit_falls_back_to_the_commit_before(tmp_path, capsys, which, place):
    save(tmp_path / "sft", 1, 2)
    path = which(tmp_path / "sft/2")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)

    checkpoints = Checkpoints(tmp_path / "sft")
    assert checkpoints.latest() == 1
    assert "sft/2 is damaged" in capsys.readouterr().out
    assert sealed_steps(tmp_path / "sft") == [1], "a damaged commit must not count again, nor be counted by keep"
    assert (tmp_path / "sft.damaged.2").is_dir(), "it is kept for inspection"
    state, restored = checkpoints.restore(1, like())
    assert equal(state, make_state(1)) and not equal(state, make_state(2))
    assert restored == dataclasses.replace(record(1), step=1)
    checkpoints.save(2, make_state(2), record(2))  # the run goes on and commits that step again
    checkpoints.close()
    assert Checkpoints(tmp_path / "sft").latest() == 2


def test_a_missing_and_an_added_file_are_damage(tmp_path):
    save(tmp_path / "sft", 1, 2, 3)
    largest(tmp_path / "sft/3").unlink()
    (tmp_path / "sft/2/state/other").write_text("x")
    assert Checkpoints(tmp_path / "sft", keep=3).latest() is None


def test_a_complete_commit_without_its_seal_is_sealed_and_other_remains_are_deleted_but_not_by_a_reader(tmp_path):
    """A process that is killed between Orbax's commit and the seal has done the work."""
    save(tmp_path / "sft", *range(1, 8), keep=9)
    for step in range(3, 8):
        (tmp_path / f"sft/{step}" / SEAL).unlink()
    (tmp_path / "sft/4/_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(tmp_path / "sft/5/extras")
    shutil.rmtree(tmp_path / "sft/6/state/d")
    shutil.rmtree(tmp_path / "sft/7/state/ocdbt.process_0")
    interrupted = tmp_path / "sft/8.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "sft/3", interrupted)
    shutil.copytree(tmp_path / "sft/2", tmp_path / "sft/²")  # a digit, but not a number
    names = {*"1234567²", interrupted.name}

    load_policy(tmp_path / "sft", abstract_params(make_mesh(ONE), MODEL), CONFIG)
    assert {f.name for f in (tmp_path / "sft").iterdir()} == names, "a training run may be writing these"
    assert sealed_steps(tmp_path / "sft") == [2, 1]
    checkpoints = Checkpoints(tmp_path / "sft")
    assert checkpoints.latest() == 3
    assert equal(checkpoints.restore(3, like())[0], make_state(3))
    assert sorted(f.name for f in (tmp_path / "sft").iterdir()) == ["1", "2", "3", "²"]


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [("sft/2", "rl/6", "it is a checkpoint of sft"), ("rl/5", "rl/6", "it was saved as step 5")],
)
def test_a_commit_that_was_put_elsewhere_is_not_used(tmp_path, capsys, source, target, problem):
    save(tmp_path / "sft", 2)
    save(tmp_path / "rl", 5)
    shutil.copytree(tmp_path / source, tmp_path / target)
    policy = abstract_params(make_mesh(ONE), MODEL)
    assert load_policy(tmp_path / "rl", policy, CONFIG).step == 5
    assert problem in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=problem):
        load_policy(tmp_path / "rl", policy, CONFIG, step=6)
    assert Checkpoints(tmp_path / "rl").latest() == 5


def test_a_commit_that_cannot_be_read_is_one_line(tmp_path):
    save(tmp_path / "sft", 2)
    shutil.rmtree(tmp_path / "sft/2/state/ocdbt.process_0")
    write_seal(tmp_path / "sft/2")
    with pytest.raises(CheckpointError, match=r"^checkpoint sft/2 cannot be read \([^\n]*; remove or restore [^\n]*$"):
        load_policy(tmp_path / "sft", abstract_params(make_mesh(ONE), MODEL), CONFIG)
    with pytest.raises(CheckpointError, match="checkpoint sft/2 cannot be read"):
        Checkpoints(tmp_path / "sft").restore(2, like())


def test_commits_that_are_set_aside_no_longer_count(tmp_path):
    save(tmp_path / "sft", 1, 2)
    checkpoints = Checkpoints(tmp_path / "sft", keep=9)
    for _ in range(2):  # the second time, the folder of the first is there
        checkpoints.save(3, make_state(3), record(3))
        checkpoints.set_aside(2, "diverged")
        assert sealed_steps(tmp_path / "sft") == [1] and checkpoints.latest() == 1
    assert {f.name for f in tmp_path.iterdir()} == {"sft", "sft.diverged.2", "sft.diverged.3"}


def test_a_policy_of_a_chosen_step(tmp_path):
    save(tmp_path / "rl", 4, 5, finished=False)
    policy = abstract_params(make_mesh(ONE), MODEL)
    latest, chosen = (load_policy(tmp_path / "rl", policy, CONFIG, step=s, unfinished=True) for s in (None, 4))
    assert (latest.step, chosen.step) == (5, 4)
    assert equal(chosen.params, make_state(4).average) and equal(latest.params, make_state(5).average)
    with pytest.raises(CheckpointError, match="--step must be one of the checkpoints of rl, 5, 4, got 3"):
        load_policy(tmp_path / "rl", policy, CONFIG, step=3, unfinished=True)
    largest(tmp_path / "rl/4").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint rl/4 is damaged .*; choose another --step"):
        load_policy(tmp_path / "rl", policy, CONFIG, step=4, unfinished=True)


def test_only_the_newest_commits_stay(tmp_path):
    save(tmp_path / "sft", 1, 2, 3, 10)
    assert sorted(f.name for f in (tmp_path / "sft").iterdir()) == ["10", "3"]
    assert Checkpoints(tmp_path / "sft").latest() == 10, "steps are numbers, not names"


def test_a_commit_of_the_same_step_replaces_the_old_one(tmp_path):
    """As after a stop during a validation. The old one stays until the new one is sealed."""
    folder = tmp_path / "sft"
    save(folder, 3, finished=False, validated=False)
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, make_state(30), record(3))
    checkpoints.close()
    assert [f.name for f in tmp_path.iterdir()] == ["sft"] and sealed_steps(folder) == [3]
    state, restored = Checkpoints(folder).restore(3, like())
    assert equal(state, make_state(30)) and restored.validated

    # Killed while the new one was written: the old one counts again.
    (folder / "3").rename(tmp_path / "sft.replaced.3")
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 3 and equal(checkpoints.restore(3, like())[0], make_state(30))
    # Killed after the new one was sealed: the old one is deleted.
    shutil.copytree(folder / "3", tmp_path / "sft.replaced.3")
    assert Checkpoints(folder).latest() == 3
    assert [f.name for f in tmp_path.iterdir()] == ["sft"]


def test_identities_of_commits_differ(tmp_path):
    save(tmp_path / "sft", 1, 2)
    checkpoints = Checkpoints(tmp_path / "sft")
    assert checkpoints.identity(1) == checkpoints.identity(1) != checkpoints.identity(2)


def test_restoring_on_another_mesh_and_back_changes_no_bit(tmp_path):
    save(tmp_path / "sft", 1)
    checkpoints = Checkpoints(tmp_path / "sft")
    eight, _ = checkpoints.restore(1, like(EIGHT))
    for leaf, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(like(EIGHT)), strict=True):
        assert leaf.sharding == expected.sharding
    assert len(eight.params["embedding"].sharding.device_set) == 8
    assert not eight.params["embedding"].sharding.is_fully_replicated, "the test must split parameters"
    assert equal(eight, make_state(1))

    checkpoints.save(2, eight, record(2))
    checkpoints.wait()
    one, _ = checkpoints.restore(2, like(ONE))
    assert len(one.params["embedding"].sharding.device_set) == 1
    assert equal(one, make_state(1))
    policy = load_policy(tmp_path / "sft", abstract_params(make_mesh(EIGHT), MODEL), CONFIG)
    assert equal(policy.params, make_state(1).average)
    checkpoints.close()


def test_the_policy_is_the_average_if_there_is_one(tmp_path):
    state = make_state(1)
    state = state.replace(average=jax.tree.map(lambda x: x + 1, state.params))
    expected = {"sft": state.average, "rl": state.params}
    for phase, has_average in (("sft", True), ("rl", False)):
        checkpoints = Checkpoints(tmp_path / phase)
        kept = state if has_average else state.replace(average=None)
        checkpoints.save(1, kept, record(1, phase=phase, has_average=has_average))
        checkpoints.close()
        policy = load_policy(tmp_path / phase, abstract_params(make_mesh(ONE), MODEL), CONFIG)
        assert equal(policy.params, expected[phase])
        assert policy.record.wall_s == 1.5 and policy.identity == checkpoints.identity(1) and policy.step == 1


def test_an_unusable_policy_is_refused(tmp_path):
    policy = abstract_params(make_mesh(ONE), MODEL)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*sft_continued; run `r2rank sft` first"):
        load_policy(tmp_path / "sft_continued", policy, CONFIG)
    assert not any(tmp_path.iterdir()), "a failed load must not create the folder"

    save(tmp_path / "rl", 4, finished=False)
    with pytest.raises(CheckpointError, match="rl stopped at step 4 of 10; run the same command again to finish it"):
        load_policy(tmp_path / "rl", policy, CONFIG)

    save(tmp_path / "sft", 10)
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, rope_theta=500.0))
    with pytest.raises(CheckpointError, match=r"model.rope_theta: 10000.0 -> 500.0"):
        load_policy(tmp_path / "sft", policy, other)

    largest(tmp_path / "sft/10").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .*sft is damaged; run that phase again"):
        load_policy(tmp_path / "sft", policy, CONFIG)


def test_the_best_validation_of_every_kept_commit_is_kept(tmp_path):
    """The commit before the newest must stay whole, with its own best, should the newest be damaged."""
    folder = tmp_path / "sft"
    for step, best in ((4, 4), (6, 4), (9, 4), (10, 10)):
        save(folder, step, best=Best(step=best, value=step / 10))
    assert sealed_steps(folder) == [10, 9, 4]
    assert load_policy(folder, abstract_params(make_mesh(ONE), MODEL), CONFIG).step == 10

    shutil.rmtree(folder / "10")
    policy = load_policy(folder, abstract_params(make_mesh(ONE), MODEL), CONFIG)
    assert policy.step == 4 and policy.record.done == 9 and policy.identity == policy_identity(folder)
    assert equal(policy.params, make_state(4).average)

    save(folder, 12, 14, best=Best(step=14, value=2.0))
    assert sealed_steps(folder) == [14, 12]


class Mirror:
    """Notes what it is told, and what the folder of commits looks like then."""

    def __init__(self, directory):
        self.directory, self.told = directory, []

    def _note(self, what, *details):
        self.told.append((what, *details, sealed_steps(self.directory)))

    def send_commit(self, folder):
        self._note("commit", int(folder.name))

    def send_files(self):
        self._note("files")

    def withdraw(self, phase, steps):
        self._note("withdraw", phase, steps)


def test_a_mirror_is_told_of_sealed_commits_and_before_commits_are_set_aside(tmp_path):
    mirror = Mirror(tmp_path / "sft")
    checkpoints = Checkpoints(tmp_path / "sft", mirror=mirror)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), record(step))
    checkpoints.set_aside(3, "diverged")
    checkpoints.send_files()
    checkpoints.close()
    commits = [("commit", 1, [1]), ("commit", 2, [2, 1]), ("commit", 3, [3, 2])]
    assert mirror.told == [*commits, ("withdraw", "sft", [3], [3, 2]), ("files", [2])]
