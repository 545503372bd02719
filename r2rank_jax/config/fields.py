"""All settings of a run, as frozen dataclasses that validate themselves.

A file in `configs/` returns one `RunConfig`; the command line overrides single fields (`--rl.credit shared`). The type
of a field states its range, see `config.checks`. The docstring below a field is its text in `--help`, which breaks
lines where the docstring does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from r2rank_jax.config.checks import LARGEST_WHOLE, Checked, Count, Positive, Range, Text, Weight
from r2rank_jax.config.objective_names import normal_objective
from r2rank_jax.errors import ConfigError

Trained = Literal["all", "adapters", "head"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Data, and the number of tokens for each part of a prompt."""

    SECTION: ClassVar[str] = "data"

    directory: Text = "data/ml-100k"
    """Folder that `r2rank data prepare` wrote."""
    traces: Text = "data/ml-100k/traces.jsonl"
    """File of worked rationales that `r2rank data synthesize` wrote; only SFT reads it."""
    template: Literal["films-1", "films-2", "products-1", "games-1", "books-1", "places-1"] = "films-1"
    """Wording of the prompts, by domain and version; see docs/prompts.md. All but films-1 include times."""
    split: Literal["leave_one_out", "global_time", "last_n", "cold_users"] = "leave_one_out"
    """Protocol of the held-out lists; must be one that the folder was prepared with."""
    history_items: Count = 10
    """Number of latest interactions in the prefix, whatever their rating."""
    candidate_items: Annotated[int, Range(2, note="something to rank")] = 20
    """N, items of a list that RL draws for training: `train_positives` positives, the rest negatives. The size of
    held-out lists is set by `r2rank data prepare --candidates`."""
    train_positives: Count = 1
    """Positives of RL's training lists: the user's next items, or fewer if the training period ends sooner.
    More positives give more signal per rationale. For traces, see `r2rank data synthesize --positives`."""
    min_history: Count = 5
    """Number of interactions that a user must have before their first training list."""
    prefix_tokens: Count = 72
    """P, longest prefix (instructions and history)."""
    suffix_tokens: Count = 16
    """S, longest item suffix."""
    rationale_tokens: Annotated[int, Range(0, note="no reasoning")] = 18
    """T, longest rationale with its stop token. 0 turns reasoning off: the head reads each item's last token."""
    length_buckets: Count = 1
    """Number of widths that training batches may be padded to. Above 1, lists of similar length share a batch. 1: all
    lists are padded to P, S and T. Every combination of widths is compiled as a separate program."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.train_positives < self.candidate_items,
            f"data.train_positives must leave at least one of data.candidate_items={self.candidate_items} as a "
            f"negative, got {self.train_positives}; set it to 1 .. {self.candidate_items - 1}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A decoder of the Qwen2, Qwen3 or Llama family. The families differ only in these fields."""

    SECTION: ClassVar[str] = "model"

    vocabulary: Count = 1536
    """Number of token ids."""
    width: Count = 96
    """Size of the hidden states."""
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 2
    head_size: Annotated[int, Range(2)] = 24
    mlp_width: Count = 256
    qk_norm: bool = False
    """Apply RMSNorm to each query and key head before RoPE (Qwen3)."""
    attention_bias: bool = False
    """Add biases to the query, key and value projections (Qwen2)."""
    tied_embeddings: bool = True
    """Use the embedding as the output layer."""
    rope_theta: Positive = 10_000.0
    rope_factor: Annotated[float, Range(1)] = 1.0
    """Factor by which the context was extended after pre-training (Llama 3.1's rule); 1 changes nothing."""
    rope_low_frequency: Positive = 1.0
    """Wavelengths that fit into the original context fewer times than this are multiplied by `rope_factor`."""
    rope_high_frequency: Positive = 4.0
    """Wavelengths that fit into it more often than this are unchanged."""
    rope_original_positions: Count = 8192
    """Length of the original context."""
    norm_epsilon: Positive = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, softmax, norms and losses stay float32."""
    lora_rank: Annotated[int, Range(0, note="no adapters")] = 0
    """Rank of the adapters of every matrix in every layer, for `trained=adapters`; 0: no adapters."""
    lora_alpha: Positive = 32.0
    """An adapter's product is multiplied by lora_alpha / lora_rank."""
    attention: Literal["auto", "einsum", "cudnn", "splash"] = "auto"
    """Implementation of attention; auto measures those that run on this machine and takes the fastest.
    Checkpoints do not depend on it."""
    remat: Literal["auto", "none", "dots", "block"] = "auto"
    """What the backward pass recomputes. none: nothing; dots: all but products with weights;
    block: all but each layer's input; auto: none, or block if `compute.update_gib` requires it.
    Checkpoints do not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}; "
            f"set model.kv_heads to a divisor of {self.heads}",
        )
        _require(
            self.head_size % 2 == 0,
            f"model.head_size must be even for RoPE, got {self.head_size}; set it to {self.head_size + 1}",
        )
        _require(
            self.rope_high_frequency > self.rope_low_frequency,
            f"model.rope_high_frequency must be above model.rope_low_frequency={self.rope_low_frequency}, got "
            f"{self.rope_high_frequency}; see the checkpoint's rope_scaling",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """Devices along each mesh axis. Users are split over data x fsdp, parameters over fsdp x tensor."""

    SECTION: ClassVar[str] = "mesh"

    data: Count = 1
    fsdp: Count = 1
    tensor: Count = 1

    @property
    def batch_shards(self) -> int:
        return self.data * self.fsdp

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """How work is divided to fit the machine. Results depend on it only by rounding."""

    SECTION: ClassVar[str] = "compute"

    update_gib: Positive | None = None
    """Memory for activations of an update on one device, which limits how many items are read at once.
    None: half of what the model, its optimizer and the gradients leave free; 4 if the device does not report its
    memory."""
    wave_tokens: Count = 16
    """Tokens decoded between two checks for finished rationales (docs/performance.md compares 16 and 32)."""
    data_workers: Annotated[int, Range(0)] = 0
    """Processes on each machine that prepare training batches; 0: a thread does. The batches are the same."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """AdamW with a linear warm-up and a cosine decay to zero."""

    SECTION: ClassVar[str] = "optimizer"

    learning_rate: Positive = 3e-3
    """Learning rate at the end of the warm-up, from where it decays."""
    warmup_steps: Annotated[int, Range(0)] = 20
    weight_decay: Weight = 0.0
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
    log_every: Count = 20
    validate_every: Count = 200
    checkpoint_every: Count = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_warmup(self, self.steps)


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
    """Remove from ∇V the direction that scales all scores together, which changes V but no ranking."""
    score_weight: Weight = 1.0
    """Weight of the score part."""
    token_weight: Weight = 0.5
    """Weight of the token part."""
    kl_weight: Weight = 0.02
    """Weight of KL(policy || SFT policy) per token, over the whole vocabulary."""
    entropy_weight: Weight = 0.0
    """Weight of the entropy bonus."""
    ratio: Literal["token", "sequence"] = "token"
    """PPO's probability ratio: one for each token, or one for the sequence (GSPO)."""
    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: Weight = 0.2
    max_importance_weight: Positive = 2.0
    """Upper bound on the ratio of a token's probability in the trainer to that in the rollout, by which its PPO term is
    multiplied."""
    log_every: Count = 10
    validate_every: Count = 100
    checkpoint_every: Count = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "reward", normal_objective("rl.reward", self.reward))
        if self.rationale_rewards.strip():
            rewards = normal_objective("rl.rationale_rewards", self.rationale_rewards)
            object.__setattr__(self, "rationale_rewards", rewards)
        updates = self.steps * self.updates
        _require(
            updates <= LARGEST_WHOLE,
            f"rl.steps x rl.updates must be at most {LARGEST_WHOLE}, got {self.steps} x {self.updates}; lower one",
        )
        _require_warmup(self, updates)
        _require(
            self.num_samples >= 2 or self.estimator in ("exact", "pl_rank"),
            f"rl.estimator={self.estimator} compares rankings with each other and needs rl.num_samples >= 2, got "
            f"{self.num_samples}; raise it, or set rl.estimator to exact",
        )
        _require(
            self.rationales >= 2 or self.credit not in ("counterfactual", "first_order"),
            f"rl.credit={self.credit} compares rationales of the same item and needs rl.rationales >= 2, "
            f"got {self.rationales}; raise rl.rationales, or set rl.credit to shared and rl.rationales to 1",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
    """How systems are compared on the held-out users."""

    SECTION: ClassVar[str] = "evaluation"

    ks: tuple[Count, ...] = (1, 5, 10)
    """Cutoffs k of the metrics."""
    bootstrap_samples: Count = 2000
    permutation_samples: Count = 20_000
    batch_users: Count = 64
    report_users: Annotated[int, Range(0)] = 8
    """Number of users that the report shows with candidates and rationales."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """One experiment."""

    name: Text
    """Name of the experiment, also of its default run directory."""
    seed: Annotated[int, Range(0, 2**32 - 2, note="SFT continued takes the next one")] = 0
    """Seed of the parameters, the batches and the sampling."""
    pretrained: Text | None = None
    """Folder that `r2rank model import` wrote: the policy starts from its weights and uses its tokenizer.
    None: random weights, and a tokenizer trained on the traces."""
    trained: Trained = "all"
    """What is trained: all parameters; adapters (of `model.lora_rank`) and the scoring head; or only the head."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            (self.trained == "adapters") == (self.model.lora_rank > 0),
            f"trained=adapters and model.lora_rank > 0 need each other, got trained={self.trained} and "
            f"model.lora_rank={self.model.lora_rank}; set model.lora_rank to 16, or trained to all and model.lora_rank "
            "to 0",
        )
        shards = self.mesh.batch_shards
        for phase in ("sft", "rl", "evaluation"):
            users = getattr(self, phase).batch_users
            lower, upper = users // shards * shards, -(-users // shards) * shards
            choices = " or ".join(str(n) for n in sorted({lower, upper}) if n > 0)
            _require(
                users % shards == 0,
                f"{phase}.batch_users={users} must be divisible by mesh.data x mesh.fsdp = {shards}; "
                f"set {phase}.batch_users to {choices}",
            )


def _require_warmup(phase: SFTConfig | RLConfig, updates: int) -> None:
    warmup, name = phase.optimizer.warmup_steps, phase.dotted("optimizer.warmup_steps")
    _require(
        warmup <= updates,
        f"{name} must be at most the number of updates, {updates}, got {warmup}; lower it, or raise "
        f"{phase.dotted('steps')}",
    )
