"""The stored type of an export: by default the one the model came in; what another one changes is measured."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import transformers

from r2rank_jax.cli import main
from r2rank_jax.config import to_json
from r2rank_jax.errors import PretrainedError
from r2rank_jax.model.transformer import scores
from r2rank_jax.pretrained.exporting import export
from r2rank_jax.pretrained.folder import read_model_card
from r2rank_jax.pretrained.importing import import_model
from r2rank_jax.pretrained.rounding import ParameterChange, output_changes
from r2rank_jax.pretrained.weights import read_header
from tests.support.pretrained.models import BASE, imported, load, our_states, rows_of_tokens, saved, their_states
from tests.support.pretrained.runs import CONFIG, policy_of, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that was trained from scratch. Tests must not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "small", CONFIG)


def types(folder, file="model.safetensors"):
    return {tensor.dtype for tensor in read_header(folder / file).values()}


def run_from(folder, run_dir, dtype):
    """A copy of the run as if it had started from a model of this type."""
    shutil.copytree(run_dir, folder)
    (folder / "config.json").write_text(json.dumps(to_json(dataclasses.replace(CONFIG, pretrained="gone"))))
    shutil.copytree(imported("llama"), folder / "base", ignore=shutil.ignore_patterns("params"))
    card = json.loads((folder / "base/model.json").read_text())
    card["source"]["dtype"] = dtype
    (folder / "base/model.json").write_text(json.dumps(card))
    return folder


def test_a_float32_model_comes_back_with_its_logits(tmp_path, capsys):
    export(imported("llama"), tmp_path / "hf")
    assert "float32 holds every parameter exactly" in capsys.readouterr().out
    model, _ = saved("llama")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    tokens, real = rows_of_tokens(3, 12)
    before, after = (their_states(m, tokens, real)[1][real] for m in (model, again))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(("dtype", "code"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_a_model_of_half_precision_comes_back_with_its_bits(tmp_path, capsys, dtype, code):
    export(imported("llama"), tmp_path / "half", dtype=dtype)
    import_model(str(tmp_path / "half"), tmp_path / "imported")
    assert read_model_card(tmp_path / "imported").source.dtype == dtype
    capsys.readouterr()
    export(tmp_path / "imported", tmp_path / "hf")
    assert f"{dtype} holds every parameter exactly" in capsys.readouterr().out
    weights = (tmp_path / name / "model.safetensors" for name in ("half", "hf"))
    assert len({file.read_bytes() for file in weights}) == 1 and types(tmp_path / "hf") == {code}


def test_the_default_type_of_a_policy(tmp_path, run_dir):
    """A trained scorer stays float32: its scores would be off by more than the promised 1e-4."""
    export(run_dir, tmp_path / "scratch")
    assert types(tmp_path / "scratch") == {"F32"}
    for dtype, form, code in (
        ("bfloat16", "causal-lm", "BF16"),
        ("bfloat16", "scorer", "F32"),
        (None, "scorer", "F32"),
    ):
        run = run_from(tmp_path / f"run-{dtype}-{form}", run_dir, dtype)
        export(run, tmp_path / f"hf-{dtype}-{form}", form=form)
        assert types(tmp_path / f"hf-{dtype}-{form}") == {code}


def test_a_card_from_before_types_were_recorded(tmp_path):
    shutil.copytree(imported("llama"), tmp_path / "model")
    path = tmp_path / "model/model.json"
    card = json.loads(path.read_text())
    del card["source"]["dtype"], card["frame"]
    path.write_text(json.dumps(card))
    old = read_model_card(tmp_path / "model")
    assert (old.source.dtype, old.frame) == (None, None)
    assert old.source == dataclasses.replace(read_model_card(imported("llama")).source, dtype=None)


def test_the_change_of_parameters_by_hand():
    change = ParameterChange("bfloat16")
    tensors = {"a": np.float32([1.0, 0.0, -(1 + 2**-9)]), "b": np.float32([[4.0]])}
    value = change.watch(tensors.__getitem__)
    assert value("a") is tensors["a"] and value("b") is tensors["b"]
    assert change.largest == pytest.approx(2**-9 / (1 + 2**-9))  # rounded to -1, since bfloat16 has 8 bits
    assert change.rms == pytest.approx(2**-9 / np.sqrt(1 + (1 + 2**-9) ** 2 + 16))
    exact = ParameterChange("float32")
    exact.watch(tensors.__getitem__)("a")
    assert (exact.largest, exact.rms) == (0.0, 0.0)


def rounded(params, dtype):
    return jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_change_of_logits_and_scores(dtype):
    config, params = load(imported("qwen3"))
    params = params | {"score_head": jax.numpy.linspace(-1, 1, config.width)}
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (4, 32))
    real = np.ones_like(tokens, bool)
    hidden, logits = our_states(config, params, tokens, real)

    after_hidden, after_logits = our_states(config, rounded(params, dtype), tokens, real)
    of_logits, of_scores = output_changes(config, params, dtype, 512, head=False, only_adapters=False)
    difference = scores(params, hidden[:, -1]) - scores(params, after_hidden[:, -1])
    assert of_logits.largest == pytest.approx(np.abs(after_logits - logits).max(), rel=1e-2)
    assert of_scores.largest == pytest.approx(np.abs(difference).max(), rel=1e-2)
    assert of_logits.scale == pytest.approx(np.abs(logits).max(), rel=1e-4)

    (of_scorer,) = output_changes(config, params, dtype, 512, head=True, only_adapters=False)
    difference = scores(params, hidden[:, -1]) - scores(rounded(params, dtype), after_hidden[:, -1])
    assert of_scorer.largest == pytest.approx(np.abs(difference).max(), rel=1e-2)


def test_rounding_is_printed_and_on_the_page(tmp_path, run_dir, capsys):
    assert main(["export", str(run_dir), "--out", str(tmp_path / "hf"), "--dtype", "bfloat16"]) == 0
    shown = re.search(r"rounding to bfloat16 changes .*", capsys.readouterr().out)
    assert shown and shown[0] in (tmp_path / "hf/README.md").read_text()
    numbers = (
        r"by up to 0\.\d\d% \(RMS 0\.\d\d%\), and on 4 fixed sequences logits by up to \S+ .* and scores by up to \S+"
    )
    assert re.search(numbers, shown[0])
    of_logits, _ = output_changes(BASE, policy_of(run_dir), "bfloat16", 110, head=False, only_adapters=False)
    assert str(of_logits) in shown[0] and of_logits.largest > 1e-4


def test_a_number_out_of_range_is_refused(tmp_path, capsys):
    source = tmp_path / "hf"
    shutil.copytree(saved("llama")[1], source)
    file = next(f for f in sorted(source.glob("*.safetensors")) if "model.norm.weight" in read_header(f))
    tensor = read_header(file)["model.norm.weight"]
    content = bytearray(file.read_bytes())
    content[tensor.start : tensor.start + 4] = np.float32(70_000).tobytes()
    file.write_bytes(content)
    import_model(str(source), tmp_path / "model")
    with pytest.raises(PretrainedError, match=r"within the range of float16, got 7e\+04 in model.norm.weight"):
        export(tmp_path / "model", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
