"""The choice of an attention backend."""

import dataclasses
import re
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, RLConfig, RunConfig
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.runs import kernels
from r2rank_jax.runs.inputs import record_config
from r2rank_jax.runs.kernels import choose_budget, fastest
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.gradient_memory import COPY_TABLES


def make_config(attention="auto", **mesh):
    model = ModelConfig(heads=4, kv_heads=2, head_size=8, attention=attention)
    data = DataConfig(prefix_tokens=7, suffix_tokens=3, rationale_tokens=5, candidate_items=3)
    rl = RLConfig(batch_users=4, rationales=2)
    return RunConfig(name="tiny", data=data, model=model, rl=rl, mesh=MeshConfig(**mesh))


def choose_attention(config, run_dir=Path("no such run")):
    return kernels.choose_attention(config, run_dir)


def on(monkeypatch, platform):
    monkeypatch.setattr(kernels.jax, "default_backend", lambda: platform)


def test_a_cpu_has_einsum_and_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(kernels, "fastest", lambda candidates: pytest.fail("measured"))
    config = make_config()
    chosen = choose_attention(config)
    assert chosen.model.attention == "einsum"
    assert dataclasses.replace(chosen, model=config.model) == config
    named = make_config("einsum")
    assert choose_attention(named) is named


@pytest.mark.parametrize("backend, needed", [("cudnn", "GPU"), ("splash", "TPU")])
def test_a_named_backend_is_refused_where_it_cannot_run(backend, needed):
    with pytest.raises(ConfigError, match=f"{backend} needs a {needed}, .* on cpu; set model.attention to einsum"):
        choose_attention(make_config(backend))


def test_a_named_backend_is_refused_for_its_type_and_head_size(monkeypatch):
    on(monkeypatch, "gpu")
    config = make_config("cudnn")
    with pytest.raises(ConfigError, match=r"got float32; set model.dtype to bfloat16"):
        choose_attention(config)
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    assert choose_attention(half) is half
    with pytest.raises(ConfigError, match=r"multiple of 8 .* got 12"):
        choose_attention(dataclasses.replace(half, model=dataclasses.replace(half.model, head_size=12)))


def test_a_kernel_is_refused_on_a_mesh_that_would_split_it(monkeypatch):
    on(monkeypatch, "tpu")
    assert choose_attention(make_config("splash")).model.attention == "splash"
    with pytest.raises(ConfigError, match=r"one device, got a mesh of 2; set model.attention to einsum"):
        choose_attention(make_config("splash", data=2))
    on(monkeypatch, "gpu")
    with pytest.raises(ConfigError, match=r"does not split heads, got mesh.tensor=2; set model.attention to einsum"):
        choose_attention(make_config("cudnn", tensor=2))


@pytest.mark.parametrize(
    "platform, dtype, data, expected",
    [
        ("gpu", "bfloat16", 1, {"einsum", "cudnn"}),
        ("gpu", "float32", 1, None),
        ("tpu", "float32", 1, {"einsum", "splash"}),
        ("tpu", "bfloat16", 2, None),
    ],
)
def test_auto_measures_what_the_platform_supports(monkeypatch, platform, dtype, data, expected):
    measured = []

    def slowest(candidates):
        measured.append(set(candidates))
        return list(candidates)[-1]

    on(monkeypatch, platform)
    monkeypatch.setattr(kernels, "fastest", slowest)
    config = make_config(data=data)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    chosen = choose_attention(config).model.attention
    assert measured == ([expected] if expected else [])
    assert chosen == ((expected or {"einsum"}) - {"einsum"} or {"einsum"}).pop()


def test_a_run_goes_on_with_the_backend_it_began_with(monkeypatch, tmp_path):
    on(monkeypatch, "gpu")
    monkeypatch.setattr(kernels, "fastest", lambda candidates: "einsum")
    config = make_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    began = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="cudnn"))
    record_config(tmp_path, began)
    assert choose_attention(config, tmp_path).model.attention == "cudnn"
    on(monkeypatch, "cpu")  # which does not have it
    assert choose_attention(config, tmp_path).model.attention == "einsum"
    on(monkeypatch, "gpu")
    (tmp_path / "config.json").write_text("{}")
    assert choose_attention(config, tmp_path).model.attention == "einsum"


def test_the_budget_is_half_of_what_model_and_optimizer_leave(monkeypatch, capsys):
    config = make_config()
    assert choose_budget(config) is config, "a CPU does not say what it has"
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9 * 2**30, "bytes_in_use": 2**30})
    monkeypatch.setattr(kernels.jax, "local_devices", lambda: [device])
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


def test_the_fastest_candidate_is_taken_and_one_line_says_so(capsys):
    best = fastest({"slow": lambda: time.sleep(0.02), "quick": lambda: jnp.ones(3)})
    assert best == "quick"
    assert re.fullmatch(r"attention: slow \d\d+\.\d\d ms, quick \d+\.\d\d ms: quick\n", capsys.readouterr().out)


def test_a_candidate_that_fails_is_left_out_with_a_line(capsys):
    def broken():
        raise RuntimeError("no such kernel\nand a long trace")

    assert fastest({"broken": broken, "slow": lambda: time.sleep(0.001)}) == "slow"
    first, second = capsys.readouterr().out.splitlines()
    assert first == "attention: broken left out: no such kernel"
    assert second.startswith("attention: slow ") and second.endswith(" ms: slow") and "broken" not in second
    with pytest.raises(ConfigError, match=r"no attention backend .* tried broken; set model.attention to broken"):
        fastest({"broken": broken})


def test_the_measured_problem_is_the_update_of_one_user_per_device():
    config = make_config(data=2)
    mesh = make_mesh(config.mesh)
    q, kv, valid = problem = kernels._problem(config, mesh)
    assert q.shape == (2, 2, 3, 2, 5, 2, 8)
    assert [k.shape for k, _ in kv] == [(2, 2, 1, 1, 8, 7), (2, 2, 3, 1, 8, 3), (2, 2, 3, 2, 8, 5)]
    assert all(v.shape == k.swapaxes(-1, -2).shape for k, v in kv)
    assert [real.shape for real in valid] == [v.shape[:1] + v.shape[2:5] for _, v in kv]
    assert len(q.addressable_shards) == 2 and q.addressable_shards[0].data.shape[0] == 1
    d_q, d_kv = kernels._update("einsum", mesh)(problem)
    assert jax.tree.map(jnp.shape, (d_q, d_kv)) == jax.tree.map(jnp.shape, (q, kv))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves((d_q, d_kv)))
