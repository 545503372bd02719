"""Export to Hugging Face directories: transformers gives our results, and importing again gives the same bits."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from r2rank_jax.cli import main
from r2rank_jax.config import MeshConfig, to_json
from r2rank_jax.data.prompts.chat import read_chat_tokenizer
from r2rank_jax.data.prompts.tokenizer import read_tokenizer
from r2rank_jax.errors import ConfigError, PretrainedError
from r2rank_jax.model.forward import read_rationales, words_forward
from r2rank_jax.model.transformer import scores
from r2rank_jax.pretrained.exporting import export
from r2rank_jax.pretrained.folder import load_pretrained, read_model_card
from r2rank_jax.pretrained.importing import import_model
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.types import ListBatch, Rationales
from tests.support.pretrained.models import (
    BASE,
    MODELS,
    PAD,
    STOP,
    add_tokenizer,
    imported,
    load,
    our_states,
    rows_of_tokens,
    saved,
    their_states,
)
from tests.support.pretrained.page import run_page, torch
from tests.support.pretrained.runs import CONFIG, RATIONALE, policy_of, require_equal, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that was trained from scratch. Tests must not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "small", CONFIG)


def params_of(folder):
    return load(folder)[1]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits(tmp_path, name):
    export(imported(name), tmp_path / "hf", dtype="float32", shard_gib=20 / 2**20)
    assert len(list(tmp_path.glob("hf/model-*.safetensors"))) > 3, "the test must write several files"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    family = {"qwen2": "Qwen2", "qwen3": "Qwen3"}.get(name, "Llama")
    assert type(model).__name__ == f"{family}ForCausalLM" and model.dtype == torch.float32
    config, params = load(imported(name))
    for rows, length in ((2, 7), (3, 12)):
        tokens, real = rows_of_tokens(rows, length)
        ours, theirs = our_states(config, params, tokens, real)[1], their_states(model, tokens, real)[1]
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_import_of_an_export_gives_the_same_bits(tmp_path, name):
    export(imported(name), tmp_path / "hf", dtype="float32", shard_gib=20 / 2**20)
    import_model(str(tmp_path / "hf"), tmp_path / "again")
    before, after = read_model_card(imported(name)), read_model_card(tmp_path / "again")
    assert (after.config, after.pad, after.stop) == (before.config, before.pad, before.stop)
    require_equal(params_of(tmp_path / "again"), params_of(imported(name)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["causal-lm", "scorer"])
def test_both_forms_contain_the_scoring_head(tmp_path, run_dir, form):
    export(run_dir, tmp_path / "hf", form=form, dtype="float32")
    import_model(str(tmp_path / "hf"), tmp_path / "again")
    assert np.abs(np.asarray(policy_of(run_dir)["score_head"])).max() > 0.05
    require_equal(params_of(tmp_path / "again"), policy_of(run_dir))


def test_bfloat16_rounds_to_the_nearest(tmp_path, run_dir):
    export(run_dir, tmp_path / "hf", dtype="bfloat16")
    import_model(str(tmp_path / "hf"), tmp_path / "again")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == torch.bfloat16
    params = policy_of(run_dir)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    require_equal(params_of(tmp_path / "again"), rounded | {"score_head": params["score_head"]})


def some_lists():
    """Two users with two items each, and one rationale per item that ends with the stop token; all parts are padded."""
    rng = np.random.default_rng(0)

    def part(*shape):
        tokens = rng.integers(2, 258, shape)
        length = rng.integers(2, shape[-1], shape[:-1])
        return np.where(np.arange(shape[-1]) < length[..., None], tokens, PAD).astype(np.int32), length.astype(np.int32)

    prefix, prefix_length = part(2, 9)
    suffix, suffix_length = part(2, 2, 6)
    tokens, length = part(2, 2, 1, 7)
    np.put_along_axis(tokens, length[..., None] - 1, STOP, axis=-1)
    ones = np.ones((2, 2), bool)
    batch = ListBatch(
        user=np.arange(2), position=np.zeros(2, np.int32), items=np.zeros((2, 2), np.int32), prefix=prefix,
        prefix_length=prefix_length, suffix=suffix, suffix_length=suffix_length,
        labels=np.zeros((2, 2), np.float32), mask=ones,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, (batch, Rationales(tokens=tokens, length=length, stopped=ones[..., None])))


def joined(batch, rationales):
    """Prefix, item and rationale of each of the four rationales as one right-padded row."""
    rows = []
    for u in range(2):
        for n in range(2):
            parts = (
                batch.prefix[u, : batch.prefix_length[u]],
                batch.suffix[u, n, : batch.suffix_length[u, n]],
                rationales.tokens[u, n, 0, : rationales.length[u, n, 0]],
            )
            rows.append(np.concatenate(parts).tolist())
    width = max(map(len, rows))
    assert len({len(row) for row in rows}) > 1, "the test must pad"
    return np.array([row + [PAD] * (width - len(row)) for row in rows])


@pytest.mark.slow
def test_a_scorer_gives_our_scores(tmp_path, run_dir):
    export(run_dir, tmp_path / "hf", form="scorer", dtype="float32")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.num_labels == 1
    batch, rationales = some_lists()
    params = policy_of(run_dir)
    read = jax.jit(lambda *given: scores(given[0], read_rationales(BASE, *given).last))
    ours = np.asarray(read(params, batch, rationales)).ravel()
    tokens = joined(batch, rationales)
    with torch.no_grad():
        mask = torch.from_numpy((tokens != PAD).astype(np.int64))
        theirs = model(torch.from_numpy(tokens), attention_mask=mask).logits[:, 0].numpy()
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_scorer_of_words_scores_the_rationale_alone(tmp_path):
    words = dataclasses.replace(BASE, score_reads="words")
    run_dir = write_run(tmp_path / "run", dataclasses.replace(CONFIG, model=words))
    export(run_dir, tmp_path / "hf", form="scorer", dtype="float32")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    (ids,) = read_tokenizer(run_dir / "tokenizer.json").encode([RATIONALE])
    tokens = jnp.asarray([[[[*ids, STOP]]]])
    length = jnp.full((1, 1, 1), tokens.shape[-1])
    said = Rationales(tokens=tokens, length=length, stopped=length > 0)
    params = policy_of(run_dir, config=dataclasses.replace(CONFIG, model=words))
    ours = scores(params, words_forward(words, params, said)).item()
    theirs = run_page(tmp_path / "hf", model=model, rationale=RATIONALE)["score"].item()
    assert ours == pytest.approx(theirs, abs=1e-4) and "reads neither" in (tmp_path / "hf/README.md").read_text()


def test_the_tokenizer_of_a_run_is_the_same_in_transformers(tmp_path, run_dir):
    export(run_dir, tmp_path / "hf")
    ours, theirs = (
        read_tokenizer(run_dir / "tokenizer.json"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"),
    )
    (ids,) = ours.encode([RATIONALE])
    assert theirs(RATIONALE, add_special_tokens=False).input_ids == list(ids) and len(ids) > 1
    assert theirs.decode(ids) == RATIONALE == ours.decode(ids)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.model_max_length) == (ours.pad, ours.stop, 110)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (generation.pad_token_id, generation.eos_token_id) == (ours.pad, ours.stop)


def test_the_tokenizer_of_an_imported_model_is_exported_unchanged(tmp_path):
    from tests.support.pretrained.models import saved

    source = tmp_path / "source"
    shutil.copytree(saved("llama")[1], source)
    add_tokenizer(source, pad_token="<stop>", note="é")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE").write_text("Do as you like.")
    (source / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    import_model(str(source), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes(), name
    assert "license: apache-2.0" in (tmp_path / "hf/README.md").read_text()

    # A scorer pools at the last token that is not config.json's padding, so its tokenizer must use the same padding.
    export(tmp_path / "model", tmp_path / "scorer", form="scorer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "scorer")
    values = json.loads((tmp_path / "scorer/config.json").read_text())
    assert tokenizer.pad_token_id == values["pad_token_id"] == PAD != tokenizer.eos_token_id == STOP


def test_a_run_from_an_imported_model_is_exported_with_its_tokenizer(tmp_path, run_dir):
    shutil.copytree(run_dir, tmp_path / "run")
    config = dataclasses.replace(CONFIG, pretrained="a folder that is gone")
    (tmp_path / "run/config.json").write_text(json.dumps(to_json(config)))
    (tmp_path / "run/tokenizer.json").unlink()
    shutil.copytree(imported("llama"), tmp_path / "run/base", ignore=shutil.ignore_patterns("params"))
    export(tmp_path / "run", tmp_path / "hf", phase="sft", dtype="float32")
    original = imported("llama") / "tokenizer/tokenizer.json"
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == original.read_bytes()
    import_model(str(tmp_path / "hf"), tmp_path / "again")
    require_equal(params_of(tmp_path / "again"), policy_of(run_dir, "sft"))
    page = (tmp_path / "hf/README.md").read_text()
    assert read_model_card(imported("llama")).source.sha256 in page and "LlamaForCausalLM" in page


@pytest.mark.slow
def test_adapters_are_merged(tmp_path):
    adapted = dataclasses.replace(BASE, lora_rank=3, lora_alpha=7.0)
    config = dataclasses.replace(CONFIG, model=adapted, trained="adapters")
    run_dir = write_run(tmp_path / "run", config)
    export(run_dir, tmp_path / "hf", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    params = policy_of(run_dir, config=config)
    tokens, real = rows_of_tokens(3, 12)
    ours, theirs = our_states(adapted, params, tokens, real)[1], their_states(model, tokens, real)[1]
    assert np.abs(ours - our_states(BASE, params, tokens, real)[1]).max() > 0.1, "the adapters must do something"
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4 * np.abs(theirs).max())

    with pytest.raises(ConfigError, match="needs a policy that started from an imported base model, got a run without"):
        export(tmp_path / "run", tmp_path / "out", form="adapters")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_code_on_the_page_works(tmp_path, run_dir):
    texts = {"prefix": "Heat (1995) 4\n", "item": "Emma", "rationale": RATIONALE}
    ours = read_tokenizer(run_dir / "tokenizer.json").encode(list(texts.values()))
    tokens = np.array([[*sum(ours, ()), STOP]])
    params = policy_of(run_dir)
    hidden, logits = our_states(BASE, params, tokens, np.ones_like(tokens, bool))

    export(run_dir, tmp_path / "scorer", form="scorer", dtype="float32")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer")
    score = run_page(tmp_path / "scorer", model=model, **texts)["score"]
    assert score.item() == pytest.approx(float(scores(params, hidden[0, -1])), abs=1e-4)

    export(run_dir, tmp_path / "lm", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    variables = run_page(tmp_path / "lm", model=model, prefix=texts["prefix"], item=texts["item"])
    start = len(ours[0]) + len(ours[1])
    assert variables["prompt"] == tokens[0, :start].tolist()
    assert int(variables["output"][0, start]) == logits[0, start - 1].argmax(), "the first token is our greedy one"


def test_the_code_on_the_page_adds_the_chat_frame(tmp_path):
    model, folder = saved("llama")
    shutil.copytree(folder, tmp_path / "source")
    add_tokenizer(tmp_path / "source", chat_template="{% for m in messages %}<stop>{{ m.content }}<pad>A:{% endfor %}")
    import_model(str(tmp_path / "source"), tmp_path / "imported")
    export(tmp_path / "imported", tmp_path / "hf", dtype="float32")
    variables = run_page(tmp_path / "hf", model=model, prefix="Heat (1995) 4\n", item="Emma")
    ours = read_chat_tokenizer(tmp_path / "imported/tokenizer", pad=PAD, stop=STOP)
    prefix, item = ours.encode(["Heat (1995) 4\n", "Emma"])
    assert ours.opening == (STOP,) and ours.closing[0] == PAD
    assert variables["prompt"] == [*ours.opening, *prefix, *item, *ours.closing]


RESULTS = {
    "schema": 1,
    "systems": {"rl": {"ndcg@10": {"mean": 0.5454, "ci95": [0.526, 0.566], "n": 943}}},
    "comparisons": [],
    "analytic_random": {},
    "data_hash": "d47a",
    "commit": "c0ffee",
    "training": {},
    "machine": {},
}


def test_the_page_describes_the_model(tmp_path, run_dir):
    export(run_dir, tmp_path / "one", phase="sft")
    page = (tmp_path / "one/README.md").read_text()
    for part in ("# one", "sft, 5 steps", "f00d", "not recorded: `r2rank eval` had not been run", '"name": "small"'):
        assert part in page, part
    assert "license" not in page and "Results" not in page

    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run/results.json").write_text(json.dumps(RESULTS))
    export(tmp_path / "run", tmp_path / "two", form="scorer")
    page = (tmp_path / "two/README.md").read_text()
    for part in ("text-classification", "rl, 5 steps", "d47a", "c0ffee", "0.545 [0.526, 0.566]", f"+ [{STOP}]"):
        assert part in page, part


def test_results_of_another_checkpoint_are_left_out(tmp_path, run_dir, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    training = {"rl": {"checkpoint": "0" * 64}}
    (tmp_path / "run/results.json").write_text(json.dumps(RESULTS | {"training": training}))
    export(tmp_path / "run", tmp_path / "hf")
    assert "0.545" not in (tmp_path / "hf/README.md").read_text()
    assert "evaluates another checkpoint of rl" in capsys.readouterr().out


def test_invalid_exports_are_refused_and_write_nothing(tmp_path, run_dir, capsys):
    out = tmp_path / "hf"

    def refused(error, message, source=run_dir, **settings):
        with pytest.raises(error, match=message):
            export(source, out, **settings)
        assert not list(tmp_path.glob(".hf*")) and not out.exists()

    refused(PretrainedError, r"must be a run directory .* or an imported model .*, got .*nowhere", tmp_path / "nowhere")
    refused(
        PretrainedError,
        r"--phase must be one that .* has trained \(sft, rl\), got sft_continued",
        phase="sft_continued",
    )
    refused(ConfigError, r"--shard-gib must be positive, got 0", shard_gib=0)
    damaged = tmp_path / "damaged"
    shutil.copytree(imported("llama"), damaged)
    (damaged / "params/extra").write_text("x")
    refused(PretrainedError, r"damaged \(params/extra does not match its checksum\)", damaged)
    broken = tmp_path / "broken"
    shutil.copytree(run_dir, broken)
    (broken / "results.json").write_text("{}")
    assert main(["export", str(broken), "--out", str(out)]) == 2
    assert "results must hold 'systems'" in capsys.readouterr().err and not out.exists()
    assert main(["export", str(run_dir), "--out", str(damaged)]) == 2
    assert "--out must be a new or empty folder" in capsys.readouterr().err


def test_the_command(tmp_path, run_dir):
    options = ["--phase", "sft", "--form", "scorer", "--dtype", "float32", "--shard-gib", "1"]
    assert main(["export", str(run_dir), "--out", str(tmp_path / "hf"), *options]) == 0
    assert main(["model", "import", str(tmp_path / "hf"), "--out", str(tmp_path / "model")]) == 0
    like = abstract_params(make_mesh(MeshConfig(fsdp=2)), BASE)
    require_equal(load_pretrained(tmp_path / "model", like, BASE), policy_of(run_dir, "sft"))
