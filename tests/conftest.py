"""Eight fake CPU devices for every test, unless another platform is asked for, and no network."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `JAX_PLATFORMS=cuda pytest -m gpu` on a GPU
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # Eight devices on two busy cores can be late for a collective; XLA would end the process after 40 seconds.
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    # Tests compile much and compute little: without LLVM's optimisations they take two thirds of the time.
    " --xla_backend_optimization_level=0"
)
os.environ["HF_HUB_OFFLINE"] = "1"
