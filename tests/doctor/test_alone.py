"""What each process checks alone, on stand-ins for what the machine says."""

import os
import resource
import sys
from collections import namedtuple
from types import SimpleNamespace

import jax
import pytest

from r2rank_jax.checkpoint.commits import KEPT, Checkpoints
from r2rank_jax.config import ComputeConfig, DataConfig, MeshConfig, ModelConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.doctor import devices, storage, versions
from r2rank_jax.doctor.agreement import compare, configuration_facts, flag_facts
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.state import fresh_state

MODEL = ModelConfig(vocabulary=64, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp_width=32)
CONFIG = RunConfig(name="small", model=MODEL)
GIB = 2**30


def distribution(folder, name, version, *requires):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))


# -- versions ---------------------------------------------------------------------------------------------------------


def test_the_installed_versions_are_sound_here():
    outcome = versions.check_versions()
    assert [one.verdict for one in outcome.findings] == ["ok"]
    assert outcome.facts["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("name", "version", "what"),
    [
        ("flax", "0.1", "r2rank-jax requires flax"),
        ("jaxlib", "0.1", "jax requires jaxlib"),
        ("jax-cuda13-plugin", "0.1", "jax-cuda13-plugin must have the version of jaxlib"),
        ("jax-rocm7-pjrt", "0.1", "jax-rocm7-pjrt must have the version of jaxlib"),
        ("libtpu", "0.0.1", "jax requires libtpu"),
    ],
)
def test_versions_that_do_not_go_together_are_faults(tmp_path, monkeypatch, name, version, what):
    distribution(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    findings = versions.check_versions().findings
    assert [(one.verdict, one.what.startswith(what)) for one in findings] == [("fault", True)], findings
    assert findings[0].remedy.startswith("run `pip install")


def test_gpus_that_jax_does_not_see(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = versions.check_unseen_gpus("cpu")
    assert found.verdict == "warning" and "nvidia-smi lists 2" in found.what
    assert versions.check_unseen_gpus("gpu") == []
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert versions.check_unseen_gpus("cpu") == []


# -- devices and memory -----------------------------------------------------------------------------------------------


def test_unused_devices_are_a_warning():
    assert [one.verdict for one in devices.check_devices(MeshConfig(data=8)).findings] == ["ok"]
    found = devices.check_devices(MeshConfig(data=2)).findings[-1]
    assert found.verdict == "warning" and "got 2 of 8" in found.what


def test_devices_that_do_not_start_are_a_fault(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(devices.jax, "devices", fail)
    (found,) = devices.check_devices(MeshConfig()).findings
    assert found.verdict == "fault" and "Unable to initialize" in found.what


def test_memory_is_that_of_the_devices(monkeypatch):
    (found,) = devices.check_memory(CONFIG, 1)
    assert found.verdict == "ok"
    stats = [{"bytes_limit": 9 * GIB, "bytes_in_use": GIB}, {"bytes_limit": 5 * 2**20, "bytes_in_use": 2**20}]
    monkeypatch.setattr(devices.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        devices.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    )
    assert devices.free_bytes(2) == 4 * 2**20, "the fullest device counts"
    (found,) = devices.check_memory(CONFIG, 1)
    assert found.verdict == "fault" and found.remedy
    monkeypatch.setattr(devices.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None)])
    (found,) = devices.check_memory(CONFIG, 1)
    assert found.verdict == "warning" and "report their memory" in found.what


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {}, 8 * GIB),
        ("0::/job", {"job/memory.max": 3 * GIB, "job/memory.current": GIB}, 2 * GIB),
        ("0::/", {"memory.max": 3 * GIB, "memory.current": GIB}, 2 * GIB),
        ("0::/job", {"job/memory.max": "max", "job/memory.current": GIB}, 8 * GIB),
        (
            "4:memory:/job\n0::/",
            {"memory/job/memory.limit_in_bytes": 2 * GIB, "memory/job/memory.usage_in_bytes": GIB},
            GIB,
        ),
        ("0::/job", {"job/memory.max": GIB, "job/memory.current": 2 * GIB}, 0),
    ],
)
def test_the_memory_of_a_host_and_its_container(tmp_path, group, files, expected):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {9 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n")
    (proc / "self/cgroup").write_text(f"{group}\n")
    for name, value in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(f"{value}\n")
    assert devices.host_bytes(proc, cgroups) == expected


# -- disks and limits -------------------------------------------------------------------------------------------------


def test_the_state_is_as_large_as_a_commit(tmp_path):
    """Orbax compresses, so a commit is smaller, but hardly: most of a fresh state is random, or half of it zeros."""
    mesh, steps = make_mesh(MeshConfig()), CONFIG.sft.steps
    model = MODEL.__class__(vocabulary=4096, width=64)
    state = fresh_state(mesh, model, CONFIG.sft.optimizer, steps, 0)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert storage.state_bytes(RunConfig(name="s", model=model))["sft"] == held
    checkpoints = Checkpoints(tmp_path / "sft")
    record = PhaseRecord(phase="sft", config={}, iterator=None, steps=9, wall_s=0.0, finished=False, has_average=False)
    checkpoints.save(1, state, record)
    checkpoints.close()
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert held / 4 < written < 1.1 * held


Status = namedtuple("Status", "f_bavail f_frsize f_files f_favail")


@pytest.mark.parametrize(
    ("free", "inodes", "patience", "verdict"),
    [(1.01, 5000, 0, "ok"), (0.99, 5000, 0, "fault"), (1.01, 5000, 1, "fault"), (1.01, 999, 0, "fault")],
)
def test_a_disk_holds_the_kept_commits_and_one_more(tmp_path, monkeypatch, free, inodes, patience, verdict):
    config = RunConfig(name="s", model=MODEL, sft=SFTConfig(patience=patience), rl=RLConfig())
    sizes = storage.state_bytes(config)
    needed = KEPT * (sizes["sft"] + sizes["rl"]) + max(sizes.values())
    monkeypatch.setattr(storage.os, "statvfs", lambda _: Status(int(free * needed), 1, 10_000, inodes))
    (found,) = storage.check_run_dir(config, tmp_path / "run")
    assert found.verdict == verdict, found
    assert not (tmp_path / "run").exists()


def test_commits_that_are_there_already_need_no_further_space(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/file").write_bytes(bytes(10 * max(storage.state_bytes(CONFIG).values())))
    monkeypatch.setattr(storage.os, "statvfs", lambda _: Status(0, 1, 0, 0))  # a file system that counts no inodes
    (found,) = storage.check_run_dir(CONFIG, tmp_path)
    assert found.verdict == "ok"


def test_the_cache_of_compiled_programs(tmp_path, monkeypatch):
    def verdict(cache):
        (found,) = storage.check_cache(cache)
        return found.verdict

    (tmp_path / "file").write_text("")
    assert verdict(str(tmp_path / "cache")) == "ok" and verdict("gs://bucket/cache") == "ok"
    assert verdict(None) == verdict("") == verdict(str(tmp_path / "file/cache")) == "warning"
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert verdict(str(tmp_path / "cache")) == "warning"


def test_limits_of_the_operating_system(monkeypatch):
    assert [one.verdict for one in storage.check_limits(CONFIG)] == ["ok"]
    monkeypatch.setattr(storage.resource, "getrlimit", lambda _: (256, 512))
    monkeypatch.setattr(storage, "LEAST_REGIONS", 2**40)
    files, regions = storage.check_limits(CONFIG)
    assert "1024 files, got 256" in files.what and files.remedy.endswith("as root")
    assert "sysctl" in regions.remedy
    monkeypatch.setattr(storage.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(storage, "LEAST_REGIONS", 1)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert [one.verdict for one in storage.check_limits(CONFIG)] == ["ok"], "without workers, it is not used"
    (found,) = storage.check_limits(RunConfig(name="s", model=MODEL, compute=ComputeConfig(data_workers=2)))
    assert found.verdict == "fault" and "/dev/shm" in found.what


# -- agreement --------------------------------------------------------------------------------------------------------


def test_processes_that_differ_are_named_with_what_differs():
    same = {"versions": {"jax": "1"}, "code": {"commit": "a" * 40, "source": "b"}}
    facts = {0: same, 1: same | {"versions": {"jax": "2"}}, 2: same, 3: same | {"versions": {"jax": "2"}}}
    code, apart = compare(facts)
    assert code.verdict == "ok" and code.what == f"commit {'a' * 12}, source b in 4 processes"
    assert (
        apart.verdict == "fault" and "the versions of process 0, got processes 1 and 3 with jax: 1 -> 2" in apart.what
    )
    without = {name: same["code"] for name in ("code",)}
    assert [one.verdict for one in compare({0: same, 1: without})] == ["ok"], "a failed check is no difference"


def test_paths_may_differ_and_their_contents_are_compared_elsewhere():
    other = RunConfig(name="small", model=MODEL, data=DataConfig(directory="/local/data", traces="/local/traces"))
    assert configuration_facts(CONFIG) == configuration_facts(other)
    longer = RunConfig(name="small", model=MODEL, sft=SFTConfig(steps=5))
    (found,) = compare({0: configuration_facts(CONFIG), 1: configuration_facts(longer)})
    assert "sft.steps: 1000 -> 5" in found.what


def test_only_flags_that_must_be_the_same_are_compared():
    values = {"XLA_FLAGS": "--x", "JAX_ENABLE_X64": "1", "JAX_PROCESS_ID": "3", "HOME": "/", "R2RANK_PROCESS": "1"}
    assert flag_facts(values) == {"flags": {"XLA_FLAGS": "--x", "JAX_ENABLE_X64": "1"}}
