"""Counted work of the arms. `runs/control.py` and `model/counting.py` say what is counted.

training_flops  of all phases that the arm went through, and minutes: their wall time, the mean over the seeds
readings        [{rationales, list_flops, ndcg}], for each number of rationales that the evaluation measured

Not counted: pre-training of an imported model, the teacher's work, validation, and RL's calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from r2rank_jax.experiments.design import Arm, Experiment
from r2rank_jax.runs.control import ranking_flops, rl_step_flops, sft_step_flops

GREEDY, NONE = "greedy", "none"


def cost(
    experiment: Experiment,
    arm: Arm,
    training: Mapping[str, Mapping[str, Any]],
    ndcg: Mapping[str, float],
    *,
    traced_items: Mapping[str, int],
    candidates: int,
) -> dict[str, Any]:
    """The cost of an arm.

    Args:
        experiment: that the arm belongs to.
        arm: the arm.
        training: arm -> {minutes, steps}, each a list over seeds.
        ndcg: number of rationales, or "greedy", or "none" without reasoning -> NDCG.
        traced_items: file of traces -> N of its lists.
        candidates: N of the test lists.
    """
    flops, minutes = 0.0, 0.0
    config = experiment.config_of(arm, experiment.seeds[0])
    for phase in _phases(experiment, arm):
        of_phase = experiment.config_of(phase, experiment.seeds[0])
        items = traced_items[of_phase.data.traces]
        step = rl_step_flops(of_phase) if phase.phase == "rl" else sft_step_flops(of_phase, traced_items=items)
        flops += step * float(np.mean(training[phase.name]["steps"]))
        minutes += float(np.mean(training[phase.name]["minutes"]))
    return {
        "training_flops": flops,
        "minutes": minutes,
        "readings": [
            {
                "rationales": count,
                "list_flops": ranking_flops(config, items=candidates, rationales=int(count) if count.isdigit() else 1),
                "ndcg": value,
            }
            for count, value in ndcg.items()
        ],
    }


def _phases(experiment: Experiment, arm: Arm) -> tuple[Arm, ...]:
    """The arms whose training made this policy. SFT continued trains the SFT policy, not that of RL."""
    return tuple(each for each in experiment.lineage(arm) if each is arm or each.phase == "sft")
