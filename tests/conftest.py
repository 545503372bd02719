"""Eight fake CPU devices for every test, unless another platform is asked for, and no network."""

import os
import threading

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `JAX_PLATFORMS=cuda pytest -m gpu` on a GPU
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # Eight devices on two busy cores can be late for a collective; XLA would end the process after 40 seconds.
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    # Tests compile much and compute little: without LLVM's optimisations they take two thirds of the time.
    " --xla_backend_optimization_level=0"
)
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

pytest.register_assert_rewrite("tests.support")  # so that a failed assertion there shows its values

from r2rank_jax.files import downloads  # noqa: E402
from tests.support.http_server import Server  # noqa: E402


@pytest.fixture
def server(monkeypatch):
    """A local HTTP server whose answers a test scripts; retries do not wait."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0.01)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()
