"""The choice of an attention backend."""

import dataclasses
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from r2rank_jax.config import DataConfig, MeshConfig, ModelConfig, RLConfig, RunConfig
from r2rank_jax.errors import ConfigError
from r2rank_jax.runs import attention_choice
from r2rank_jax.runs.attention_choice import fastest
from r2rank_jax.runs.inputs import record_config
from r2rank_jax.sharding import make_mesh


def make_config(attention="auto", **mesh):
    model = ModelConfig(heads=4, kv_heads=2, head_size=8, attention=attention)
    data = DataConfig(prefix_tokens=7, suffix_tokens=3, rationale_tokens=5, candidate_items=3)
    rl = RLConfig(batch_users=4, rationales=2)
    return RunConfig(name="tiny", data=data, model=model, rl=rl, mesh=MeshConfig(**mesh))


def choose_attention(config, run_dir=Path("no such run")):
    return attention_choice.choose_attention(config, run_dir)


def on(monkeypatch, platform):
    monkeypatch.setattr(attention_choice.jax, "default_backend", lambda: platform)


def test_on_a_cpu_einsum_is_chosen_without_measuring(monkeypatch):
    monkeypatch.setattr(attention_choice, "fastest", lambda candidates: pytest.fail("measured"))
    config = make_config()
    chosen = choose_attention(config)
    assert chosen.model.attention == "einsum"
    assert dataclasses.replace(chosen, model=config.model) == config
    named = make_config("einsum")
    assert choose_attention(named) is named


@pytest.mark.parametrize("backend, needed", [("cudnn", "GPU"), ("splash", "TPU")])
def test_a_named_backend_is_refused_where_it_cannot_run(backend, needed):
    with pytest.raises(ConfigError, match=f"{backend} needs a {needed}, got cpu; set model.attention to einsum"):
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
    monkeypatch.setattr(attention_choice, "fastest", slowest)
    config = make_config(data=data)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    chosen = choose_attention(config).model.attention
    assert measured == ([expected] if expected else [])
    assert chosen == ((expected or {"einsum"}) - {"einsum"} or {"einsum"}).pop()


def test_a_resumed_run_keeps_its_backend(monkeypatch, tmp_path):
    on(monkeypatch, "gpu")
    monkeypatch.setattr(attention_choice, "fastest", lambda candidates: "einsum")
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


def test_the_fastest_candidate_is_chosen_and_reported(capsys):
    best = fastest({"slow": lambda: time.sleep(0.02), "quick": lambda: jnp.ones(3)})
    assert best == "quick"
    assert re.fullmatch(r"attention: slow \d\d+\.\d\d ms, quick \d+\.\d\d ms; using quick\n", capsys.readouterr().out)


def test_a_candidate_that_fails_is_skipped_and_reported(capsys):
    def broken():
        raise RuntimeError("no such kernel\nand a long trace")

    assert fastest({"broken": broken, "slow": lambda: time.sleep(0.001)}) == "slow"
    first, second = capsys.readouterr().out.splitlines()
    assert first == "attention: broken skipped: no such kernel"
    assert second.startswith("attention: slow ") and second.endswith(" ms; using slow") and "broken" not in second
    with pytest.raises(
        ConfigError, match=r"one attention backend must run .* got errors from broken; set model.attention to broken"
    ):
        fastest({"broken": broken})


def test_the_measured_problem_is_the_update_of_one_user_per_device():
    config = make_config(data=2)
    mesh = make_mesh(config.mesh)
    q, kv, valid = problem = attention_choice._problem(config, mesh)
    assert q.shape == (2, 2, 3, 2, 5, 2, 8)
    assert [k.shape for k, _ in kv] == [(2, 2, 1, 1, 8, 7), (2, 2, 3, 1, 8, 3), (2, 2, 3, 2, 8, 5)]
    assert all(v.shape == k.swapaxes(-1, -2).shape for k, v in kv)
    assert [real.shape for real in valid] == [v.shape[:1] + v.shape[2:5] for _, v in kv]
    assert len(q.addressable_shards) == 2 and q.addressable_shards[0].data.shape[0] == 1
    d_q, d_kv = attention_choice._update("einsum", mesh)(problem)
    assert jax.tree.map(jnp.shape, (d_q, d_kv)) == jax.tree.map(jnp.shape, (q, kv))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves((d_q, d_kv)))
