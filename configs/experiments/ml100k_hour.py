"""MovieLens-100K, leave-one-out, 20 candidates: what does an hour of one CPU core reach?

    r2rank experiment configs/experiments/ml100k_hour.py

The method and the lists of ml100k_loo.py, with traces of 60,000 of the 93,399 training lists. SFT takes 3,000 steps
instead of 1,000 and reads no traced list twice; RL takes 150 instead of 100. Expect an hour and a quarter of one CPU
core for each seed, evaluation included, and a quarter of an hour for tuning the baselines. It resumes where it stopped.
"""

import runpy
from pathlib import Path

from r2rank_jax.config import with_values
from r2rank_jax.experiments.design import Arm, Experiment

LOO = runpy.run_path(str(Path(__file__).with_name("ml100k_loo.py")))
TRACES = "data/ml-100k/traces-60000.jsonl"


def experiment() -> Experiment:
    """Arms and comparisons."""
    values = {"name": "ml100k_hour", "data.traces": TRACES, "sft.steps": 3000, "rl.steps": 150}
    return Experiment(
        name="ml100k_hour",
        title="MovieLens-100K, leave-one-out, uniform negatives: an hour of one core",
        config=with_values(LOO["config"](), values),
        seeds=(0,),
        data=(*LOO["PREPARED"], LOO["traces"](60_000, TRACES)),
        arms=(
            Arm(
                name="sft",
                phase="sft",
                asks="48,000 traced lists; the critic sees each training list about three times",
            ),
            Arm(
                name="rl",
                phase="rl",
                start="sft",
                values={"evaluation.temperature": 1.5},
                asks="rationales and scores learn, from 1,200 lists",
            ),
        ),
        baselines=("random", "popularity", "item_knn", "ease", "sasrec"),
        comparisons=(
            ("rl", "sft"),
            ("rl", "item_knn"),
            ("rl", "ease"),
            ("rl", "sasrec"),
            ("sft_critic", "ease"),
            ("sft_critic", "sasrec"),
        ),
        notes=("One seed: the intervals are over users.",),
    )
