"""Lists to rank and parts of model folders that went wrong: each is read, set aside or refused in one line, as the
README beside the cases says.

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
from r2rank_jax.data.batches.requests import read_requests
from r2rank_jax.data.prompts.prompts import prefix_text, suffix_text
from r2rank_jax.data.prompts.templates import FILMS_2
from r2rank_jax.errors import DataError
from r2rank_jax.model.hf_config import config_from_hf
from r2rank_jax.model.hf_names import tensors
from r2rank_jax.pretrained.folder import read_model_card, tokenizer_hash
from r2rank_jax.pretrained.weights import write_file
from r2rank_jax.runs.rank import requests_with_history
from r2rank_jax.runs.starting_model import adopt, read_run_tokenizer

HERE = Path(__file__).parent
PLACES = (HERE / "fixtures/cases", HERE.parents[1] / "shared/cases")
CASES = sorted(
    path for place in PLACES for kind in ("hf", "rank") if (place / kind).is_dir() for path in (place / kind).iterdir()
)
COPIES = PLACES[0] / "hf"


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


def lines_of(path):
    """The lines of the prompts of the file's only list: its history, and those of each candidate."""
    (request,) = read_requests(path)
    (_, *history, end) = prefix_text(request.history, FILMS_2).split("\n")
    assert end == ""
    candidates = (suffix_text(c.title, c.year, c.genres, c.details, template=FILMS_2) for c in request.candidates)
    return history, [text.split("\n")[0] for text in candidates]


def the_list_is_read(path, folder, capsys):
    """A string is one genre."""
    assert lines_of(path) == (["Alien (1979) 5"], ["Heat (1995); Action", "Emma"])


def an_interaction_is_not_rated(path, folder, capsys):
    assert lines_of(path) == (["Alien -"], ["Heat (1995); Action", "Emma"])


def the_encoding_is_refused(path, folder, capsys):
    with pytest.raises(
        DataError, match=rf"{path.name}, line 1: expected text in UTF-8, got the byte 0xe9; convert"
    ) as e:
        read_requests(path)
    assert "\n" not in str(e.value)


def a_cold_user_is_set_aside(path, folder, capsys):
    """Counted, while other lists are ranked; alone, there is nothing to rank."""
    both = folder / "both.jsonl"
    both.write_bytes(path.read_bytes() + (PLACES[0] / "rank/no_rating.jsonl").read_bytes())
    assert [len(request.history) for request in requests_with_history(both)] == [1]
    assert capsys.readouterr().err.startswith("r2rank: set aside 1 of 2 lists, of users with an empty history: 'ada';")
    with pytest.raises(DataError, match="holds 1 of 1 lists, of users with an empty history: 'ada';") as refusal:
        requests_with_history(path)
    assert "\n" not in str(refusal.value)


EXPECTED = {
    "config_nulls.json": nulls_are_the_defaults_of_the_family,
    "chat_template_with_clock.jinja": the_clock_is_read_once,
    "chat_template_raises.jinja": the_template_is_refused,
    "genres_string.jsonl": the_list_is_read,
    "gz.jsonl.gz": the_list_is_read,
    "latin1.jsonl": the_encoding_is_refused,
    "no_rating.jsonl": an_interaction_is_not_rated,
    "empty_history.jsonl": a_cold_user_is_set_aside,
}


@pytest.mark.parametrize(
    "path",
    [  # those of models render a template in a process that imports transformers
        pytest.param(
            path, marks=[pytest.mark.slow] * (path.parent.name == "hf"), id=f"{path.parents[2].name}-{path.name}"
        )
        for path in CASES
    ],
)
def test_each_case_is_as_its_readme_says(tmp_path, capsys, path):
    assert path.name in EXPECTED, f"say here what should happen with {path.name}"
    EXPECTED[path.name](path, tmp_path, capsys)
