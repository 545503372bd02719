"""Qwen3-8B on eight H200 or eight chips of TPU v5p: SFT and RL of all parameters.

    r2rank model import DOWNLOADED_FOLDER --out models/qwen3-8b
    r2rank plan --config configs/qwen3_8b.py --topology h200:8 --backend compile
    r2rank sft --config configs/qwen3_8b.py     and the other phases, as in the README

Not run yet. Float32 parameters, two moments and the reference take 122 GiB, 15.3 GiB on each device.
Output of `r2rank plan` (jax 0.10.2, on two CPU cores: 70 s for H200, 67 s for v5p with libtpu 0.0.42.1):

    parameters: 8,190,739,456, computing in bfloat16
    sft update: 10 of 20 items at once, layers recomputed
    rl update: 3 of 20 items at once, layers recomputed
    h200:8      rl rollout: at least 0.537 s      rl update: 1.27e+16 FLOPs, at least 1.61 s
        compiled sft step in 16 s: 61.8 GiB (estimated 60.9) ... all-reduce 1,470 times, 58.8 GiB
        compiled rollout merge in 0 s: 30.8 GiB (estimated 30.8)
        compiled rl update in 15 s: 64.9 GiB (estimated 65.3) ... all-reduce 3,301 times, 114.8 GiB
        fits: yes, 64.9 of 105.8 GiB on each device
    v5p:2x2x2   rl rollout: at least 1.16 s       rl update: 1.27e+16 FLOPs, at least 3.47 s
        compiled sft step in 16 s: 52.2 GiB (estimated 55.6) ... all-reduce 43 times, 16.1 GiB
        compiled rl update in 16 s: 53.3 GiB (estimated 60.0) ... all-reduce 43 times, 15.9 GiB
        fits: yes, 53.3 of 95.7 GiB on each device

In these counts of collectives, a loop whose number of iterations is unknown at compile time counts as one iteration.
"""

from r2rank_jax.config import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from r2rank_jax.model.presets import QWEN3_8B


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="qwen3_8b",
        pretrained="models/qwen3-8b",
        data=DataConfig(
            directory="data/ml-100k",
            traces="data/ml-100k/traces.jsonl",
            train_positives=5,
            prefix_tokens=768,
            suffix_tokens=48,
            rationale_tokens=192,
        ),
        model=QWEN3_8B,
        mesh=MeshConfig(fsdp=4, tensor=2),
        compute=ComputeConfig(update_gib=10),
        sft=SFTConfig(batch_users=16, optimizer=OptimizerConfig(learning_rate=1e-5)),
        rl=RLConfig(
            batch_users=16,
            rationales=4,
            optimizer=OptimizerConfig(learning_rate=1e-6, ema_decay=0.0),
        ),
        evaluation=EvaluationConfig(batch_users=16),
    )
