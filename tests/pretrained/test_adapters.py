"""Adapters as PEFT reads them, beside a base model of transformers, against ours."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from r2rank_jax.checkpoint import Checkpoints
from r2rank_jax.config import ConfigError, DataConfig, RunConfig, to_json
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.model.hf_names import adapter_tensors
from r2rank_jax.pretrained.exporting import export
from r2rank_jax.runs.base import adopt
from tests.model.test_forward import make_params
from tests.pretrained.models import MODELS, imported, load, our_states, rows_of_tokens, their_states

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
import transformers  # noqa: E402


def adapted_run(folder, name):
    """A finished RL phase of an imported model with adapters that are far from zero."""
    model = dataclasses.replace(MODELS[name], lora_rank=3, lora_alpha=5.0)
    config = RunConfig(
        name="adapted", pretrained=str(imported(name)), model=model, trained="adapters",
        data=DataConfig(prefix_tokens=8, suffix_tokens=4, rationale_tokens=4),
    )  # fmt: skip
    base = load(imported(name))[1]
    drawn = make_params(model)
    layers = {
        part: {key: drawn["layers"][part][key] if is_adapter(key) else base["layers"][part][key] for key in weights}
        for part, weights in drawn["layers"].items()
    }
    params = base | {"layers": layers, "score_head": drawn["score_head"]}
    adopt(imported(name), folder)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    checkpoints = Checkpoints(folder / "checkpoints/rl")
    extras = {"phase": "rl", "config": to_json(config), "steps": 5, "finished": True, "has_average": False}
    checkpoints.save(5, {"params": params, "average": None}, extras)
    checkpoints.close()
    return model, params


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_peft_computes_what_we_compute(tmp_path, name):
    model, params = adapted_run(tmp_path / "run", name)
    tokens, real = rows_of_tokens(3, 9)
    ours = our_states(model, params, tokens, real)[1]
    plain = our_states(MODELS[name], load(imported(name))[1], tokens, real)[1]
    assert np.abs(ours - plain)[real].max() > 0.1, "the adapters must matter"

    export(imported(name), tmp_path / "base", dtype="float32")
    export(tmp_path / "run", tmp_path / "adapters", form="adapters", dtype="float32")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()
    near = {"atol": 2e-5 * np.abs(ours).max()}
    np.testing.assert_allclose(their_states(loaded, tokens, real)[1][real], ours[real], **near)

    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(their_states(merged, tokens, real)[1][real], ours[real], **near)
    export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    np.testing.assert_allclose(their_states(again, tokens, real)[1][real], ours[real], **near)
    assert {"score_head.safetensors", "tokenizer.json", "README.md"} <= {
        f.name for f in (tmp_path / "adapters").iterdir()
    }


def test_every_adapter_is_written_once():
    model = dataclasses.replace(MODELS["qwen2"], lora_rank=3)
    found = {(tensor.path, tensor.layer) for tensor in adapter_tensors(model)}
    ours = {
        tuple(key.key for key in path)
        for path, _ in jax.tree.leaves_with_path(make_params(model))
        if is_adapter(path[-1].key)
    }
    assert found == {(path, layer) for path in ours for layer in range(model.layers)} and len(ours) == 14


def test_a_policy_without_adapters_has_none_to_export(tmp_path):
    with pytest.raises(ConfigError, match=r"trained=adapters, got one with model\.lora_rank=0"):
        export(imported("llama"), tmp_path / "out", form="adapters")
    assert not (tmp_path / "out").exists()
