"""Peak memory of an import, measured in a separate process."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r2rank_jax.model.hf_config import config_to_hf
from r2rank_jax.model.hf_names import tensors
from r2rank_jax.pretrained.weights import write_sharded
from tests.support.pretrained.models import MODELS, copy_but_weights, saved

pytest.importorskip("torch")

MLP = "model.layers.0.mlp.gate_proj.weight"
MEMORY = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np
from r2rank_jax.pretrained import importing

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def peak_over(before):
    return status("VmHWM") - before

jax.block_until_ready(jax.jit(lambda x: x + 1)(np.ones(3)))  # loads the runtime
importing.import_model(sys.argv[1], importing.Path(sys.argv[2]))  # loads and compiles everything that is needed once
open("/proc/self/clear_refs", "w").write("5")  # resets VmHWM to the current usage
before = status("VmRSS")
importing.import_model(sys.argv[3], importing.Path(sys.argv[4]))
print(peak_over(before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc")
def test_memory_is_the_parameters_and_three_times_the_largest_tensor(tmp_path):
    """The model has 40 layers. A second copy of it, or of one of its stacked arrays, would exceed the limit."""
    config = dataclasses.replace(
        MODELS["llama"], vocabulary=16384, width=256, layers=40, heads=4, kv_heads=4, head_size=64, mlp_width=2048
    )
    shapes = {t.name: t.shape for t in tensors(config, language_head=True, score_head=False)}
    folder = tmp_path / "hf"
    folder.mkdir()
    copy_but_weights(saved("llama")[1], folder)
    noise = np.random.default_rng(0)  # compressible data could be held twice unnoticed
    write_sharded(folder, shapes, lambda name: noise.standard_normal(shapes[name], np.float32), "float32", 2**26)
    values = config_to_hf(config, form="causal-lm", pad=0, stop=1, bos=None, positions=64, dtype="float32")
    (folder / "config.json").write_text(json.dumps(values))

    small = saved("llama")[1]
    command = [sys.executable, "-c", MEMORY, small, tmp_path / "small", folder, tmp_path / "out"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    sizes = [4 * int(np.prod(shape)) for shape in shapes.values()]
    beyond = int(done.stdout.splitlines()[-1]) - sum(sizes)
    assert sum(sizes) > 15 * max(sizes), "the limit excludes a second copy of the model"
    assert 4 * 40 * math.prod(shapes[MLP]) > 4 * max(sizes), (
        "the limit excludes a second copy of the largest stacked array"
    )
    assert beyond < 3 * max(sizes), f"{beyond / max(sizes):.1f} times the largest tensor"
