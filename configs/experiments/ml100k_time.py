"""MovieLens-100K split by time, 20 candidates: does the reasoning carry the ranking when the whole future is hidden?

    r2rank experiment configs/experiments/ml100k_time.py --jobs 2

The quickstart's settings under the split `global_time`: training sees nothing after the first 80% of all interactions.
Most users of MovieLens-100K rated all their films within a day, so few have an interaction on both sides of a cut: 81
validation lists and 90 test lists. Intervals are three times as wide as under leave-one-out. Nothing was chosen here.
Expect an hour and a half of one CPU core; two commands run at a time. It resumes where it stopped.
"""

import runpy
from pathlib import Path

from r2rank_jax.config import with_values
from r2rank_jax.experiments.design import Arm, Experiment

LOO = runpy.run_path(str(Path(__file__).with_name("ml100k_loo.py")))
TRACES = "data/ml-100k/traces-time.jsonl"


def experiment() -> Experiment:
    """Arms and comparisons."""
    values = {
        "name": "ml100k_time",
        "data.split": "global_time",
        "data.traces": TRACES,
        "sft.validate_every": 0,
        "rl.validate_every": 0,
    }
    return Experiment(
        name="ml100k_time",
        title="MovieLens-100K, split by time, uniform negatives",
        config=with_values(LOO["QUICKSTART"]["config"](), values),
        seeds=(0, 1, 2),
        data=(*LOO["PREPARED"], LOO["traces"](8000, TRACES, "--split", "global_time")),
        arms=(
            Arm(name="sft", phase="sft", asks="where RL starts: the teacher's words, and a head that reads them"),
            Arm(name="rl", phase="rl", start="sft", asks="rationales and scores learn"),
            Arm(
                name="rl_no_token_part",
                phase="rl",
                start="sft",
                values={"rl.token_weight": 0.0},
                asks="only scores learn, from the same lists: what is said stays near SFT",
            ),
        ),
        baselines=("random", "popularity", "item_knn", "ease", "sasrec"),
        comparisons=(
            ("rl", "rl_no_token_part"),
            ("rl", "sft"),
            ("rl", "item_knn"),
            ("rl", "ease"),
            ("rl", "sasrec"),
        ),
        also=(LOO["POPULARITY"],),
    )
