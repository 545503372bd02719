"""TODO"""

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.presets import QWEN2_5_3B


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="qwen2.5-3b",
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
