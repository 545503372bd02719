"""The README.md of an exported model: what it is, how it was trained, its results, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from r2rank_jax.config import ModelConfig, RunConfig, to_json
from r2rank_jax.data.prompts.frame import Frame
from r2rank_jax.evaluation.table import results_table
from r2rank_jax.model.hf_config import Form
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.pretrained.folder import ModelOrigin
from r2rank_jax.pretrained.tokenizer_files import SpecialIds

ExportForm = Literal[Form, "adapters"]
"""A whole model of either form, or only the adapters to apply to its base model."""

# Models that were imported before frames were kept. Their template does not read the clock.
_RENDERED = """before, after = tokenizer.apply_chat_template(
    [{"role": "user", "content": "⟪⟫"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
).split("⟪⟫")
"""
_USE: dict[ExportForm, str] = {
    "causal-lm": """{frame}parts = ({parts})
prompt = [i for part in parts for i in tokenizer(part, add_special_tokens=False).input_ids]
ends = dict(eos_token_id={stop}, pad_token_id={pad})
output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens={tokens}, **ends)
rationale = tokenizer.decode(output[0, len(prompt):], skip_special_tokens=True)""",
    "scorer": """{frame}parts = ({parts}, rationale)
ids = [i for part in parts for i in tokenizer(part, add_special_tokens=False).input_ids] + [{stop}]
score = model(torch.tensor([ids])).logits[0, 0]""",
}
# Of a head that reads the words alone.
_WORDS_SCORER = """ids = tokenizer(rationale, add_special_tokens=False).input_ids + [{stop}]
score = model(torch.tensor([ids])).logits[0, 0]"""
_USE["adapters"] = f"model = peft.PeftModel.from_pretrained(base_model, folder)\n{_USE['causal-lm']}"


@dataclass(frozen=True)
class Training:
    """How a policy was trained."""

    config: RunConfig
    record: PhaseRecord
    """Metadata stored with the checkpoint."""
    identity: str
    """Identity of the checkpoint."""
    results: Mapping[str, Any] | None
    """Content of `results.json`; None if there is none."""


def model_page(
    *,
    name: str,
    config: ModelConfig,
    form: ExportForm,
    ids: SpecialIds,
    base: ModelOrigin | None,
    training: Training | None,
    frame: Frame | None,
    rounding: str,
) -> str:
    """The page as Markdown, with the YAML header that the hub reads.

    Args:
        name: name of the model.
        config: configuration of the model.
        form: form of the export.
        ids: ids of the special tokens.
        base: the imported model, or the one that training started from.
        training: how the model was trained; None if it was only imported.
        frame: text around every prompt, which opens the prefix and closes the item. None: what the tokenizer's chat
            template renders.
        rounding: what the type of the stored weights changes.
    """
    about = "scores one candidate's rationale" if form == "scorer" else "writes a rationale for one candidate item"
    parts = [
        _head(form, base),
        f"# {name}\n",
        f"A language model that {about}, trained with r2rank_jax (Reasoning to Rank, after arXiv 2602.12530).\n"
        if training
        else "A pretrained model that r2rank_jax imported and exported without training it.\n",
        _facts(config, base, training, rounding),
        _words_usage(ids) if form == "scorer" and config.score_reads == "words" else _usage(form, ids, training, frame),
    ]
    if training is not None:
        if training.results is not None:
            parts.append(f"## Results\n\n```\n{results_table(training.results)}\n```\n")
        parts.append(f"## Configuration\n\n```json\n{json.dumps(to_json(training.config), indent=2)}\n```\n")
    else:
        parts.append(f"## Configuration\n\n```json\n{json.dumps(asdict(config), indent=2)}\n```\n")
    return "\n".join(parts)


def _head(form: ExportForm, base: ModelOrigin | None) -> str:
    lines = [f"library_name: {'peft' if form == 'adapters' else 'transformers'}"]
    lines.append(f"pipeline_tag: {'text-classification' if form == 'scorer' else 'text-generation'}")
    lines.append("tags: [recommendation, reranking]")
    if base is not None and base.licence:
        lines.append(f"license: {base.licence}")
    if base is not None and base.hub_id:
        lines.append(f"base_model: {base.hub_id}")
    return "\n".join(["---", *lines, "---\n"])


def _facts(config: ModelConfig, base: ModelOrigin | None, training: Training | None, rounding: str) -> str:
    rows = [("layers, width, vocabulary", f"{config.layers}, {config.width}, {config.vocabulary}")]
    rows.append(("stored type", rounding))
    if base is not None:
        rows.append(("base model", f"{base.hub_id or base.architecture}, weights with SHA-256 {base.sha256}"))
        rows.append(("license of the base model", base.licence or "unknown; see the source of the model"))
    if training is not None:
        results = training.results or {}
        missing = "not recorded: `r2rank eval` had not been run"
        done, best = training.record.done, training.record.best
        steps = f"{done} steps" if best is None else f"step {best.step} of {done}, whose validation was the best"
        rows.append(("phase", f"{training.record.phase}, {steps}"))
        rows.append(("checkpoint", training.identity))
        rows.append(("training data, SHA-256 of the interactions", results.get("data_hash", missing)))
        if training.record.traces is not None:
            rows.append(("traces (the teacher's rationales), SHA-256", training.record.traces))
        rows.append(("commit of the code", results.get("commit", missing)))
    return "\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""])


def _words_usage(ids: SpecialIds) -> str:
    return (
        "## Use\n\nThe score is of the rationale alone: the model reads neither the user's history nor the candidate. "
        "A rationale ends\nwith the stop token. An item's rank follows from the mean score of its rationales.\n\n"
        f"```python\n{_WORDS_SCORER.format(stop=ids.stop)}\n```\n"
    )


def _usage(form: ExportForm, ids: SpecialIds, training: Training | None, frame: Frame | None) -> str:
    tokens = training.config.data.rationale_tokens if training else 128
    chat = frame != Frame()
    parts = "before, prefix, item, after" if chat else "prefix, item"
    kept = "" if frame is None or not chat else f"before, after = {frame.before!r}, {frame.after!r}\n"
    texts = _RENDERED if frame is None else kept
    code = _USE[form].format(stop=ids.stop, pad=ids.pad, tokens=tokens, parts=parts, frame=texts)
    framed = " The frame of the chat template is put around prefix and item." if chat else ""
    return (
        "## Use\n\nThe user's history, the candidate and the rationale (see `r2rank_jax.data.prompts` for their text) "
        "are tokenized separately,\nwithout special tokens, and concatenated. A rationale ends with the stop token."
        f"{framed}\n\n```python\n{code}\n```\n"
    )
