"""Qwen2.5-3B on eight H200: SFT and RL of all parameters.

    r2rank model import DOWNLOADED_FOLDER --out models/qwen2.5-3b
    r2rank plan --config configs/qwen2_5_3b_h200x8.py --topology h200:8 --backend compile
    r2rank sft --config configs/qwen2_5_3b_h200x8.py     and so on, as in the README

Cost: not run, for want of the machine. What `plan` said (jax 0.10.2, compiled on two CPU cores in a minute):

    parameters: 3,085,940,736, computing in bfloat16
    rl rollout: 1.74e+15 FLOPs, at least 0.275 s
    rl update: 5.22e+15 FLOPs, at least 0.66 s
    compiled sft step in 11 s: 18.9 GiB (estimated 18.9) ... all-reduce 1,301 times, 328.9 GiB
    compiled rollout merge in 0 s: 13.5 GiB (estimated 13.5)
    compiled rl update in 14 s: 49.8 GiB (estimated 30.5) ... all-reduce 1,306 times, 1,009.3 GiB
    fits: yes, 49.8 of 105.8 GiB on each device

A terabyte of sums over activations per update is what XLA for GPUs makes of parameters that are split along fsdp where
all items are read at once. In chunks parameters are gathered once; `--compute.update-gib 8` asks for them:

    rl update: 10 of 20 items at once, layers recomputed
    compiled rl update in 36 s: 64.6 GiB ... all-gather 13 times, 12.7 GiB; all-reduce 16 times, 11.5 GiB
"""

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.presets import QWEN2_5_3B


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="qwen2_5_3b_h200x8",
        pretrained="models/qwen2.5-3b",
        data=DataConfig(
            directory="data/ml-100k",
            traces="data/ml-100k/traces.jsonl",
            train_positives=5,
            prefix_tokens=768,
            suffix_tokens=48,
            rationale_tokens=192,
        ),
        model=QWEN2_5_3B,
        mesh=MeshConfig(fsdp=8),
        sft=SFTConfig(batch_users=16, optimizer=OptimizerConfig(learning_rate=1e-5)),
        rl=RLConfig(
            batch_users=16,
            rationales=4,
            optimizer=OptimizerConfig(learning_rate=1e-6, ema_decay=0.0),
        ),
        evaluation=EvaluationConfig(batch_users=16),
    )
