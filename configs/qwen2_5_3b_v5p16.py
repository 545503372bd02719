"""Qwen2.5-3B on a TPU v5p-16, eight chips: SFT and RL of all parameters.

    r2rank model import DOWNLOADED_FOLDER --out models/qwen2.5-3b
    r2rank plan --config configs/qwen2_5_3b_v5p16.py --topology v5p:2x2x2 --backend compile
    r2rank sft --config configs/qwen2_5_3b_v5p16.py     and the other phases, as in the README

Not run yet. Output of `r2rank plan` (jax 0.10.2, libtpu 0.0.42.1, compiled on two busy CPU cores in
two and a half minutes):

    parameters: 3,085,940,736, computing in bfloat16
    rl update: 20 of 20 items at once, layers recomputed
    rl rollout: 1.74e+15 FLOPs, at least 0.477 s
    rl update: 5.22e+15 FLOPs, at least 1.42 s
    compiled sft step in 32 s: 26.8 GiB (estimated 26.4) ... all-reduce 10 times, 11.5 GiB
    compiled rollout wave in 12 s: 13.3 GiB (estimated 12.9)
    compiled rl update in 25 s: 27.8 GiB (estimated 37.9) ... all-reduce 17 times, 11.5 GiB
    fits: yes, 27.8 of 95.7 GiB on each device
"""

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.presets import QWEN2_5_3B


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="qwen2_5_3b_v5p16",
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
