"""The memory that an update may use."""

import re
from types import SimpleNamespace

import jax
import numpy as np

from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.runs import memory_budget
from r2rank_jax.runs.memory_budget import choose_budget
from r2rank_jax.train.memory.gradients import COPY_TABLES


def test_the_budget_is_half_of_what_model_and_optimizer_leave(monkeypatch, capsys):
    config = RunConfig(name="tiny", model=ModelConfig(heads=4, kv_heads=2, head_size=8))
    assert choose_budget(config) is config, "a CPU does not report its memory"
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9 * 2**30, "bytes_in_use": 2**30})
    monkeypatch.setattr(memory_budget.jax, "local_devices", lambda: [device])
    shapes = jax.tree.leaves(jax.eval_shape(lambda: initial_params(config.model, jax.random.key(0))))
    tree, vocabulary = sum(leaf.size for leaf in shapes), config.model.vocabulary * config.model.width
    copies = COPY_TABLES["cpu"][0].chunks  # two layers are written out
    # Five trees are policy, its average, two moments and the reference.
    numbers = 5 * tree + copies.layers * (tree - vocabulary) + copies.vocabulary * vocabulary
    held = 4 * numbers / 2**30
    chosen = choose_budget(config)
    np.testing.assert_allclose(chosen.compute.update_gib, (8 - held) / 2)
    assert re.search(r"memory: 8.0 GiB free, \d+\.\d for the model, \d\.\d for activations", capsys.readouterr().out)
    assert choose_budget(chosen) is chosen
