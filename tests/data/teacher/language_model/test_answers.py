import json

import pytest

from r2rank_jax.data.teacher.language_model.answers import (
    Answer,
    BrokenAnswer,
    parse_completion,
    parse_stream,
    split_thinking,
)
from r2rank_jax.data.teacher.language_model.ledger import Tokens

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def completion(message, **more):
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"model": "m-2", "choices": [choice], "usage": USAGE} | more)


def stream(*events, end=b"data: [DONE]\n\n"):
    return [line + b"\n" for event in events for line in (b"data: " + json.dumps(event).encode(), b"")] + [end]


def delta(finish=None, **fields):
    return {"model": "m-2", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "yes", "reasoning_content": "hm"},
        {"content": "yes", "reasoning": "hm"},
        {"content": "yes", "reasoning": "hm", "reasoning_content": "hm"},
        {"content": "<think>\nhm\n</think>\n\nyes"},
        {"content": "hm\n</think>\n\nyes"},
        {"content": [{"type": "text", "text": "<think>hm</think>"}, {"type": "text", "text": "yes"}]},
    ],
)
def test_thinking_is_separated_in_every_form(message):
    expected = Answer("yes", "hm", "stop", "m-2", Tokens(7, 3))
    assert parse_completion(completion(message)) == expected
    if isinstance(message["content"], str):
        parts = [{name: text[:2]} for name, text in message.items()] + [{"content": None}]
        parts += [{name: text[2:]} for name, text in message.items()]
        if "reasoning" in message and "reasoning_content" in message:
            parts = [{"reasoning": "hm", "reasoning_content": "hm"}, {"content": "yes"}]
        events = [*(delta(**part) for part in parts), delta("stop"), {"choices": [], "usage": USAGE}]
        assert parse_stream(stream(*events)) == expected


def test_thinking_that_used_up_the_limit_leaves_no_answer():
    assert parse_completion(completion({"content": "<think>hm, and on and"})).content == ""
    assert parse_completion(completion({"content": None, "reasoning": "hm"})).content == ""
    assert split_thinking("a <think>b") == ("a", "b")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"choices": [{"mess', "not JSON"),
        (b"[1]", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [{"text": "a completion, not a chat"}]}', "no choices"),
        (b'{"choices": null}', "no choices"),
        (b'{"error": {"message": "overloaded"}}', "error in place of an answer"),
    ],
)
def test_a_response_that_is_no_answer_has_a_reason(body, reason):
    with pytest.raises(BrokenAnswer, match=reason):
        parse_completion(body)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (stream(delta(content="half"), end=b""), "cut off"),
        ([b'data: {"choices": [{"delta": {"content": "ha'], "cut off"),
        ([], "cut off"),
        (stream(delta(content="a"), {"error": {"code": 500}}), "error in place of an answer"),
        ([b"data: {oops\n", b"\n"], "not JSON"),
        (stream({"choices": [], "usage": USAGE}), "no choices"),
    ],
)
def test_a_broken_stream_has_a_reason(lines, reason):
    with pytest.raises(BrokenAnswer, match=reason):
        parse_stream(lines)


def test_a_stream_is_read_as_the_standard_defines_it():
    """Comments, other fields, CRLF, no space after the colon, and an end without an end mark or an empty line."""
    lines = [
        b": awake\r\n",
        b"\r\n",
        b"event: message\r\n",
        b'data:{"choices":[{"delta":{"content":"y"}}]}\r\n',
        b"\r\n",
    ]
    last = [b'data: {"choices": [{"delta": {"content": "es"}, "finish_reason": "length"}]}\n', b"\n"]
    assert parse_stream(lines + last) == Answer("yes", "", "length", "", None)
    assert parse_stream([*lines, b"data: [DONE]"]).content == "y"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1.5, "completion_tokens": 2},
    ],
)
def test_unusable_usage_is_none(usage):
    assert parse_completion(completion({"content": "yes"}, usage=usage)).usage is None


def test_lone_surrogates_are_replaced():
    whole = completion({"content": "A\ud800 \U0001f600"})
    assert parse_completion(whole).content == "A\ufffd \U0001f600"
    halves = parse_stream(stream(delta(content="\ud83d"), delta("stop", content="\ude00")))
    assert halves.content == "\U0001f600", "two events may share one character"
