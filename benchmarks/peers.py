"""Other implementations that the benchmarks compare with: `transformers.generate`, an update in torch, and TRL.

They read a user's prompts as independent rows: prompts [rows, P + S], completions of exactly T tokens. Weights are
copied from ours. This module can be imported without torch and TRL; `peers_available` reports why a peer cannot be
measured. The number of torch's threads is not changed; call `torch.set_num_threads` to do so.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import huggingface_hub
import jax
import numpy as np
import transformers

from r2rank_jax.config import ModelConfig
from r2rank_jax.types import Params

if TYPE_CHECKING:
    import torch

ROWS = 10
"""Rows that an update reads at once. Of 1 to 80 rows, 10 to 20 were fastest on 2 cores; 80 take 1.1 to 1.4 times as
long (most with glibc's default malloc, which returns large buffers and faults them in again). On an accelerator, many
rows do not fit if the vocabulary is large."""


def peers_available(peer: Literal["torch", "trl"] = "torch") -> str | None:
    """The reason why a peer cannot be measured on this machine, or None if it can. TRL also needs torch."""
    try:
        import torch  # noqa: F401

        if peer == "trl":
            from trl import GRPOConfig, GRPOTrainer  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a lazy module whose import failed
        return f"{peer} cannot be imported: {error}"
    return None


def to_torch(
    config: ModelConfig, params: Params, dtype: Literal["float32", "bfloat16"], device: str
) -> transformers.Qwen2ForCausalLM:
    """Our weights as a Qwen2 of `transformers`, with torch's fused attention.

    Args:
        config: of the Qwen2 family: `attention_bias` without `qk_norm`.
        params: unboxed; the scoring head has no counterpart and is dropped.
        dtype: of the weights and of the computation.
        device: "cpu" or "cuda".

    Returns:
        A model without an end-of-sequence token, so that nothing stops early.
    """
    import torch

    model: Any = transformers.Qwen2ForCausalLM(_settings(config))
    model.load_state_dict({name: torch.tensor(weight) for name, weight in _state(config, params).items()})
    return model.to(device=device, dtype=getattr(torch, dtype)).eval()


def random_torch(
    config: ModelConfig, dtype: Literal["float32", "bfloat16"], device: str
) -> transformers.Qwen2ForCausalLM:
    """As `to_torch`, with random weights created on the device."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return transformers.Qwen2ForCausalLM(_settings(config)).eval()
    finally:
        torch.set_default_dtype(before)


def _settings(config: ModelConfig) -> Any:
    """The configuration of a Qwen2 with this shape."""
    if config.qk_norm or not config.attention_bias:
        raise ValueError("Qwen2 needs attention_bias=True and qk_norm=False")
    family: Any = transformers.Qwen2Config
    return family(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tied_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def _state(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names, each [out, in] as in `torch.nn.Linear`."""
    state = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params.get("lm_head", params["embedding"]),
    }
    for layer in range(config.layers):
        weights = jax.tree.map(lambda x: x[layer], params["layers"])  # noqa: B023
        prefix, attention = f"model.layers.{layer}.", weights["attention"]
        for x in ("q", "k", "v"):
            state[f"{prefix}self_attn.{x}_proj.weight"] = attention[x].reshape(config.width, -1).T
            state[f"{prefix}self_attn.{x}_proj.bias"] = attention[f"{x}_bias"].reshape(-1)
        state[f"{prefix}self_attn.o_proj.weight"] = attention["o"].reshape(-1, config.width).T
        state[f"{prefix}input_layernorm.weight"] = weights["attention_norm"]["scale"]
        state[f"{prefix}post_attention_layernorm.weight"] = weights["mlp_norm"]["scale"]
        for x in ("gate", "up", "down"):
            state[f"{prefix}mlp.{x}_proj.weight"] = weights["mlp"][x].T
    return {name: np.asarray(weight) for name, weight in state.items()}


def generate_seconds(
    model: transformers.Qwen2ForCausalLM, prompts: np.ndarray, new_tokens: int, rounds: int
) -> list[float]:
    """`model.generate` for all rows in one batch, sampled at temperature 1 with a key-value cache.

    Args:
        model: from `to_torch`.
        prompts: int [rows, P + S].
        new_tokens: T, for every row.
        rounds: number of timed calls, after one untimed call.

    Returns:
        Wall seconds of each timed call.
    """
    import torch

    untyped: Any = model  # type checkers do not understand the decorators of `generate`
    tokens = torch.tensor(prompts, dtype=torch.long, device=model.device)

    def call() -> None:
        out = untyped.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            use_cache=True,
        )
        assert out.shape == (len(prompts), prompts.shape[1] + new_tokens)

    return _timed(call, rounds, tokens.device)


def update_seconds(
    model: transformers.Qwen2ForCausalLM,
    tokens: np.ndarray,
    new_tokens: int,
    advantages: np.ndarray,
    rounds: int,
) -> tuple[list[float], int | None]:
    """One policy-gradient update: loss -mean(advantage · Σ log π), backward, fused AdamW. It changes the weights.

    Logits are computed only at positions that predict completions, and the backward pass recomputes nothing. Gradients
    are accumulated over groups of `ROWS` rows.

    Args:
        model: from `to_torch`; weights, gradients and optimizer state have its dtype.
        tokens: int [rows, P + S + T], prompts and completions.
        new_tokens: T.
        advantages: float [rows].
        rounds: number of timed updates, after one untimed update.

    Returns:
        Wall seconds of each timed update, and torch's peak memory in bytes, weights included; None on a CPU, where
        torch does not report it.
    """
    import torch

    device = model.device
    all_rows = torch.tensor(tokens, dtype=torch.long, device=device)
    weights = torch.tensor(advantages, dtype=torch.float32, device=device) / len(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def call() -> None:
        for rows, weight in zip(all_rows.split(ROWS), weights.split(ROWS)):
            hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state[:, -new_tokens:]
            logp = torch.log_softmax(model.lm_head(hidden).float(), dim=-1)
            completion_logp = logp.gather(-1, rows[:, -new_tokens:, None]).sum((1, 2))
            (-(weight * completion_logp).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _timed(call, rounds, device)
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _timed(call: Callable[[], None], rounds: int, device: torch.device) -> list[float]:
    """Wall seconds of each call, without the first."""
    import torch

    seconds = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def trl_step_seconds(
    model: transformers.Qwen2ForCausalLM,
    prompts: np.ndarray,
    generations: int,
    new_tokens: int,
    steps: int,
    rows_at_once: int | None = None,
) -> list[float]:
    """Steps of TRL's `GRPOTrainer`: rollout, reference model (beta > 0) and update, for items · generations rows.

    Rewards are random numbers, the rollout is one batch of `model.generate`, and completions never end early. Gradient
    checkpointing, which is on by default in TRL, is off, because it is slower and the rows fit. Without Triton, as on a
    CPU, TRL 1.16 also computes the logits of the prompts. Computing only those of the completions, as on a GPU, would
    save about 15% on the reference shape.

    Args:
        model: from `to_torch`; TRL reads a copy from a temporary folder and does not change it.
        prompts: int [items, P + S], each with several completions.
        generations: completions per prompt, at least 2.
        new_tokens: T.
        steps: number of timed steps, after one untimed step.
        rows_at_once: rows of a minibatch in gradient accumulation; must divide items · generations. None: all.

    Returns:
        Wall seconds of each timed step.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = len(prompts) * generations
    rows_at_once = rows_at_once or rows
    assert rows % rows_at_once == 0, (rows, rows_at_once)
    tokenizer = _tokenizer(model.config.vocab_size)
    texts = [" ".join(f"t{token}" for token in row) for row in prompts]
    assert tokenizer(texts)["input_ids"] == prompts.tolist()
    rng = np.random.default_rng(0)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [new_tokens] * rows
        return rng.normal(size=rows).tolist()

    clock = _step_clock(model.device)
    with tempfile.TemporaryDirectory() as folder, _quiet_and_offline():
        model.save_pretrained(folder)
        trainer = GRPOTrainer(
            model=folder,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=1 + steps,
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=rows // rows_at_once,
                num_generations=generations,
                max_completion_length=new_tokens,
                generation_kwargs={"min_new_tokens": new_tokens},
                temperature=1.0,
                beta=0.02,
                use_vllm=False,
                gradient_checkpointing=False,
                model_init_kwargs={"dtype": model.dtype, "attn_implementation": "sdpa"},
                bf16=False,
                use_cpu=model.device.type == "cpu",
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.seconds[1:]


def _tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that maps token i to the word "t<i>". TRL needs an end-of-sequence token, which is token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t0", pad_token="t0", padding_side="left"
    )


def _step_clock(device: torch.device) -> Any:
    """A trainer callback that records the seconds of each step. Its class can only be defined with torch."""
    import torch

    class StepClock(transformers.TrainerCallback):
        seconds: list[float]

        def __init__(self) -> None:
            self.seconds = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds.append(time.perf_counter() - self.start)

    return StepClock()


@contextlib.contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Use Hugging Face libraries without warnings, progress bars, downloads and telemetry."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
