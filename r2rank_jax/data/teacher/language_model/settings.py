"""Settings of a language model as teacher; every field is a flag of `r2rank data synthesize`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r2rank_jax.errors import DataError

OWN_FIELDS = ("model", "messages", "stream", "stream_options", "n")  # of a body; --extra must not set them
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A language model as teacher."""

    model: str
    """The model's name at the endpoint."""
    show_label: Literal["never", "retry", "always"] = "retry"
    """When the prompt tells the teacher what the user did; "retry": only after a first answer was refused."""
    draws: int = 3
    """Answers to ask for per candidate before its list is dropped."""
    temperature: float = 0.6
    max_tokens: int = 4096
    """Limit of one answer, including its thinking."""
    extra: str = "{}"
    """JSON object merged into the request's body; null removes a field."""
    rationale_words: int = 120
    """Length that the prompt asks for; also the limit for rationales if no tokenizer is given."""
    tokenizer: Path | None = None
    """The student's tokenizer.json, which counts the tokens for rationale_tokens."""
    rationale_tokens: int | None = None
    """The student's data.rationale_tokens; longer rationales are refused."""

    concurrency: int = 16
    """Number of concurrent requests."""
    stream: bool = False
    """Receive answers as server-sent events."""
    timeout_s: float = 600.0
    """Time limit of one request."""
    stall_s: float = 120.0
    """Longest pause within a stream."""
    attempts: int = 6
    """Attempts per request before it is left for the next run."""
    backoff_s: float = 1.0
    """Longest wait before the first retry; doubles with each retry, with full jitter, up to a minute."""

    budget_tokens: int | None = None
    """Limit on the tokens, prompts included, of all requests in the journal."""
    budget_usd: float | None = None
    """Limit on their cost in US dollars; needs both prices."""
    prompt_usd: float | None = None
    """Price of a million prompt tokens in US dollars."""
    completion_usd: float | None = None
    """Price of a million completion tokens in US dollars."""

    journal: Path | None = None
    """File that records every request and answer; by default the output file's name with the ending .journal.jsonl."""
    batch_out: Path | None = None
    """Write the open requests to this file, in the input format of OpenAI's batches and `vllm run-batch`; send none."""
    batch_in: Path | None = None
    """First read the answers of such a batch into the journal."""

    def __post_init__(self) -> None:
        _require(bool(self.model.strip()), "--model must name the teacher's model", repr(self.model))
        for name in ("draws", "max_tokens", "rationale_words", "concurrency", "attempts"):
            _require(getattr(self, name) >= 1, f"--{_flag(name)} must be at least 1", getattr(self, name))
        for name in ("timeout_s", "stall_s", "backoff_s"):
            _require(getattr(self, name) > 0, f"--{_flag(name)} must be positive", getattr(self, name))
        for name in ("budget_tokens", "budget_usd", "prompt_usd", "completion_usd", "temperature"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"--{_flag(name)} must not be negative", value)
        priced = self.prompt_usd is not None and self.completion_usd is not None
        _require(
            self.budget_usd is None or priced,
            "--budget-usd needs --prompt-usd and --completion-usd, prices per million tokens",
            f"{self.prompt_usd} and {self.completion_usd}",
        )
        _require(
            (self.tokenizer is None) == (self.rationale_tokens is None),
            "--tokenizer and --rationale-tokens belong together",
            f"{self.tokenizer} and {self.rationale_tokens}",
        )
        same_prompt = self.draws - (self.show_label == "retry")  # draws of one prompt
        _require(
            same_prompt <= 1 or self.body_fields().get("temperature") != 0,
            "several --draws of the same prompt need a --temperature above 0",
            f"0; set --draws {self.draws - same_prompt + 1}",
        )
        limit = self.token_limit()
        _require(
            isinstance(limit, int) and not isinstance(limit, bool) and limit > 0,
            "the body needs a positive max_tokens or max_completion_tokens, which bounds what an answer can cost",
            limit,
        )

    def extra_fields(self) -> dict[str, Any]:
        """`extra` as an object."""
        try:
            fields = json.loads(self.extra)
        except ValueError:
            fields = None
        _require(isinstance(fields, dict), "--extra must be a JSON object, as '{\"top_p\": 0.95}'", repr(self.extra))
        taken = [name for name in OWN_FIELDS if name in fields]
        _require(not taken, "--extra must leave model, messages, stream, stream_options and n alone", ", ".join(taken))
        return fields

    def body_fields(self) -> dict[str, Any]:
        """Fields of a request's body except its messages; part of a request's key."""
        fields = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in (fields | self.extra_fields()).items() if value is not None}

    def token_limit(self) -> int:
        """Largest number of completion tokens of one answer."""
        fields = self.body_fields()
        return max((fields[name] for name in LIMIT_FIELDS if name in fields), default=0)

    def recorded(self, template: str) -> dict[str, Any]:
        """The settings that influence the rationales, for the header of the traces."""
        names = ("show_label", "draws", "rationale_words", "rationale_tokens")
        return {"template": template} | {name: getattr(self, name) for name in names} | self.body_fields()


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _require(condition: bool, requirement: str, given: object) -> None:
    if not condition:
        raise DataError(f"{requirement}, got {given}")
