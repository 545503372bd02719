"""The record that a phase commits with each checkpoint: its form on disk, which older checkpoints have too."""

import json

import pytest

from r2rank_jax.errors import CheckpointError
from r2rank_jax.phases import PHASES, PhaseRecord

SHARED = {
    "config": {"name": "tiny"},
    "iterator": {"next_index": 4},
    "steps": 10,
    "wall_s": 1.5,
    "finished": False,
    "has_average": True,
}
SFT = {"phase": "sft", "traces": "f00d"} | SHARED
RL = {"phase": "rl", "reference": "beef", "logp_gap": 0.25} | SHARED


@pytest.mark.parametrize("stored", [SFT, RL], ids=["sft", "rl"])
def test_the_stored_form_is_kept(stored):
    record = PhaseRecord.from_json(json.loads(json.dumps(stored)))
    assert record.to_json() == stored
    assert (record.phase, record.wall_s, record.finished) == (stored["phase"], 1.5, False)


def test_fields_of_another_phase_or_version():
    assert PhaseRecord.from_json(SFT).reference is None and PhaseRecord.from_json(RL).traces is None
    older = {name: value for name, value in RL.items() if name != "logp_gap"}
    assert PhaseRecord.from_json(older).logp_gap is None
    assert PhaseRecord.from_json(RL | {"of_a_later_version": 1}) == PhaseRecord.from_json(RL)


def test_a_missing_field_is_named():
    with pytest.raises(CheckpointError, match="must hold 'finished', got"):
        PhaseRecord.from_json({name: value for name, value in SFT.items() if name != "finished"})


def test_names_of_the_phases():
    assert PHASES == ("sft", "sft_continued", "rl")


def test_lists_survive_json():
    record = PhaseRecord.from_json(SFT | {"changes": ["from step 4: sft.steps: 4 -> 10"], "skipped": 2})
    assert PhaseRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.changes == ("from step 4: sft.steps: 4 -> 10",)
