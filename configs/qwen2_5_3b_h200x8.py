"""Qwen2.5-3B on eight H200: SFT and RL of all parameters.

    r2rank model import DOWNLOADED_FOLDER --out models/qwen2.5-3b
    r2rank plan --config configs/qwen2_5_3b_h200x8.py --topology h200:8 --backend compile
    r2rank sft --config configs/qwen2_5_3b_h200x8.py     and the other phases, as in the README

Not run yet. Output of `r2rank plan` (jax 0.10.2, compiled on two busy CPU cores in two minutes):

    parameters: 3,085,940,736, computing in bfloat16
    sft update: 10 of 20 items at once, layers recomputed
    rl update: 3 of 20 items at once, layers recomputed
    rl rollout: 1.74e+15 FLOPs, at least 0.275 s
    rl update: 5.22e+15 FLOPs, at least 0.66 s
    compiled sft step in 28 s: 38.7 GiB (estimated 39.6) ... all-gather 8 times, 11.5 GiB; all-reduce 10 times, 11.5 GiB
    compiled rollout merge in 1 s: 13.5 GiB (estimated 13.5)
    compiled rl update in 33 s: 41.6 GiB (estimated 41.2) ... all-reduce 16 times, 11.5 GiB
    fits: yes, 41.6 of 105.8 GiB on each device

`compute.update_gib=4` makes the update read items in chunks, with parameters gathered once before the loop. By default
the update would read all items at once, because they fit into memory. Before `shard_map` was used for that case, XLA
for GPUs reduced activations instead (1,306 all-reduces of 1,009 GiB in one RL update); now both cases reduce 11.5 GiB
(docs/performance.md).
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
        compute=ComputeConfig(update_gib=4),
        sft=SFTConfig(batch_users=16, optimizer=OptimizerConfig(learning_rate=1e-5)),
        rl=RLConfig(
            batch_users=16,
            rationales=4,
            optimizer=OptimizerConfig(learning_rate=1e-6, ema_decay=0.0),
        ),
        evaluation=EvaluationConfig(batch_users=16),
    )
