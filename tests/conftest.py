"""Eight fake CPU devices for every test, unless another platform is asked for, and no network."""

import gc
import os
import threading
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `JAX_PLATFORMS=cuda pytest -m gpu` on a GPU
# XLA runs independent collectives of a program at the same time, each on a thread of one pool, by default of as many
# threads as devices. Devices that take them in different orders fill such a pool and wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "64")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # With 64 threads on two cores, splitting one operation among them only costs time.
    " --xla_cpu_multi_thread_eigen=false"
    # Eight devices on two busy cores can be late for a collective; XLA would end the process after 40 seconds.
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    # Tests compile much and compute little: without LLVM's optimisations they take two thirds of the time.
    " --xla_backend_optimization_level=0"
)
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

pytest.register_assert_rewrite("tests.support")  # so that a failed assertion there shows its values

import jax  # noqa: E402

from r2rank_jax.files import downloads  # noqa: E402
from tests.support.servers.http_server import Server  # noqa: E402
from tests.support.servers.object_stores import s3_store  # noqa: E402


@pytest.fixture
def server(monkeypatch):
    """A local HTTP server whose answers a test scripts; retries do not wait."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0.01)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def store():
    """A local object store that speaks S3."""
    with s3_store() as running:
        yield running


@pytest.fixture
def address(store):
    """An address in the local object store that nothing uses."""
    return store.new()


# Every compiled program maps a few regions of memory. Linux allows a process 65,530; XLA aborts when there are no more.
MAPPED_REGIONS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs():
    """After a test file, forget the compiled programs if there are many. They also hold gigabytes of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPED_REGIONS:
        jax.clear_caches()
        gc.collect()
