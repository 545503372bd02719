"""Parts of model folders that went wrong: each is read, or refused in one line, as the README beside them says.

The small files are copied to `fixtures/`. If the folder of all cases lies beside the repository, its files are tried
too.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from r2rank_jax.cli import main
from r2rank_jax.errors import DataError
from r2rank_jax.model.hf_config import config_from_hf
from r2rank_jax.model.hf_names import tensors
from r2rank_jax.pretrained.folder import read_model_card, tokenizer_hash
from r2rank_jax.pretrained.weights import write_file
from r2rank_jax.runs.starting_model import adopt, read_run_tokenizer

HERE = Path(__file__).parent
COPIES = HERE / "fixtures/cases/hf"
BESIDE = HERE.parents[1] / "shared/cases/hf"
CASES = sorted(path for folder in (COPIES, BESIDE) if folder.is_dir() for path in folder.iterdir())


def write_model(folder, config=COPIES / "config_nulls.json", template="{{ messages[0]['content'] }}"):
    """A Llama of two layers and a tokenizer of a few words, with this config.json and chat template."""
    folder.mkdir()
    shutil.copyfile(config, folder / "config.json")
    (folder / "config.json").chmod(0o644)
    words = ["<pad>", "<stop>", "<unk>", *"0123456789:", "Today", "one", "two"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    backend.add_special_tokens(["<pad>", "<stop>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<stop>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    wanted = tensors(config_from_hf(json.loads(config.read_text())), language_head=True, score_head=False)
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    write_file(folder / "model.safetensors", shapes, lambda name: np.ones(shapes[name]), "float32")
    return folder


def import_into(folder, **parts):
    return main(["model", "import", str(write_model(folder / "hf", **parts)), "--out", str(folder / "model")])


def nulls_are_the_defaults_of_the_family(path, folder, capsys):
    assert import_into(folder, config=path) == 0
    card = read_model_card(folder / "model")
    assert (card.config.rope_theta, card.config.norm_epsilon, card.source.positions) == (10_000.0, 1e-6, 2048)


def the_clock_is_read_once(path, folder, capsys):
    assert import_into(folder, template=path.read_text()) == 0
    kept = read_model_card(folder / "model").frame
    assert kept.before.startswith("Today: ") and kept.before.count(":") == 3 and kept.after == ""
    assert "the chat template reads the clock" in capsys.readouterr().out

    # At any later time, and with whatever template, a run has the text of the import.
    template = folder / "model/tokenizer/chat_template.jinja"
    template.write_text("Tomorrow {{ messages[0]['content'] }}")
    (folder / "run").mkdir()
    adopt(folder / "model", folder / "run")
    assert read_model_card(folder / "run/base").frame == kept
    tokenizer = read_run_tokenizer(folder / "run")
    of_text = Tokenizer.from_file(str(folder / "hf/tokenizer.json")).encode(kept.before, add_special_tokens=False)
    assert tokenizer.opening == tuple(of_text.ids) and tokenizer.closing == ()

    # A model that was imported before frames were kept would give other prompts every day.
    old = json.loads((folder / "model/model.json").read_text())
    (folder / "model/model.json").write_text(json.dumps(old | {"frame": None}))
    template.write_text(path.read_text())
    (folder / "new-run").mkdir()
    with pytest.raises(DataError, match="import the model again and start a new run"):
        adopt(folder / "model", folder / "new-run")
    assert not list((folder / "new-run").iterdir())

    card, before = folder / "run/base/model.json", tokenizer_hash(folder / "run")
    card.write_text(card.read_text().replace("Today", "Yesterday"))
    assert tokenizer_hash(folder / "run") != before, "the frame is a part of the prompts' identity"


def the_template_is_refused(path, folder, capsys):
    assert import_into(folder, template=path.read_text()) == 2
    message = capsys.readouterr().err
    assert message.startswith("r2rank: the chat template in ") and message.count("\n") == 1
    assert str(folder / "hf") in message and "raises TemplateError" in message
    assert [entry.name for entry in folder.iterdir()] == ["hf"]


EXPECTED = {
    "config_nulls.json": nulls_are_the_defaults_of_the_family,
    "chat_template_with_clock.jinja": the_clock_is_read_once,
    "chat_template_raises.jinja": the_template_is_refused,
}


@pytest.mark.parametrize("path", CASES, ids=[f"{path.parents[2].name}-{path.name}" for path in CASES])
def test_each_case_is_as_its_readme_says(tmp_path, capsys, path):
    assert path.name in EXPECTED, f"say here what should happen with {path.name}"
    EXPECTED[path.name](path, tmp_path, capsys)
