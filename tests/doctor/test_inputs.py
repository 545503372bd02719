"""What a run reads: an existing run that would go on or not, an imported model, and traces that are gone."""

import dataclasses
import json
import shutil

import pytest

from r2rank_jax.cli.configuration import load_config
from r2rank_jax.config import with_values
from r2rank_jax.data.prompts.tokenizer import train_tokenizer
from r2rank_jax.doctor.inputs import check_inputs
from r2rank_jax.pretrained.folder import ModelCard, ModelOrigin, write_model_card
from tests.support.command_line import succeed


def found(outcome):
    return {one.check: (one.verdict, one.what) for one in outcome.findings}


@pytest.fixture(scope="module")
def stopped_run(tiny, tmp_path_factory):
    """A run whose SFT has done 9 of 10 steps; read only."""
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    succeed("sft", "--config", tiny.config, "--run-dir", run_dir)
    shutil.rmtree(run_dir / "checkpoints/sft/10")
    return run_dir


@pytest.mark.slow
def test_a_run_that_would_go_on_and_one_that_would_be_refused(tiny, stopped_run):
    config = load_config(tiny.config)
    verdicts = found(check_inputs(config, stopped_run))
    assert verdicts["resume"] == ("ok", "sft would go on at step 9 of 10")
    assert verdicts["start"][0] == "ok" and "tokenizer of the run" in verdicts["start"][1]
    other = with_values(config, {"sft.batch_users": 2})
    verdict, what = found(check_inputs(other, stopped_run))["resume"]
    assert verdict == "fault" and "sft.batch_users: 4 -> 2" in what


@pytest.mark.slow
def test_traces_of_a_run_that_has_begun_may_be_gone(tiny, stopped_run, tmp_path):
    config = with_values(load_config(tiny.config), {"data.traces": str(tmp_path / "gone")})
    verdict, what = found(check_inputs(config, stopped_run))["traces"]
    assert verdict == "warning" and what.startswith("SFT cannot go on: traces must be at")
    assert found(check_inputs(config, tmp_path / "new"))["traces"][0] == "fault"


def test_an_imported_model_must_be_that_of_the_configuration(tiny, tmp_path):
    model = tmp_path / "model"
    config = with_values(load_config(tiny.config), {"pretrained": str(model)})
    verdict, what = found(check_inputs(config, tmp_path / "run"))["start"]
    assert verdict == "fault" and "must be the folder of an imported model" in what

    (model / "tokenizer").mkdir(parents=True)
    train_tokenizer(["some words"], 400).save(str(model / "tokenizer/tokenizer.json"))
    origin = ModelOrigin(architecture="X", sha256="ab" * 32, positions=128, bos=None, hub_id="some/model", licence=None)
    card = ModelCard(config=dataclasses.replace(config.model, dtype="float32"), pad=0, stop=1, source=origin)
    write_model_card(model, card)
    verdict, what = found(check_inputs(config, tmp_path / "run"))["start"]
    assert verdict == "fault" and "must hold the model's weights" in what
    (model / "params").mkdir()
    outcome = check_inputs(config, tmp_path / "run")
    assert found(outcome)["start"] == ("ok", "some/model, abababababab")
    hashes = outcome.facts["data"]
    assert hashes["model"] == "ab" * 32 and len(hashes["tokenizer"]) == 64
    assert json.dumps(hashes), "facts travel as JSON"

    wider = with_values(config, {"model.width": 24})
    verdict, what = found(check_inputs(wider, tmp_path / "run"))["start"]
    assert verdict == "fault" and "width: 16 -> 24" in what
