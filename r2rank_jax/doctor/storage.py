"""Space at the run directory, its object store, the cache of compiled programs, and limits of the operating system."""

from __future__ import annotations

import filecmp
import os
import resource
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from r2rank_jax.checkpoint.commits import KEPT
from r2rank_jax.config import MeshConfig, RunConfig
from r2rank_jax.doctor.findings import GIB, MIB, Finding, fault, ok, size_text, warning
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.files.places import require_folder
from r2rank_jax.plan.estimate import bytes_on_device
from r2rank_jax.sharding import abstract_lists, mesh_of_shapes
from r2rank_jax.train.state import abstract_state

LEAST_INODES = 1000
"""A commit has tens of files for each process."""
LEAST_OPEN_FILES = 1024
LEAST_REGIONS = 65_530
"""Linux's default. Every compiled program maps a few regions of memory."""
BATCHES_AHEAD = 3
"""Batches that each of Grain's workers holds in shared memory: two in its buffer and the one it writes."""
STORE_BYTES = 32 * MIB
LEAST_CACHE_BYTES = GIB // 4


def state_bytes(config: RunConfig) -> dict[str, int]:
    """Bytes of the train state of each phase, of all devices together. A commit is a little smaller, as compressed."""
    mesh, whole = MeshConfig(), {}
    for phase, section, updates in (("sft", config.sft, 1), ("rl", config.rl, config.rl.updates)):
        one_device = mesh_of_shapes(mesh)
        steps = section.steps * updates
        whole[phase] = bytes_on_device(
            abstract_state(one_device, config.model, section.optimizer, steps, config.trained)  # type: ignore[arg-type]
        )
    return whole


def check_run_dir(config: RunConfig, run_dir: Path) -> list[Finding]:
    """Whether the file system of the run directory holds all commits that exist at one time.

    These are the kept ones of SFT and of RL, among them the best validation's, and one more while it is written.
    """
    require_folder(run_dir, "--run-dir")
    sizes = state_bytes(config)
    kept = {phase: KEPT + (section.patience > 0) for phase, section in (("sft", config.sft), ("rl", config.rl))}
    needed = sum(kept[phase] * size for phase, size in sizes.items()) + max(sizes.values())
    own = _bytes_under(run_dir / "checkpoints")
    place = _nearest(run_dir)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    commits = sum(kept.values()) + 1
    figures = f"{commits} commits of up to {size_text(max(sizes.values()))}"
    if free < needed - own:
        return [
            fault(
                "disk",
                f"{run_dir} must hold {figures}, {size_text(needed - own)} more, got {size_text(free)} free",
                "make room, or choose a --run-dir on a larger disk",
            )
        ]
    if status.f_files and status.f_favail < LEAST_INODES:
        return [
            fault(
                "disk",
                f"{run_dir} must hold {LEAST_INODES} more files, got {status.f_favail} free inodes",
                "remove small files, or choose a --run-dir on another disk",
            )
        ]
    return [ok("disk", f"{size_text(free)} free at the run directory, for {figures}")]


def check_store(address: str) -> list[Finding]:
    """Whether the object store of the run takes, gives back and deletes objects, how fast, and tells writers apart.

    Raises:
        StorageError: it does not answer, or refuses.
    """
    objects = ObjectFolder(address, patience_s=0)
    name = f".doctor/{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as scratch:
        sent, back = Path(scratch, "sent"), Path(scratch, "back")
        sent.write_bytes(os.urandom(STORE_BYTES))
        try:
            start = time.perf_counter()
            objects.send({name: sent})
            sent_s = time.perf_counter() - start
            start = time.perf_counter()
            objects.fetch({name: back})
            back_s = time.perf_counter() - start
            claims = [objects.create(f"{name}.claim", b""), objects.create(f"{name}.claim", b"")]
        finally:
            objects.delete([name, f"{name}.claim"])
        if not filecmp.cmp(sent, back, shallow=False):
            what = f"{objects.address} must give back what it was sent, got another content"
            return [fault("store", what, "keep the run in another store")]
    if claims != [True, False]:
        what = f"{objects.address} should create an object for one of two writers only, got {claims}"
        return [warning("store", what, "start one job at a time on this run, since they cannot notice each other")]
    rates = f"{STORE_BYTES / MIB / sent_s:.3g} and {STORE_BYTES / MIB / back_s:.3g} MiB/s"
    figures = f"{STORE_BYTES // MIB} MiB sent in {sent_s:.2g} s, fetched in {back_s:.2g} s ({rates})"
    return [ok("store", f"{objects.address}: {figures}")]


def check_cache(cache: str | None) -> list[Finding]:
    """Whether compiled programs can be kept. A run works without, but compiles again at every start.

    Args:
        cache: `jax.config.jax_compilation_cache_dir`; None or empty: turned off.
    """
    if not cache:
        remedy = "unset JAX_COMPILATION_CACHE_DIR, or set it to a folder"
        return [warning("cache", "compiled programs should be kept, got no folder for them", remedy)]
    if "://" in cache:
        return [ok("cache", f"{cache}, in remote storage; not tried")]
    remedy = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        what = f"compiled programs should be kept in {cache}, got: {error.strerror}"
        return [warning("cache", what, remedy)]
    free = shutil.disk_usage(cache).free
    if free < LEAST_CACHE_BYTES:
        what = f"compiled programs should have {size_text(LEAST_CACHE_BYTES)} in {cache}, got {size_text(free)} free"
        return [warning("cache", what, "make room, or set JAX_COMPILATION_CACHE_DIR to a larger disk")]
    return [ok("cache", f"{cache}, {size_text(free)} free")]


def check_limits(config: RunConfig) -> list[Finding]:
    """Open files, mapped regions, and shared memory for the processes that prepare batches."""
    findings = []
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = files == resource.RLIM_INFINITY
    if not unlimited and files < LEAST_OPEN_FILES:
        can = "" if most == resource.RLIM_INFINITY or most >= LEAST_OPEN_FILES else " as root"
        what = f"a process should be able to open {LEAST_OPEN_FILES} files, got {files}"
        findings.append(warning("limits", what, f"run `ulimit -n {LEAST_OPEN_FILES}` before{can}"))
    regions = _number(Path("/proc/sys/vm/max_map_count"))
    if regions is not None and regions < LEAST_REGIONS:
        what = f"a process should be able to map {LEAST_REGIONS} regions of memory, got {regions}"
        findings.append(warning("limits", what, f"run `sysctl vm.max_map_count={LEAST_REGIONS}` as root"))
    if workers := config.compute.data_workers:
        findings += _shared_memory(config, workers)
    if findings:
        return findings
    mapped = "" if regions is None else f", {regions:,} mapped regions"
    return [ok("limits", f"{'unlimited' if unlimited else f'{files:,}'} open files{mapped}")]


def _shared_memory(config: RunConfig, workers: int) -> list[Finding]:
    users = max(config.sft.batch_users, config.rl.batch_users)
    batch = bytes_on_device(abstract_lists(mesh_of_shapes(MeshConfig()), config, users))  # type: ignore[arg-type]
    needed, free = workers * BATCHES_AHEAD * batch, shutil.disk_usage("/dev/shm").free
    if free >= needed:
        return []
    what = (
        f"/dev/shm must hold batches of compute.data_workers={workers}, {size_text(needed)}, got {size_text(free)} free"
    )
    return [fault("limits", what, "enlarge /dev/shm (--shm-size of a container), or lower it")]


def _nearest(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _bytes_under(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
