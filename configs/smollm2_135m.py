"""SmolLM2-135M on one accelerator: SFT and RL of all parameters.

    r2rank model fetch smollm2-135m-instruct --out models/smollm2-hf
    r2rank model import models/smollm2-hf --out models/smollm2-135m
    r2rank plan --config configs/smollm2_135m.py --topology h100:1 --backend compile
    r2rank sft --config configs/smollm2_135m.py     and the other phases, as in the README

Not run yet. Output of `r2rank plan` (jax 0.10.2, compiled on two busy CPU cores: 71 s for h100:1, 77 s for v5e:1x1):

    parameters: 134,515,584, computing in bfloat16
    h100:1      rl rollout: 1.36e+13 FLOPs, at least 0.0172 s      rl update: 4.07e+13 FLOPs, at least 0.0411 s
        compiled sft step in 15 s: 29.8 GiB (estimated 28.8), temporaries 28.3; no collectives
        compiled rollout merge in 0 s: 4.45 GiB (estimated 4.45)
        compiled rl update in 18 s: 24.3 GiB (estimated 24.3)
        fits: yes, 29.8 of 59.3 GiB on each device
    v5e:1x1     layers recomputed
        compiled rollout merge in 1 s: 5.99 GiB (estimated 4.45): heads of 64 are padded to tiles of 128
        compiled rl update in 31 s: 7.16 GiB (estimated 8.14)
        fits: yes, 7.16 of 15.8 GiB on each device
"""

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.presets import SMOLLM2_135M


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="smollm2_135m",
        pretrained="models/smollm2-135m",
        data=DataConfig(
            directory="data/ml-100k",
            traces="data/ml-100k/traces.jsonl",
            train_positives=5,
            prefix_tokens=256,
            suffix_tokens=32,
            rationale_tokens=64,
        ),
        model=SMOLLM2_135M,
        mesh=MeshConfig(),
        sft=SFTConfig(batch_users=8, optimizer=OptimizerConfig(learning_rate=1e-5)),
        rl=RLConfig(
            batch_users=8,
            rationales=4,
            optimizer=OptimizerConfig(learning_rate=1e-6, ema_decay=0.98),
        ),
        evaluation=EvaluationConfig(batch_users=8),
    )
