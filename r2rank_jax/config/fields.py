"""All settings of a run, as frozen dataclasses that validate themselves.

A file in `configs/` returns one `RunConfig`; the command line overrides single fields (`--rl.credit shared`). The
docstring below a field is its text in `--help`, which breaks lines where the docstring does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r2rank_jax.errors import ConfigError

Trained = Literal["all", "adapters", "head"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data, and the number of tokens for each part of a prompt."""

    directory: str = "data/ml-100k"
    """Folder that `r2rank data prepare` wrote."""
    traces: str = "data/ml-100k/traces.jsonl"
    """File of worked rationales that `r2rank data synthesize` wrote; only SFT reads it."""
    template: Literal["films-1", "films-2", "products-1", "games-1", "books-1", "places-1"] = "films-1"
    """Wording of the prompts, by domain and version; see docs/prompts.md. All but films-1 include times."""
    split: Literal["leave_one_out", "global_time", "last_n", "cold_users"] = "leave_one_out"
    """Protocol of the held-out lists; must be one that the folder was prepared with."""
    history_items: int = 10
    """Number of latest interactions in the prefix, whatever their rating."""
    candidate_items: int = 20
    """N, items of a list that RL draws for training: `train_positives` positives, the rest negatives. The size of
    held-out lists is set by `r2rank data prepare --candidates`."""
    train_positives: int = 1
    """Positives of RL's training lists: the user's next items, or fewer if the training period ends sooner.
    More positives give more signal per rationale. For traces, see `r2rank data synthesize --positives`."""
    min_history: int = 5
    """Number of interactions that a user must have before their first training list."""
    prefix_tokens: int = 72
    """P, longest prefix (instructions and history)."""
    suffix_tokens: int = 16
    """S, longest item suffix."""
    rationale_tokens: int = 18
    """T, longest rationale with its stop token. 0 turns reasoning off: the head reads each item's last token."""
    length_buckets: int = 1
    """Number of widths that training batches may be padded to. Above 1, lists of similar length share a batch. 1: all
    lists are padded to P, S and T. Every combination of widths is compiled as a separate program."""

    def __post_init__(self) -> None:
        for name in ("history_items", "min_history", "prefix_tokens", "suffix_tokens", "length_buckets"):
            value = getattr(self, name)
            _require(value >= 1, f"data.{name} must be at least 1, got {value}")
        _require(
            self.rationale_tokens >= 0,
            f"data.rationale_tokens must be at least 0 (no reasoning), got {self.rationale_tokens}",
        )
        _require(
            self.candidate_items >= 2,
            f"data.candidate_items must be at least 2 (something to rank), got {self.candidate_items}",
        )
        _require(
            1 <= self.train_positives < self.candidate_items,
            f"data.train_positives must leave at least one of data.candidate_items={self.candidate_items} as a "
            f"negative, got {self.train_positives}; set it to 1 .. {self.candidate_items - 1}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of the Qwen2, Qwen3 or Llama family. The families differ only in these fields."""

    vocabulary: int = 1536
    """Number of token ids."""
    width: int = 96
    """Size of the hidden states."""
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 24
    mlp_width: int = 256
    qk_norm: bool = False
    """Apply RMSNorm to each query and key head before RoPE (Qwen3)."""
    attention_bias: bool = False
    """Add biases to the query, key and value projections (Qwen2)."""
    tied_embeddings: bool = True
    """Use the embedding as the output layer."""
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    """Factor by which the context was extended after pre-training (Llama 3.1's rule); 1 changes nothing."""
    rope_low_frequency: float = 1.0
    """Wavelengths that fit into the original context fewer times than this are multiplied by `rope_factor`."""
    rope_high_frequency: float = 4.0
    """Wavelengths that fit into it more often than this are unchanged."""
    rope_original_positions: int = 8192
    """Length of the original context."""
    norm_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, softmax, norms and losses stay float32."""
    lora_rank: int = 0
    """Rank of the adapters of every matrix in every layer, for `trained=adapters`; 0: no adapters."""
    lora_alpha: float = 32.0
    """An adapter's product is multiplied by lora_alpha / lora_rank."""
    attention: Literal["auto", "einsum", "cudnn", "splash"] = "auto"
    """Implementation of attention; auto measures those that run on this machine and takes the fastest.
    Checkpoints do not depend on it."""
    remat: Literal["auto", "none", "dots", "block"] = "auto"
    """What the backward pass recomputes. none: nothing; dots: all but products with weights;
    block: all but each layer's input; auto: none, or block if `compute.update_gib` requires it.
    Checkpoints do not depend on it."""

    def __post_init__(self) -> None:
        _require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}; "
            f"set model.kv_heads to a divisor of {self.heads}",
        )
        _require(
            self.head_size % 2 == 0,
            f"model.head_size must be even for RoPE, got {self.head_size}; set it to {self.head_size + 1}",
        )
        _require(self.lora_rank >= 0, f"model.lora_rank must be at least 0 (no adapters), got {self.lora_rank}")
        _require(
            self.rope_factor >= 1 and self.rope_high_frequency > self.rope_low_frequency,
            f"model.rope_factor must be at least 1 and rope_high_frequency above rope_low_frequency, got "
            f"{self.rope_factor}, {self.rope_high_frequency} and {self.rope_low_frequency}; see the checkpoint's "
            f"rope_scaling",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis. Users are split over data x fsdp, parameters over fsdp x tensor."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            _require(getattr(self, name) >= 1, f"mesh.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def batch_shards(self) -> int:
        return self.data * self.fsdp

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How work is divided to fit the machine. Results depend on it only by rounding."""

    update_gib: float | None = None
    """Memory for activations of an update on one device, which limits how many items are read at once.
    None: half of what the model, its optimizer and the gradients leave free; 4 if the device does not report its
    memory."""
    wave_tokens: int = 16
    """Tokens decoded between two checks for finished rationales (docs/performance.md compares 16 and 32)."""
    data_workers: int = 0
    """Processes on each machine that prepare training batches; 0: a thread does. The batches are the same."""

    def __post_init__(self) -> None:
        _require(
            self.update_gib is None or self.update_gib > 0,
            f"compute.update_gib must be positive, got {self.update_gib}; omit it to use half of the free memory",
        )
        _require(self.wave_tokens >= 1, f"compute.wave_tokens must be at least 1, got {self.wave_tokens}")
        _require(self.data_workers >= 0, f"compute.data_workers must be at least 0, got {self.data_workers}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to zero."""

    learning_rate: float = 3e-3
    """Learning rate at the end of the warm-up, from where it decays."""
    warmup_steps: int = 20
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down."""
    beta2: float = 0.99
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment; the second, a mean of squares, stays float32."""
    ema_decay: float = 0.0
    """Decay of the parameter average, which is evaluated and starts the next phase. 0: no average."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        _require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on worked rationales."""

    steps: int = 1000
    batch_users: int = 16
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    head_weight: float = 0.5
    """Weight of the head's loss; the cross-entropy of the rationale has weight 1."""
    head_loss: str = "list_net"
    """Loss of the scores of a list: one of `ranking.losses`, or module:function with the same arguments."""
    log_every: int = 20
    validate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        _require_loop(self, "sft")


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Reinforcement learning from the reward of rankings; docs/method.md explains the score part and the token part."""

    steps: int = 400
    batch_users: int = 8
    rationales: int = 2
    """G, number of rationales sampled per item."""
    updates: int = 1
    """Optimizer updates per rollout. PPO's ratio and its clipping have an effect from the second update on."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-4, ema_decay=0.98, clip_norm=1.0)
    )
    temperature: float = 0.6
    """Temperature of the sampled tokens; the trainer scores the same tempered distribution."""
    reward: str = "ndcg@10"
    """Reward of a ranking: ndcg@10, mrr, 0.5*ndcg@10+0.5*recall@10 or module:function; docs/ranking.md lists all.
    Evaluation measures it too."""
    rationale_rewards: str = ""
    """Rewards of the rationales, in units of `reward`: 0.1*cut_off+0.02*too_long@12 or 0.1*module:function.
    Empty: none. See `train.rationale_rewards`."""
    estimator: Literal["reinforce", "reward_to_go", "pl_rank", "exact"] = "exact"
    """Estimator of the score part, the gradient of V(s)."""
    num_samples: int = 16
    """M, number of rankings that the sampling estimators draw per list."""
    credit: Literal["shared", "counterfactual", "first_order", "leave_item_out", "swap"] = "counterfactual"
    """Rule that turns the reward of a list into the advantages of its rationales; see `ranking.credit`."""
    joint: bool = True
    """Let the score part train the backbone too, through the hidden state that the head reads."""
    fixed_scale: bool = True
    """Remove from ∇V the direction that scales all scores together, which changes V but no ranking."""
    score_weight: float = 1.0
    """Weight of the score part."""
    token_weight: float = 0.5
    """Weight of the token part."""
    kl_weight: float = 0.02
    """Weight of KL(policy || SFT policy) per token, over the whole vocabulary."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus."""
    ratio: Literal["token", "sequence"] = "token"
    """PPO's probability ratio: one for each token, or one for the sequence (GSPO)."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    max_importance_weight: float = 2.0
    """Upper bound on the ratio of a token's probability in the trainer to that in the rollout, by which its PPO term is
    multiplied."""
    log_every: int = 10
    validate_every: int = 100
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        _require_loop(self, "rl")
        _require(self.updates >= 1, f"rl.updates must be at least 1, got {self.updates}")
        _require(self.temperature > 0, f"rl.temperature must be positive, got {self.temperature}")
        _require(
            self.rationales >= 2 or (self.rationales == 1 and self.credit not in ("counterfactual", "first_order")),
            f"rl.credit={self.credit} compares rationales of the same item and needs rl.rationales >= 2, "
            f"got {self.rationales}; raise rl.rationales, or set rl.credit to shared and rl.rationales to 1",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How systems are compared on the held-out users."""

    ks: tuple[int, ...] = (1, 5, 10)
    """Cutoffs k of the metrics."""
    bootstrap_samples: int = 2000
    permutation_samples: int = 20_000
    batch_users: int = 64
    report_users: int = 8
    """Number of users that the report shows with candidates and rationales."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment."""

    name: str
    """Name of the experiment, also of its default run directory."""
    seed: int = 0
    """Seed of the parameters, the batches and the sampling."""
    pretrained: str | None = None
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


def _require_loop(phase: SFTConfig | RLConfig, name: str) -> None:
    for key in ("steps", "batch_users", "log_every", "validate_every", "checkpoint_every"):
        _require(getattr(phase, key) >= 1, f"{name}.{key} must be at least 1, got {getattr(phase, key)}")
