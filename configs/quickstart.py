"""Quickstart: train a tiny decoder from scratch to reason about and rank the films of MovieLens-100K.

    make quickstart

Cost: under 20 minutes and under 8 GiB on two CPU cores. README.md has the result and describes the machine.

The traces are 1,000 lists with 20,000 worked rationales (`LISTS` in the Makefile). SFT reaches its validation plateau
after 400 of 600 steps. RL draws from all 93,399 training lists. Training lists hold the user's next five films as
positives, so that the rationales and labels of every list are informative; evaluation lists hold one. With a vocabulary
of 4,096, most titles are one or two tokens, which shortens every prompt and lets two layers relate whole titles.
All settings were chosen on the validation lists (docs/measurements.md).
"""

from r2rank_jax.config import DataConfig, ModelConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig


def config() -> RunConfig:
    """The experiment that `make quickstart` runs."""
    return RunConfig(
        name="quickstart",
        data=DataConfig(
            directory="data/ml-100k",
            traces="data/ml-100k/traces.jsonl",
            train_positives=5,
            prefix_tokens=48,
            suffix_tokens=10,
            rationale_tokens=11,
        ),
        model=ModelConfig(vocabulary=4096, width=96, layers=2, heads=4, kv_heads=2, head_size=24, mlp_width=256),
        sft=SFTConfig(
            steps=600,
            batch_users=16,
            optimizer=OptimizerConfig(learning_rate=6e-3),
            log_every=20,
            validate_every=200,
            checkpoint_every=200,
        ),
        rl=RLConfig(
            steps=260,
            batch_users=16,
            rationales=2,
            optimizer=OptimizerConfig(learning_rate=2.5e-3, ema_decay=0.98),
            kl_weight=0.5,
            log_every=10,
            validate_every=65,
            checkpoint_every=65,
        ),
    )
