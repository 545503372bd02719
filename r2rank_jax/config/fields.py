"""All settings of a run, as frozen dataclasses that validate themselves.

A file in `configs/` returns one `RunConfig`; the command line overrides single fields (`--rl.credit shared`). The type
of a field states its range, see `config.checks`. The docstring below a field is its text in `--help`, which breaks
lines where the docstring does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from r2rank_jax.config.checks import Checked, Count, Positive, Range, Text, require
from r2rank_jax.config.training import RLConfig, SFTConfig

Trained = Literal["all", "adapters", "head"]


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
    length_buckets: Annotated[int, Range(1, 64)] = 1
    """Number of widths that training batches may be padded to. Above 1, lists of similar length share a batch. 1: all
    lists are padded to P, S and T. Every combination of widths is compiled as a separate program."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
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
    score_reads: Literal["words", "context"] = "context"
    """What the scoring head's hidden state has seen. words: the rationale alone, read once more from position 0, so
    that a score depends on its words only and equal rationales have equal scores. context: prefix and item as well."""
    critic: bool = False
    """Add a critic, a second head at each item's last token, before any reasoning. Rankings do not use it; see
    `train.advantages.critic`."""
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
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}; "
            f"set model.kv_heads to a divisor of {self.heads}",
        )
        require(
            self.head_size % 2 == 0,
            f"model.head_size must be even for RoPE, got {self.head_size}; set it to {self.head_size + 1}",
        )
        require(
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
    slices: Count = 1
    """Number of groups of devices that a slower network joins: TPU slices, or machines with GPUs. Only `data` crosses
    that network, so mesh.data must be a multiple. Results depend on it by rounding only. 1: one network joins all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lower, upper = self.data // self.slices * self.slices, -(-self.data // self.slices) * self.slices
        choices = " or ".join(str(n) for n in sorted({lower, upper}) if n > 0)
        require(
            self.data % self.slices == 0,
            f"mesh.data={self.data} must be a multiple of mesh.slices={self.slices}; set mesh.data to {choices} and "
            "divide the devices of a slice between mesh.fsdp and mesh.tensor",
        )

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
    data_workers: Annotated[int, Range(0, 1024)] = 0
    """Processes on each machine that prepare training batches; 0: a thread does. The batches are the same."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
    """How systems are compared on the held-out users."""

    SECTION: ClassVar[str] = "evaluation"

    ks: tuple[Count, ...] = (1, 5, 10)
    """Cutoffs k of the metrics."""
    bootstrap_samples: Count = 2000
    permutation_samples: Count = 20_000
    batch_users: Count = 64
    rationales: Count = 1
    """G, number of rationales whose mean score ranks an item, in validation, `eval` and `rank`. 1: the greedy one.
    More: sampled; more work, and a better ranking where the words carry it."""
    temperature: Annotated[float, Range(0.001, 1000)] | None = None
    """Temperature at which those rationales are sampled; None: rl.temperature. A higher one makes each of them worse,
    but not always their mean (docs/measurements.md)."""
    validation_users: Annotated[int, Range(0, note="0: all")] = 0
    """Number of users on whose lists training validates, the same for every seed of the run; 0: all."""
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
        require(
            (self.trained == "adapters") == (self.model.lora_rank > 0),
            f"trained=adapters and model.lora_rank > 0 need each other, got trained={self.trained} and "
            f"model.lora_rank={self.model.lora_rank}; set model.lora_rank to 16, or trained to all and model.lora_rank "
            "to 0",
        )
        require(
            self.model.score_reads == "context" or self.data.rationale_tokens > 0,
            "model.score_reads=words scores the words of a rationale and needs data.rationale_tokens > 0, got "
            f"{self.data.rationale_tokens}; raise it, or set model.score_reads to context",
        )
        require(
            self.model.critic or not self.sft.critic_users,
            f"sft.critic_users={self.sft.critic_users} trains a critic and needs model.critic, got "
            "model.critic=False; set it, or sft.critic_users to 0",
        )
        require(
            not self.rl.critic_share or (self.model.critic and self.data.rationale_tokens > 0),
            "rl.critic_share lets a critic judge rationales and needs model.critic and data.rationale_tokens > 0, got "
            f"model.critic={self.model.critic} and data.rationale_tokens={self.data.rationale_tokens}; set them, or "
            "rl.critic_share to 0",
        )
        shards = self.mesh.batch_shards
        require(
            not self.rl.gradients_every or self.rl.batch_users % (2 * shards) == 0,
            f"rl.gradients_every halves batches, so rl.batch_users must be divisible by 2 x mesh.data x mesh.fsdp = "
            f"{2 * shards}, got {self.rl.batch_users}; change it, or set rl.gradients_every to 0",
        )
        for wanted in ("sft.batch_users", "rl.batch_users", "evaluation.batch_users", "sft.critic_users"):
            phase, name = wanted.split(".")
            users = getattr(getattr(self, phase), name)
            lower, upper = users // shards * shards, -(-users // shards) * shards
            choices = " or ".join(str(n) for n in sorted({lower, upper}) if n > 0)
            require(
                users % shards == 0,
                f"{wanted}={users} must be divisible by mesh.data x mesh.fsdp = {shards}; set {wanted} to {choices}",
            )

    def require_critic_lists(self) -> None:
        """Refuse SFT that would leave the model's critic untrained. SFT continued may: its critic has been trained.

        Raises:
            ConfigError: the model has a critic, and SFT no lists for it.
        """
        require(
            not self.model.critic or self.sft.critic_users > 0,
            "model.critic is trained by sft and needs sft.critic_users of at least 1, got 0; set it, or model.critic "
            "to false",
        )
