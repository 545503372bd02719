"""Import from Hugging Face directories: the same numbers as transformers, or an error and no files."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from r2rank_jax.cli import main
from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import ConfigError, PretrainedError
from r2rank_jax.model.transformer import scores
from r2rank_jax.pretrained.folder import load_pretrained, read_model_card
from r2rank_jax.pretrained.importing import import_model
from r2rank_jax.sharding import abstract_params, make_mesh
from tests.support.pretrained.models import (
    MODELS,
    PAD,
    STOP,
    copy_but_weights,
    imported,
    load,
    our_states,
    rows_of_tokens,
    saved,
    their_states,
)

torch = pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_logits_match_transformers(name):
    model, _ = saved(name)
    config, params = load(imported(name))
    assert config == MODELS[name]
    for rows, length in ((2, 7), (3, 12)):
        tokens, real = rows_of_tokens(rows, length)
        for ours, theirs in zip(our_states(config, params, tokens, real), their_states(model, tokens, real)):
            assert np.abs(theirs[real]).max() > 1.0
            np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)


def test_scaled_rope_changes_the_logits():
    """Otherwise the comparison above would not notice if the scaling were missing."""
    config, params = load(imported("llama3-rope"))
    tokens, real = rows_of_tokens(3, 12)
    scaled, plain = (
        our_states(c, params, tokens, real)[1] for c in (config, dataclasses.replace(config, rope_factor=1.0))
    )
    assert np.abs(scaled - plain)[real].max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_sequence_classifier_is_imported_with_its_scoring_head(name):
    model, _ = saved(name, scorer=True)
    config, params = load(imported(name, scorer=True))
    tokens, real = rows_of_tokens(4, 9)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(real.astype(np.int64))).logits[:, 0]
    hidden, _ = our_states(config, params, tokens, real)
    ours = scores(params, hidden[np.arange(4), real.sum(axis=1) - 1])
    assert np.ptp(theirs.numpy()) > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=1e-4)


def test_the_scoring_head_of_a_causal_lm_starts_at_zero():
    assert not np.asarray(load(imported("qwen3"))[1]["score_head"]).any()


def test_the_folder_describes_its_source():
    _, source = saved("qwen3")
    folder = imported("qwen3")
    card = read_model_card(folder)
    assert (card.config, card.pad, card.stop) == (MODELS["qwen3"], PAD, STOP)
    files = sorted(source.glob("*.safetensors"))
    assert len(files) > 3, "the test must read several files"
    assert card.source.sha256 == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    assert (card.source.architecture, card.source.positions) == ("Qwen3ForCausalLM", 512)
    assert sorted(f.name for f in folder.iterdir()) == ["model.json", "params", "seal.json", "tokenizer"]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / "tokenizer" / name).read_bytes() == (source / name).read_bytes()


def test_any_mesh_gives_the_same_bits():
    _, one = load(imported("qwen2"))
    eight = load(imported("qwen2"), MeshConfig(data=2, fsdp=2, tensor=2))[1]
    assert not eight["layers"]["mlp"]["gate"].sharding.is_fully_replicated
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        assert a.dtype == np.float32 and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_imported_exactly(tmp_path, dtype):
    model = saved("llama")[0]
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.to(getattr(torch, dtype)).save_pretrained(tmp_path / "hf")
    copy_but_weights(saved("llama")[1], tmp_path / "hf")
    import_model(str(tmp_path / "hf"), tmp_path / "out")
    _, params = load(tmp_path / "out")
    expected = half.state_dict()["model.layers.2.mlp.down_proj.weight"].float().numpy()
    np.testing.assert_array_equal(np.asarray(params["layers"]["mlp"]["down"][2]).T, expected)


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def rewrite(folder, change):
    """Replace the weights by one file with the tensors after `change(tensors)`."""
    from safetensors.numpy import load_file, save_file

    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: x for file in files for name, x in load_file(file).items()}
    for file in [*files, folder / "model.safetensors.index.json"]:
        file.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(name):
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def added(name, shape=(2,), dtype=np.float32):
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: np.zeros(shape, dtype)}))


def as_pickle(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not read")


def cut(folder):
    path = sorted(folder.glob("*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-3])


NORM = "model.layers.1.input_layernorm.weight"
BROKEN = {
    "no-config": (lambda f: (f / "config.json").unlink(), r"config.json must exist, got no such file"),
    "config-no-json": (lambda f: (f / "config.json").write_text("{"), r"config.json must hold JSON"),
    "architecture": (
        lambda f: edit(f / "config.json", architectures=["GPT2LMHeadModel"]),
        r"got \['GPT2LMHeadModel'\]",
    ),
    "own-code": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), r"must not name custom code"),
    "tokenizer-code": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}),
        r"tokenizer_config.json must not name code of its own",
    ),
    "missing": (without(NORM), rf"missing: {NORM}\. Remedy: use the weights that belong"),
    "extra": (added("model.layers.3.mlp.extra"), r"unknown: model\.layers\.3\.mlp\.extra"),
    "other-depth": (
        lambda f: edit(f / "config.json", num_hidden_layers=2, layer_types=None),
        r"unknown: .* and \d+ more",
    ),
    "shape": (added(NORM, (31,)), rf"shapes: {NORM} must be \[32\], got \[31\]"),
    "type": (added(NORM, (32,), np.int8), rf"types other than F32, BF16, F16: {NORM} is I8"),
    "pickle": (as_pickle, r"must be safetensors, got pytorch_model.bin .*can run code"),
    "cut-short": (cut, r"must hold \d+ bytes according to its header, got \d+; it is truncated"),
    "lost-file": (
        lambda f: sorted(f.glob("*.safetensors"))[1].unlink(),
        r"index.json names model-00002-of-\d+.safetensors, which is not in",
    ),
    "no-tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"must hold tokenizer.json, got none"),
    "tokenizer-too-large": (
        lambda f: enlarge_vocabulary(f / "tokenizer.json"),
        r"a row for every id of its tokenizer, got id 264 \('<other>'\) and a vocabulary of 264",
    ),
    "no-stop": (
        lambda f: (edit(f / "tokenizer_config.json", eos_token=None), edit(f / "config.json", eos_token_id=None)),
        r"must name an end-of-text token below 264, got None and \[\]",
    ),
}


def enlarge_vocabulary(path):
    values = json.loads(path.read_text())
    token = dict(
        id=264, content="<other>", special=True, single_word=False, lstrip=False, rstrip=False, normalized=False
    )
    values["added_tokens"].append(token)
    values["model"]["vocab"]["<other>"] = 264
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", BROKEN)
def test_a_refusal_gives_the_reason_and_writes_nothing(tmp_path, name, capsys):
    change, message = BROKEN[name]
    shutil.copytree(saved("llama")[1], tmp_path / "hf")
    change(tmp_path / "hf")
    with pytest.raises((ConfigError, PretrainedError), match=message):
        import_model(str(tmp_path / "hf"), tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf"], "no partial output"
    capsys.readouterr()  # saving the model may have shown its progress
    assert main(["model", "import", str(tmp_path / "hf"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("r2rank: ")


@pytest.mark.slow
def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("r2rank_jax.pretrained.importing.write_seal", full)
    with pytest.raises(OSError, match="no space"):
        import_model(str(saved("llama")[1]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_redundant_tensors_are_ignored(tmp_path):
    """A stored tied head and constants in old files do not change the imported parameters."""
    shutil.copytree(saved("llama")[1], tmp_path / "hf")
    extra = {
        "lm_head.weight": np.zeros((264, 32), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4),
    }
    rewrite(tmp_path / "hf", lambda tensors: tensors.update(extra))
    import_model(str(tmp_path / "hf"), tmp_path / "out")
    for a, b in zip(
        jax.tree.leaves(load(tmp_path / "out")[1]), jax.tree.leaves(load(imported("llama"))[1]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_an_untied_scorer_is_refused_with_a_remedy(tmp_path):
    _, folder = saved("llama-untied", scorer=True)
    with pytest.raises(PretrainedError, match=r"missing: lm_head.weight.*import its CausalLM"):
        import_model(str(folder), tmp_path / "out")


def test_a_folder_in_use_is_unchanged(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(PretrainedError, match=r"--out must be a new or empty folder, got .*out.*choose another"):
        import_model(str(saved("llama")[1]), tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_hub_id_without_a_network(tmp_path):
    with pytest.raises(PretrainedError, match=r"nobody/nothing is not a directory, and as a hub id.*copy the model"):
        import_model("nobody/nothing", tmp_path / "out")
    with pytest.raises(PretrainedError, match=r"must be a directory or a hub id \(org/name\), got no/such/place"):
        import_model("no/such/place", tmp_path / "out")


@pytest.mark.slow
def test_only_data_files_are_requested_from_the_hub(tmp_path, monkeypatch):
    """No code is downloaded, and the hub id of the model is recorded."""
    import fnmatch

    import huggingface_hub

    request = {}

    def snapshot_download(name, allow_patterns):
        request.update(name=name, patterns=allow_patterns)
        return str(saved("llama")[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    card = import_model("org/name", tmp_path / "out")
    assert card.source.hub_id == request["name"] == "org/name"
    allowed = {
        name: any(fnmatch.fnmatch(name, pattern) for pattern in request["patterns"])
        for name in (
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "tokenizer.json",
        )
    }
    assert all(allowed.values()), allowed
    for name in ("modeling_x.py", "pytorch_model.bin", "onnx/model.onnx", "original/model.safetensors", "tf_model.h5"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in request["patterns"]), name


def test_damage_and_different_models_are_reported(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(imported("llama"), folder)
    config = read_model_card(folder).config
    like = abstract_params(make_mesh(MeshConfig()), config)
    with pytest.raises(ConfigError, match=r"model.rope_theta: 5000.0 -> 10000.0\. Take the fields from its model.json"):
        load_pretrained(folder, like, dataclasses.replace(config, rope_theta=10_000.0))
    computed = dict(dtype="bfloat16", attention="einsum", remat="block", lora_rank=2, lora_alpha=1.0)
    load_pretrained(folder, like, dataclasses.replace(config, **computed))
    wider = abstract_params(make_mesh(MeshConfig()), dataclasses.replace(config, mlp_width=48))
    with pytest.raises(ConfigError, match=r"layers.mlp.down: \(3, 40, 32\) -> \(3, 48, 32\)"):
        load_pretrained(folder, wider)

    path = max((folder / "params").rglob("*"), key=lambda f: f.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match=r"damaged \(params/.* does not match its checksum\); import it again"):
        load_pretrained(folder, like)
    with pytest.raises(PretrainedError, match=r"got no model.json in it; run `r2rank model import"):
        read_model_card(tmp_path)
