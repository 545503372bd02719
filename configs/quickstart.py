"""Quickstart: train a tiny decoder from scratch to reason about and rank the films of MovieLens-100K.

    make quickstart

Cost: 15 minutes and under 8 GiB on two CPU cores. README.md has the result and describes the machine.

The head reads the words of a rationale alone (`model.score_reads=words`): a policy can only rank by what it says. The
template wrote rationales for 8,000 lists (`LISTS` in the Makefile). SFT learns them and, from the labels of 96 further
lists a step, a critic beside the words, by which RL judges what is said. Training lists hold the user's next five films
as positives, so that the rationales and labels of every list are informative; held-out lists hold one. The tokenizer
has a token for nearly every title, so a history of ten films takes about 25 tokens. All settings were chosen on the
validation lists (docs/measurements.md), except for the numbers of steps, which fit 15 minutes;
configs/experiments/ml100k_loo.py trains longer, with three seeds and controls.
"""

from r2rank_jax.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)


def config() -> RunConfig:
    """The experiment that `make quickstart` runs."""
    return RunConfig(
        name="quickstart",
        data=DataConfig(
            directory="data/ml-100k",
            traces="data/ml-100k/traces.jsonl",
            train_positives=5,
            prefix_tokens=25,
            suffix_tokens=5,
            rationale_tokens=9,
        ),
        model=ModelConfig(
            vocabulary=9728,
            width=96,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=24,
            mlp_width=256,
            score_reads="words",
            critic=True,
        ),
        sft=SFTConfig(
            steps=750,
            batch_users=16,
            critic_users=96,
            optimizer=OptimizerConfig(learning_rate=6e-3),
            log_every=25,
            validate_every=250,
            checkpoint_every=250,
        ),
        rl=RLConfig(
            steps=60,
            batch_users=8,
            rationales=8,
            temperature=1.0,
            optimizer=OptimizerConfig(learning_rate=1.5e-3, ema_decay=0.98),
            token_weight=1.0,
            kl_weight=0.05,
            critic_share=1.0,
            log_every=10,
            validate_every=20,
            checkpoint_every=20,
        ),
        evaluation=EvaluationConfig(rationales=8, validation_users=200),
    )
