"""What a run with a language model as teacher can be told; every field is a flag of `r2rank data synthesize`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.errors import DataError

OWN_FIELDS = ("model", "messages", "stream", "stream_options", "n")  # of a body; not for --extra
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A language model as teacher."""

    model: str
    """Name by which the endpoint knows the model."""
    template: str = "films-1"
    """The pupil's data.template: words of the prompts."""
    show_label: Literal["never", "retry", "always"] = "retry"
    """Whether the teacher is told what the user did; "retry": only where a first answer was refused."""
    draws: int = 3
    """Answers asked for a candidate before its list is given up."""
    temperature: float = 0.6
    max_tokens: int = 4096
    """Limit of one answer, thinking included."""
    extra: str = "{}"
    """JSON object laid over the request's body; null takes a field out."""
    rationale_words: int = 120
    """Length told to the teacher, and the limit of what is kept where no tokenizer is given."""
    tokenizer: Path | None = None
    """The pupil's tokenizer.json, to count rationale_tokens with."""
    rationale_tokens: int | None = None
    """The pupil's data.rationale_tokens: longer rationales are refused."""

    concurrency: int = 16
    """Requests at the same time."""
    stream: bool = False
    """Take answers as server-sent events."""
    timeout_s: float = 600.0
    """Most that one request may take."""
    stall_s: float = 120.0
    """Longest silence within a stream."""
    attempts: int = 6
    """Of one request, until it is left for the next run."""
    backoff_s: float = 1.0
    """Of the first retry; doubles, with full jitter, up to a minute."""

    budget_tokens: int | None = None
    """Most tokens, prompts included, that the journal's requests may have cost."""
    budget_usd: float | None = None
    """The same in money; needs both prices."""
    prompt_usd: float | None = None
    """Price of a million prompt tokens."""
    completion_usd: float | None = None
    """Price of a million completion tokens."""

    journal: Path | None = None
    """Every request and answer; default: the output file's name with .journal.jsonl at its end."""
    batch_out: Path | None = None
    """Write the open requests here, as an OpenAI batch (`vllm run-batch`) input file, and ask nobody."""
    batch_in: Path | None = None
    """Read the answers of such a batch into the journal first."""

    def __post_init__(self) -> None:
        find_template(self.template)
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
        alike = self.draws - (self.show_label == "retry")  # draws of one prompt
        _require(
            alike <= 1 or self.body_fields().get("temperature") != 0,
            "several --draws of the same prompt need a --temperature above 0",
            f"0; set --draws {self.draws - alike + 1}",
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
            found = json.loads(self.extra)
        except ValueError:
            found = None
        _require(isinstance(found, dict), "--extra must be a JSON object, as '{\"top_p\": 0.95}'", repr(self.extra))
        taken = [name for name in OWN_FIELDS if name in found]
        _require(not taken, "--extra must leave model, messages, stream, stream_options and n alone", ", ".join(taken))
        return found

    def body_fields(self) -> dict[str, Any]:
        """Fields of a request's body but for its messages; what a request's hash rests on."""
        fields = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in (fields | self.extra_fields()).items() if value is not None}

    def token_limit(self) -> int:
        """Most completion tokens of one answer."""
        fields = self.body_fields()
        return max((fields[name] for name in LIMIT_FIELDS if name in fields), default=0)

    def told(self) -> dict[str, Any]:
        """The settings that shaped the rationales, for the header of the traces."""
        names = ("template", "show_label", "draws", "rationale_words", "rationale_tokens")
        return {name: getattr(self, name) for name in names} | self.body_fields()


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _require(condition: bool, requirement: str, came: object) -> None:
    if not condition:
        raise DataError(f"{requirement}, got {came}")
