"""Compare our adapters with PEFT's on a base model of transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.cli import main
from r2rank_jax.config import DataConfig, MeshConfig, RunConfig, to_json
from r2rank_jax.errors import ConfigError
from r2rank_jax.model.adapters import is_adapter
from r2rank_jax.model.hf_names import adapter_tensors
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.pretrained.exporting import export
from r2rank_jax.pretrained.weights import read_header
from r2rank_jax.runs.starting_model import adopt
from r2rank_jax.sharding import abstract_params, make_mesh
from tests.support.pretrained.models import MODELS, imported, load, our_states, rows_of_tokens, saved, their_states

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
import transformers  # noqa: E402

from tests.support.pretrained.page import run_page  # noqa: E402

BASE_ID = "someone/some-model"


def adapted(name):
    return dataclasses.replace(MODELS[name], lora_rank=3, lora_alpha=5.0)


def shapes(model):
    return jax.tree.leaves_with_path(abstract_params(make_mesh(MeshConfig()), model))


def adapted_run(folder, name):
    """A finished RL phase of an imported model with adapters and a head that are far from zero."""
    model, rng = adapted(name), np.random.default_rng(0)
    config = RunConfig(
        name="adapted", pretrained=str(imported(name)), model=model, trained="adapters",
        data=DataConfig(prefix_tokens=8, suffix_tokens=4, rationale_tokens=4),
    )  # fmt: skip
    params = load(imported(name))[1]
    params["score_head"] = rng.standard_normal(model.width, np.float32)
    for path, leaf in shapes(model):
        if is_adapter(path[-1].key):
            drawn = 0.3 * rng.standard_normal(leaf.shape, np.float32)
            params["layers"][path[1].key][path[2].key] = jnp.asarray(drawn)
    adopt(imported(name), folder)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    card = json.loads((folder / "base/model.json").read_text())
    card["source"]["hub_id"] = BASE_ID
    (folder / "base/model.json").write_text(json.dumps(card))
    checkpoints = Checkpoints(folder / "checkpoints/rl")
    record = PhaseRecord(
        phase="rl", config=to_json(config), iterator={}, steps=5, wall_s=1.0, finished=True, has_average=False
    )
    checkpoints.save(5, {"params": params, "average": None}, record)
    checkpoints.close()
    return model, params


def load_in_transformers(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_peft_gives_our_logits(tmp_path, name):
    model, params = adapted_run(tmp_path / "run", name)
    tokens, real = rows_of_tokens(3, 9)
    ours = our_states(model, params, tokens, real)[1]
    base = load_in_transformers(saved(name)[1])
    assert np.abs(ours - their_states(base, tokens, real)[1])[real].max() > 0.1, "the adapters must matter"
    near = {"rtol": 0, "atol": 1e-5 * np.abs(ours).max()}

    options = ["--out", str(tmp_path / "hf"), "--form", "adapters", "--dtype", "float32"]
    assert main(["export", str(tmp_path / "run"), *options]) == 0
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "hf")).eval()
    np.testing.assert_allclose(their_states(loaded, tokens, real)[1][real], ours[real], **near)

    export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    expected = their_states(load_in_transformers(tmp_path / "merged"), tokens, real)[1]
    np.testing.assert_allclose(their_states(loaded.merge_and_unload(), tokens, real)[1][real], expected[real], **near)

    settings = peft.PeftConfig.from_pretrained(str(tmp_path / "hf"))
    modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (settings.r, settings.lora_alpha, settings.target_modules) == (3, 5.0, modules)
    assert (settings.base_model_name_or_path, settings.task_type, settings.bias) == (BASE_ID, "CAUSAL_LM", "none")
    (head,) = read_header(tmp_path / "hf/score_head.safetensors").values()
    np.testing.assert_array_equal(head.read()[0], params["score_head"])


def test_the_code_on_the_page_of_adapters_works(tmp_path):
    adapted_run(tmp_path / "run", "llama")
    export(tmp_path / "run", tmp_path / "hf", form="adapters", dtype="float32")
    header = (tmp_path / "hf/README.md").read_text().split("---")[1]
    assert "library_name: peft" in header and f"base_model: {BASE_ID}" in header
    names = {"base_model": load_in_transformers(saved("llama")[1]), "folder": str(tmp_path / "hf"), "peft": peft}
    adapters = run_page(tmp_path / "hf", **names, prefix="Heat (1995) 4", item="Emma")
    export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    merged = run_page(
        tmp_path / "merged", model=load_in_transformers(tmp_path / "merged"), prefix="Heat (1995) 4", item="Emma"
    )
    assert isinstance(adapters["model"], peft.PeftModel)
    assert adapters["output"].tolist() == merged["output"].tolist()


def test_every_adapter_is_written_once():
    model = adapted("qwen2")
    written = [(tensor.path, tensor.layer) for tensor in adapter_tensors(model)]
    ours = {tuple(key.key for key in path) for path, _ in shapes(model) if is_adapter(path[-1].key)}
    assert (
        sorted(written) == sorted((path, layer) for path in ours for layer in range(model.layers)) and len(ours) == 14
    )


def test_exporting_adapters_of_a_policy_without_any_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trained=adapters, got one with model\.lora_rank=0"):
        export(imported("llama"), tmp_path / "out", form="adapters")
    assert not (tmp_path / "out").exists()
