"""The settings of training: the optimizer, supervised fine-tuning and reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from r2rank_jax.config.checks import LARGEST_WHOLE, Checked, Count, Positive, Range, Text, Weight, require
from r2rank_jax.config.objective_names import normal_objective


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """AdamW with a linear warm-up."""

    SECTION: ClassVar[str] = "optimizer"

    learning_rate: Positive = 3e-3
    """Learning rate at the end of the warm-up, the largest."""
    head_learning_rate: Positive | None = None
    """Learning rate of the scoring head, with the same schedule. None: the same. A new head on a pretrained backbone
    hardly moves at the backbone's rate."""
    schedule: Literal["cosine", "constant", "warmup_stable_decay"] = "cosine"
    """What follows the warm-up. cosine: decay to zero at the last step; constant: no decay; warmup_stable_decay: no
    decay until the last fifth, then linear to zero. A finished run extends cleanly only under constant: more steps
    give what a longer run would have given. See docs/method.md."""
    warmup_steps: Annotated[int, Range(0)] = 20
    """Updates in which the rate rises from zero. A phase with fewer updates reaches the full rate at its last one,
    unless its schedule is constant."""
    weight_decay: Weight = 0.0
    """Of matrices, adapters and the head. Norms, biases and embeddings do not decay."""
    clip_norm: Annotated[float, Range(0, note="0 turns clipping off")] = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down. 0: no clipping."""
    beta2: Annotated[float, Range(0, below=1)] = 0.99
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment; the second, a mean of squares, stays float32."""
    ema_decay: Annotated[float, Range(0, below=1)] = 0.0
    """Decay of the parameter average, which is evaluated and starts the next phase. 0: no average."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig(Checked):
    """Supervised fine-tuning on worked rationales."""

    SECTION: ClassVar[str] = "sft"

    steps: Count = 1000
    batch_users: Count = 16
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    head_weight: Weight = 0.5
    """Weight of the head's loss; the cross-entropy of the rationale has weight 1."""
    head_loss: Text = "list_net"
    """Loss of the scores of a list: one of `ranking.losses`, or module:function with the same arguments."""
    critic_users: Annotated[int, Range(0, note="none")] = 0
    """Further lists of each step, without rationales, whose labels train the critic (model.critic). SFT of a model with
    a critic needs some; SFT continued may go on without."""
    log_every: Count = 20
    validate_every: Annotated[int, Range(0, note="0: at the end only")] = 200
    patience: Annotated[int, Range(0, note="train all steps; the last policy counts")] = 0
    """Validations in a row without a better NDCG after which the phase ends. If above 0, its policy is that of the best
    validation."""
    checkpoint_every: Annotated[int, Range(0, note="0: at the end only")] = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_validations(self)


@dataclass(frozen=True, kw_only=True)
class RLConfig(Checked):
    """Reinforcement learning from the reward of rankings; docs/method.md explains the score part and the token part."""

    SECTION: ClassVar[str] = "rl"

    steps: Count = 400
    batch_users: Count = 8
    rationales: Count = 2
    """G, number of rationales sampled per item."""
    updates: Count = 1
    """Optimizer updates per rollout. PPO's ratio and its clipping have an effect from the second update on."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-4, ema_decay=0.98, clip_norm=1.0)
    )
    temperature: Annotated[float, Range(0.001, 1000)] = 0.6
    """Temperature of the sampled tokens; the trainer scores the same tempered distribution."""
    reward: Text = "ndcg@10"
    """Reward of a ranking: ndcg@10, mrr, 0.5*ndcg@10+0.5*recall@10 or module:function; docs/ranking.md lists all.
    Evaluation measures it too."""
    rationale_rewards: str = ""
    """Rewards of the rationales, in units of `reward`: 0.1*cut_off+0.02*too_long@12 or 0.1*module:function.
    Empty: none. See `train.rationale_rewards`."""
    estimator: Literal["reinforce", "reward_to_go", "pl_rank", "exact"] = "exact"
    """Estimator of the score part, the gradient of V(s)."""
    num_samples: Count = 16
    """M, number of rankings that the sampling estimators draw per list."""
    credit: Literal["shared", "counterfactual", "first_order", "leave_item_out", "swap"] = "counterfactual"
    """Rule that turns the reward of a list into the advantages of its rationales; see `ranking.credit`."""
    joint: bool = True
    """Let the score part train the backbone too, through the hidden state that the head reads."""
    fixed_scale: bool = True
    """Remove from ∇V the direction that scales all scores together, which changes V but no ranking, and from the
    advantages what a rationale gains by it."""
    score_weight: Weight = 1.0
    """Weight of the score part."""
    token_weight: Weight = 0.5
    """Weight of the token part."""
    kl_weight: Weight = 0.02
    """Weight of KL(policy || SFT policy) per token, over the whole vocabulary."""
    entropy_weight: Weight = 0.0
    """Weight of the entropy bonus."""
    critic_share: Annotated[float, Range(0, 1)] = 0.0
    """How much of the relevance in the advantages is what the SFT policy's critic expects; the rest is the sampled
    labels. 0: labels only; 1: the critic only."""
    ratio: Literal["token", "sequence"] = "token"
    """PPO's probability ratio: one for each token, or one for the sequence (GSPO)."""
    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: Weight = 0.2
    max_importance_weight: Positive = 2.0
    """Upper bound on the ratio of a token's probability in the trainer to that in the rollout, by which its PPO term is
    multiplied."""
    log_every: Count = 10
    validate_every: Annotated[int, Range(0, note="0: at the end only")] = 100
    patience: Annotated[int, Range(0, note="train all steps; the last policy counts")] = 0
    """Validations in a row without a better NDCG after which the phase ends. If above 0, its policy is that of the best
    validation."""
    checkpoint_every: Annotated[int, Range(0, note="0: at the end only")] = 100
    gradients_every: Annotated[int, Range(0, note="0: never")] = 0
    """Steps between two measurements of how far two halves of a batch agree on the gradient; the first is at step 1.
    Each costs two updates or so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "reward", normal_objective("rl.reward", self.reward))
        if self.rationale_rewards.strip():
            rewards = normal_objective("rl.rationale_rewards", self.rationale_rewards)
            object.__setattr__(self, "rationale_rewards", rewards)
        _require_validations(self)
        updates = self.steps * self.updates
        require(
            updates <= LARGEST_WHOLE,
            f"rl.steps x rl.updates must be at most {LARGEST_WHOLE}, got {self.steps} x {self.updates}; lower one",
        )
        require(
            self.num_samples >= 2 or self.estimator in ("exact", "pl_rank"),
            f"rl.estimator={self.estimator} compares rankings with each other and needs rl.num_samples >= 2, got "
            f"{self.num_samples}; raise it, or set rl.estimator to exact",
        )
        require(
            self.rationales >= 2 or self.credit not in ("counterfactual", "first_order"),
            f"rl.credit={self.credit} compares rationales of the same item and needs rl.rationales >= 2, "
            f"got {self.rationales}; raise rl.rationales, or set rl.credit to shared and rl.rationales to 1",
        )


def _require_validations(config: SFTConfig | RLConfig) -> None:
    section = config.SECTION
    require(
        not config.patience or config.validate_every > 0,
        f"{section}.patience={config.patience} counts validations and needs {section}.validate_every > 0, got 0; set "
        f"it, or {section}.patience to 0",
    )
