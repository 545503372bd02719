"""Eight fake CPU devices for every test, unless another platform is asked for, and no network."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `JAX_PLATFORMS=cuda pytest -m gpu` on a GPU
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
