"""TODO"""

from r2rank_jax.config import DataConfig, EvaluationConfig, MeshConfig, OptimizerConfig, RLConfig, RunConfig, SFTConfig
from r2rank_jax.model.presets import SMOLLM2_135M


def config() -> RunConfig:
    """SFT and RL of all parameters."""
    return RunConfig(
        name="smollm2-135m",
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
