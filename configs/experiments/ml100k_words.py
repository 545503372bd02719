"""MovieLens-100K: is it what the policy says that improves? Three seeds of RL with and without its token part.

    r2rank experiment configs/experiments/ml100k_words.py --jobs 2

The arms `sft`, `rl` and `rl_no_token_part` of ml100k_loo.py, with its settings and data. It has not been run to
its end.
"""

import dataclasses
import runpy
from pathlib import Path

from r2rank_jax.experiments.design import Experiment


def experiment() -> Experiment:
    """Arms and comparisons."""
    whole: Experiment = runpy.run_path(str(Path(__file__).with_name("ml100k_loo.py")))["experiment"]()
    return dataclasses.replace(
        whole,
        name="ml100k_words",
        title="MovieLens-100K, leave-one-out, uniform negatives: the token part",
        arms=tuple(arm for arm in whole.arms if arm.name in ("sft", "rl", "rl_no_token_part")),
        baselines=("random", "popularity", "item_knn", "item_knn_all", "ease"),
        comparisons=(
            ("rl", "rl_no_token_part"),
            ("rl", "sft"),
            ("rl", "sft_critic"),
            ("rl", "item_knn"),
            ("rl", "ease"),
        ),
        probes=(),
        also=(),
    )
