"""Parse chat completions, from JSON objects or event streams, and separate thinking from the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from r2rank_jax.data.prompts.item_text import whole_characters
from r2rank_jax.data.teacher.language_model.ledger import Tokens

THINKING_FIELDS = ("reasoning_content", "reasoning")  # DeepSeek and vLLM until 0.11; OpenRouter and vLLM since
OPEN, CLOSE = "<think>", "</think>"


class BrokenAnswer(Exception):
    """The response is not an answer; the text is one of a few short reasons, so that they can be counted."""


@dataclass(frozen=True)
class Answer:
    """One complete answer."""

    content: str
    thinking: str
    finish_reason: str
    model: str  # as reported by the endpoint
    usage: Tokens | None  # None if not reported


def parse_completion(body: bytes | str) -> Answer:
    """Read a `chat.completion` object.

    Raises:
        BrokenAnswer: not JSON, an error in place of an answer, or no choices.
    """
    completion = _object(body)
    choice = _choice(completion) or {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BrokenAnswer("no choices")
    thinking = "".join(_text(message.get(name)) for name in _first_thinking(message))
    return _answer(_text(message.get("content")), thinking, choice.get("finish_reason"), completion)


def parse_stream(lines: Iterable[bytes]) -> Answer:
    """Read the `chat.completion.chunk` events of a stream.

    Args:
        lines: of the body, including line ends.

    Raises:
        BrokenAnswer: an event that is not JSON, an error among the events, no choices, or a stream that ends before its
            answer is complete.
    """
    content: list[str] = []
    thinking: list[str] = []
    envelope: dict[str, Any] = {}
    finish: Any = None
    began = done = False
    for data in _events(lines):
        if data == "[DONE]":
            done = True
            break
        event = _object(data)
        envelope |= {name: event[name] for name in ("model", "usage") if event.get(name)}
        choice = _choice(event)
        if choice is None:
            continue  # the chunk that carries the usage has no choices
        began = True
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta")
        if isinstance(delta, dict):
            content.append(_text(delta.get("content")))
            thinking += [_text(delta.get(name)) for name in _first_thinking(delta)]
    if not done and finish is None:
        raise BrokenAnswer("cut off")
    if not began:
        raise BrokenAnswer("no choices")
    return _answer("".join(content), "".join(thinking), finish, envelope)


def _answer(content: str, thinking: str, finish: Any, envelope: dict[str, Any]) -> Answer:
    spoken, tagged = split_thinking(whole_characters(content))
    return Answer(
        content=spoken,
        thinking=whole_characters(thinking) or tagged,
        finish_reason=whole_characters(_text(finish)),
        model=whole_characters(_text(envelope.get("model"))),
        usage=_usage(envelope.get("usage")),
    )


def split_thinking(content: str) -> tuple[str, str]:
    """Split a message into its answer and the thinking in tags. The opening tag is often part of the prompt.

    >>> split_thinking("<think>hm</think>yes")
    ('yes', 'hm')
    >>> split_thinking("hm</think>yes"), split_thinking("<think>hm, cut o"), split_thinking("yes")
    (('yes', 'hm'), ('', 'hm, cut o'), ('yes', ''))
    """
    before, tag, after = content.rpartition(CLOSE)
    if tag:
        return after.strip(), before.replace(OPEN, "").strip()
    before, tag, after = content.partition(OPEN)
    return before.strip(), after.strip()


def _events(lines: Iterable[bytes]) -> Iterator[str]:
    """Data of each event. Comments, which keep a connection alive, and other fields are skipped."""
    data: list[str] = []
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.startswith("data:"):
            data.append(text[5:].removeprefix(" "))
        elif not text and data:
            yield "\n".join(data)
            data = []
    # An event without a following empty line was cut off. The end mark is the one exception: it is complete as it is.
    if data == ["[DONE]"]:
        yield data[0]


def _object(text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the latter for 10,000 nested brackets
        raise BrokenAnswer("not JSON") from None
    if not isinstance(value, dict):
        raise BrokenAnswer("not JSON")
    if value.get("error"):
        raise BrokenAnswer("error in place of an answer")
    return value


def _choice(event: dict[str, Any]) -> dict[str, Any] | None:
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0]


def _first_thinking(message: dict[str, Any]) -> list[str]:
    """The first field with thinking; some endpoints send the same text in both."""
    return [name for name in THINKING_FIELDS if message.get(name)][:1]


def _text(value: Any) -> str:
    """A string, or the joined texts of a list of parts."""
    if isinstance(value, list):
        value = "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return value if isinstance(value, str) else ""


def _usage(usage: Any) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or min(prompt, completion) < 0:
        return None
    return Tokens(prompt, completion)
