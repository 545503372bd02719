"""The outside peers of the benchmarks, on one exact shape: `transformers.generate`, an update in torch, and TRL.

They read a user's prompts as what they are to them, independent rows: prompts [rows, P + S], completions of exactly T
tokens. Weights are ours, copied. Neither torch nor TRL is needed to import this module; `peers_available` says why a
peer cannot be measured. Torch's threads are left as they are: call `torch.set_num_threads`.
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
"""Rows that an update reads at once: 10 to 20 were fastest of 1 to 80 on 2 cores, 80 take 1.1 to 1.4 times as long (the
more with glibc's default malloc, which hands large buffers back and faults them in again). On an accelerator more than
some do not fit where the vocabulary is large."""


def peers_available(peer: Literal["torch", "trl"] = "torch") -> str | None:
    """Why a peer cannot be measured here, or None where it can. TRL needs torch, too."""
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
    """Our weights as a Qwen2 of `transformers`, with torch's own fused attention.

    Args:
        config: of the Qwen2 family: `attention_bias` without `qk_norm`.
        params: unboxed; the scoring head has no counterpart and is left out.
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
    """As `to_torch`, with random weights made on the device."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return transformers.Qwen2ForCausalLM(_settings(config)).eval()
    finally:
        torch.set_default_dtype(before)


def _settings(config: ModelConfig) -> Any:
    """The configuration of a Qwen2 of this shape."""
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
    """Our parameters under Hugging Face's names, each [out, in] as `torch.nn.Linear` keeps it."""
    state = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params.get("lm_head", params["embedding"]),
    }
    for layer in range(config.layers):
        weights = jax.tree.map(lambda x: x[layer], params["layers"])  # noqa: B023
        at, attention = f"model.layers.{layer}.", weights["attention"]
        for x in ("q", "k", "v"):
            state[f"{at}self_attn.{x}_proj.weight"] = attention[x].reshape(config.width, -1).T
            state[f"{at}self_attn.{x}_proj.bias"] = attention[f"{x}_bias"].reshape(-1)
        state[f"{at}self_attn.o_proj.weight"] = attention["o"].reshape(-1, config.width).T
        state[f"{at}input_layernorm.weight"] = weights["attention_norm"]["scale"]
        state[f"{at}post_attention_layernorm.weight"] = weights["mlp_norm"]["scale"]
        for x in ("gate", "up", "down"):
            state[f"{at}mlp.{x}_proj.weight"] = weights["mlp"][x].T
    return {name: np.asarray(weight) for name, weight in state.items()}


def generate_seconds(
    model: transformers.Qwen2ForCausalLM, prompts: np.ndarray, new_tokens: int, rounds: int
) -> list[float]:
    """`model.generate` for all rows in one batch, sampled at temperature 1 with a key-value cache.

    Args:
        model: from `to_torch`.
        prompts: int [rows, P + S].
        new_tokens: T, for every row.
        rounds: timed calls, after one that is not.

    Returns:
        Wall seconds of each timed call.
    """
    import torch

    untyped: Any = model  # `generate` is decorated in ways that type checkers do not follow
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
    """One policy-gradient update: loss -mean(advantage · Σ log π), backward, fused AdamW; it moves the weights.

    Logits are computed where completions are predicted only, and nothing is recomputed in the backward pass. The
    gradients of `ROWS` rows at a time are added up.

    Args:
        model: from `to_torch`; weights, gradients and optimizer state have its dtype.
        tokens: int [rows, P + S + T], prompts and completions.
        new_tokens: T.
        advantages: float [rows].
        rounds: timed updates, after one that is not.

    Returns:
        Wall seconds of each timed update, and the most bytes that torch held meanwhile, weights included; None on a
        CPU, where torch does not count them.
    """
    import torch

    device = model.device
    read = torch.tensor(tokens, dtype=torch.long, device=device)
    weights = torch.tensor(advantages, dtype=torch.float32, device=device) / len(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def call() -> None:
        for rows, weight in zip(read.split(ROWS), weights.split(ROWS)):
            hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state[:, -new_tokens:]
            logp = torch.log_softmax(model.lm_head(hidden).float(), dim=-1)
            said = logp.gather(-1, rows[:, -new_tokens:, None]).sum((1, 2))
            (-(weight * said).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _timed(call, rounds, device)
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _timed(call: Callable[[], None], rounds: int, device: torch.device) -> list[float]:
    """Wall seconds of each call but the first."""
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

    The rewards are random numbers, the rollout is one batch of `model.generate`, and completions never end early.
    Gradient checkpointing, which TRL has on by default, is off: it is slower and the rows fit. Where TRL 1.16 has no
    Triton, as on a CPU, it computes the logits of the prompts, too; computing those of the completions only, as it does
    on a GPU, would save it about 15% on the reference shape.

    Args:
        model: from `to_torch`; TRL reads it from a temporary folder and leaves it as it is.
        prompts: int [items, P + S], each asked for several completions.
        generations: completions per prompt, at least 2.
        new_tokens: T.
        steps: timed steps, after one that is not.
        rows_at_once: rows of a minibatch, whose gradients are added up; must divide items · generations. None: all.

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
    """Reads and writes token i as the word "t<i>"; TRL wants an end-of-sequence token, which becomes number 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t0", pad_token="t0", padding_side="left"
    )


def _step_clock(device: torch.device) -> Any:
    """A callback with the seconds of each step of a trainer. Its class needs torch to exist."""
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
    """Hugging Face libraries without warnings, progress bars, downloads and telemetry."""
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
