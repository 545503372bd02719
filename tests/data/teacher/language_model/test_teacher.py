"""From training lists to traces, with a stub in place of the endpoint."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.from_dataset import prefix_of, suffixes_of
from r2rank_jax.data.prompts.templates import FILMS_1, GAMES_1
from r2rank_jax.data.teacher.language_model.answers import Answer
from r2rank_jax.data.teacher.language_model.endpoint import AskError, Endpoint
from r2rank_jax.data.teacher.language_model.instructions import VERSION
from r2rank_jax.data.teacher.language_model.ledger import Tokens
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.data.teacher.language_model.teacher import LanguageModel
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.errors import DataError

URL = "http://127.0.0.1:9/v1"
LISTS = 6
SERIAL = itertools.count()


class Stub:
    """Follows the label where it is shown; answers `reply(prompt, number)` otherwise."""

    def __init__(self, monkeypatch, reply=None):
        self.prompts, self.keys, self.reply = [], [], reply
        monkeypatch.setattr(Endpoint, "ask", lambda endpoint, body: self.ask(endpoint, body))

    def ask(self, endpoint, body):
        prompt = body["messages"][1]["content"]
        self.prompts.append(prompt)
        self.keys.append(endpoint.key)
        reply = self.reply(prompt, len(self.prompts)) if self.reply else None
        if isinstance(reply, AskError):
            raise reply
        if reply is None:
            verdict = "MISMATCH" if "did not go on" in prompt or "went on" not in prompt else "MATCH"
            reply = f"Reason number {next(SERIAL)}.\nVERDICT: {verdict}"
        return Answer(reply, "", "stop", "stub", Tokens(100, 10))


@pytest.fixture
def ask(prepared, tmp_path):
    def ask(
        out="t.jsonl", address=URL, lists=LISTS, seed=0, positives=1, history_items=10, template="films-1", **settings
    ):
        chosen = TeacherSettings(**{"model": "stub-1", "show_label": "always", "backoff_s": 0.001} | settings)
        return synthesize(
            prepared, tmp_path / out, LanguageModel(chosen, address=address, out=tmp_path / out), lists=lists,
            seed=seed, positives=positives, history_items=history_items, template=template,
        )  # fmt: skip

    return ask


def journal(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_traces_that_sft_reads(ask, tmp_path, dataset, monkeypatch):
    stub = Stub(monkeypatch)
    assert ask(positives=3, extra='{"top_p": 0.9}') is None
    traces = read_traces(tmp_path / "t.jsonl", dataset, None)
    assert len(traces) == LISTS and len(stub.prompts) == LISTS * 20 == len(set(stub.prompts))
    for row, texts in enumerate(traces.rationales):
        for text, label in zip(texts, traces.lists.labels[row]):
            assert text.startswith(" Reason number ") and text.endswith(f" Verdict: {'match' if label else 'mismatch'}")
    assert traces.lists.labels.sum(axis=1).max() == 3
    header = traces.header
    assert (header["teacher"], header["prompts"], header["positives"]) == ("stub-1", VERSION, 3)
    assert header["settings"] == {
        "template": "films-1", "show_label": "always", "draws": 3, "rationale_words": 120,
        "rationale_tokens": None, "model": "stub-1",
        "temperature": 0.6, "max_tokens": 4096, "top_p": 0.9,
    }  # fmt: skip
    assert header["tokens"] == {"prompt": 12_000, "completion": 1200} and header["answers"] == 120
    assert set(header["answers_refused"].values()) == {0} and header["lists_dropped"] == {}


@pytest.mark.parametrize("template", [FILMS_1, GAMES_1])
def test_the_teacher_sees_the_students_prompts(ask, tmp_path, dataset, monkeypatch, template):
    stub = Stub(monkeypatch)
    ask(lists=1, history_items=4, concurrency=1, template=template.name)
    lists = read_traces(tmp_path / "t.jsonl", dataset, None).lists
    prefix = prefix_of(dataset, int(lists.user[0]), int(lists.position[0]), 4, template)
    for prompt, suffix in zip(stub.prompts, suffixes_of(dataset, lists.items[0].tolist(), template), strict=True):
        assert prompt.startswith(f"BEGIN\n{prefix}{suffix}\nEND")


def test_answered_requests_are_never_sent_again(ask, tmp_path, monkeypatch):
    first = Stub(monkeypatch)
    ask(lists=3)
    before = (tmp_path / "t.jsonl").read_bytes()
    again = Stub(monkeypatch)
    ask(lists=3, stream=True, concurrency=2)
    assert not again.prompts and (tmp_path / "t.jsonl").read_bytes() == before
    ask(lists=LISTS)
    assert len(again.prompts) == 3 * 20 and not set(again.prompts) & set(first.prompts), "the first three are the same"
    for changed in ({"temperature": 0.7}, {"rationale_words": 90}, {"model": "stub-2"}, {"extra": '{"top_k": 5}'}):
        again.prompts.clear()
        ask(lists=1, **changed)
        assert len(again.prompts) == 20, f"{changed} makes other requests"


def test_refused_answers_are_drawn_again_with_the_label_and_then_the_list_is_dropped(
    ask, tmp_path, dataset, monkeypatch
):
    """Without the label the stub says MISMATCH, which contradicts positives; it has no usable answer for one film."""
    Stub(monkeypatch)
    ask(lists=LISTS, show_label="retry")
    traces = read_traces(tmp_path / "t.jsonl", dataset, None)
    assert len(traces) == LISTS and traces.header["answers_refused"]["contradicts the label"] == LISTS
    film = traces.lists.items[0, 0]
    title = suffixes_of(dataset, [int(film)])[0]
    holds = int((traces.lists.items == film).any(axis=1).sum())
    bad = Stub(monkeypatch, lambda prompt, number: "No verdict." if f"\n{title}" in prompt else None)
    ask("u.jsonl", lists=LISTS, show_label="retry", draws=2)
    header = read_traces(tmp_path / "u.jsonl", dataset, None).header
    assert header["lists"] == LISTS - holds and header["lists_dropped"] == {"no verdict": holds}
    assert header["answers_refused"]["no verdict"] == 2 * holds
    shown = Counter("For you alone" in prompt for prompt in bad.prompts)
    assert shown[False] == LISTS * 20 and holds < shown[True] <= LISTS + holds


def test_show_label_never_hides_every_label(ask, tmp_path, monkeypatch, capsys):
    stub = Stub(monkeypatch)
    missing = ask(show_label="never", draws=2)
    assert missing.startswith(f"no list is complete, {LISTS} dropped ({LISTS} contradicts the label)")
    assert not any("For you alone" in prompt for prompt in stub.prompts) and not (tmp_path / "t.jsonl").exists()
    assert len(stub.prompts) == LISTS * 21, "a second draw for each positive"


def test_no_more_requests_are_sent_for_a_dropped_list(ask, monkeypatch):
    """The first candidate has no usable answer, so the fifth needs none."""
    down = AskError("status 500", billed=False)
    Stub(monkeypatch, lambda prompt, number: {1: "No verdict.", 5: down}.get(number))
    assert ask(lists=1, draws=1, attempts=1, concurrency=1).startswith("no list is complete, 1 dropped (1 no verdict)")
    again = Stub(monkeypatch)
    ask(lists=1, draws=1)
    assert not again.prompts


def test_a_budget_buys_complete_lists_and_the_rest_is_reported(ask, tmp_path, dataset, monkeypatch):
    Stub(monkeypatch)
    most = 64 * 20 * 110 + 10_000  # one block of lists, and the ceiling of a request
    missing = ask(lists=100, budget_tokens=most, max_tokens=400)
    assert missing.startswith("the budget is reached; ") and "run the same command again to continue" in missing
    traces = read_traces(tmp_path / "t.jsonl", dataset, None)
    assert 64 <= len(traces) < 70 and traces.header["lists_unfinished"] == 100 - len(traces)
    assert most - 6000 < sum(traces.header["tokens"].values()) <= most
    assert f"{100 - len(traces)} of 100 lists are unfinished" in missing
    assert ask(lists=100, max_tokens=400) is None and len(read_traces(tmp_path / "t.jsonl", dataset, None)) == 100


def test_requests_without_an_answer_leave_their_lists_open(ask, tmp_path, dataset, monkeypatch):
    down = AskError("status 500", billed=False)
    Stub(monkeypatch, lambda prompt, number: down if number == 50 else None)
    missing = ask(attempts=1, concurrency=1)
    assert missing.startswith("1 requests brought no answer (1 status 500); 1 of 6 lists are unfinished and 1 req")
    assert len(read_traces(tmp_path / "t.jsonl", dataset, None)) == LISTS - 1
    Stub(monkeypatch)
    assert ask() is None and len(read_traces(tmp_path / "t.jsonl", dataset, None)) == LISTS


def test_draws_differ_if_a_seed_is_sent(ask, tmp_path, monkeypatch):
    seeds = []
    Stub(monkeypatch, lambda *_: "No verdict.")
    real = Endpoint.ask
    monkeypatch.setattr(Endpoint, "ask", lambda self, body: seeds.append(body["seed"]) or real(self, body))
    ask(lists=1, draws=2, extra='{"seed": 40}')
    assert Counter(seeds) == {40: 20, 41: 20}


def test_the_offline_route_fills_the_same_journal(ask, tmp_path, dataset, monkeypatch, capsys):
    """Two rounds of a batch, then the endpoint for the rest; the lines have the form of OpenAI and `vllm run-batch`."""
    settings = {"address": "batch", "show_label": "retry"}
    assert ask(batch_out=tmp_path / "in.jsonl", **settings) is None
    lines = journal(tmp_path / "in.jsonl")
    assert len(lines) == 120 and not (tmp_path / "t.jsonl").exists()
    assert set(lines[0]) == {"custom_id", "method", "url", "body"} and lines[0]["url"] == "/v1/chat/completions"
    assert set(lines[0]["body"]) == {"model", "messages", "temperature", "max_tokens"}

    def responses(lines):
        for number, line in enumerate(lines):
            content = f"Number {line['custom_id']}.\nVERDICT: MISMATCH"
            if "user went on" in line["body"]["messages"][1]["content"]:
                content = f"Number {line['custom_id']}.\nVERDICT: MATCH"
            body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "model": "b",
                    "usage": {"prompt_tokens": 9, "completion_tokens": 1}}  # fmt: skip
            record = {"id": f"r{number}", "custom_id": line["custom_id"], "error": None}
            yield record | {"response": {"status_code": 200, "request_id": "q", "body": body}}

    answered = list(responses(lines))[::-1]
    answered[0] |= {"response": None, "error": {"code": "batch_expired", "message": "late"}}
    answered[1]["response"] = {"status_code": 500, "request_id": "q", "body": {"error": "oops"}}
    answered += [answered[2], {"custom_id": "0" * 32, "response": answered[2]["response"], "error": None}]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in answered))
    again = {"batch_in": tmp_path / "out.jsonl", "batch_out": tmp_path / "in2.jsonl"}
    assert ask(**again, **settings) is None
    printed = capsys.readouterr().out
    assert "1 failed: error in place of an answer, 1 failed: status 500, 118 answered, 1 answered before" in printed
    second = journal(tmp_path / "in2.jsonl")
    before = (tmp_path / "t.journal.jsonl").read_bytes()
    ask(**again, **settings)
    assert (tmp_path / "t.journal.jsonl").read_bytes() == before, "reading it twice changes nothing"
    stub = Stub(monkeypatch)
    assert ask(show_label="retry") is None, "an endpoint may answer what a batch did not"
    assert len(stub.prompts) >= len(second)
    traces = read_traces(tmp_path / "t.jsonl", dataset, None)
    header = traces.header
    assert header["lists"] == LISTS
    assert len(second) == 2 + LISTS - traces.lists.labels[-1, -2:].sum(), "what failed, and the positives contradicted"
    assert header["tokens"]["prompt"] == 118 * 9 + len(stub.prompts) * 100


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"custom_id": "a", "method": "POST", "body": {}}', "line 2: expected a response, got a request"),
        ('{"id": 1}', 'line 2: expected a response with a custom_id, got \'."id": 1}'),
        ('{"custom_id": "a", "resp', "line 2: .*give the whole output file"),
    ],
)
def test_a_line_that_is_no_batch_response_is_reported(ask, tmp_path, line, message):
    (tmp_path / "out.jsonl").write_text('{"custom_id": "x", "response": null, "error": {}}\n' + line)
    with pytest.raises(DataError, match=message):
        ask(address="batch", batch_in=tmp_path / "out.jsonl")


def test_a_budget_bounds_a_batch_file(ask, tmp_path, capsys):
    ask(address="batch", batch_out=tmp_path / "in.jsonl", budget_tokens=50_000, max_tokens=1000)
    written = len(journal(tmp_path / "in.jsonl"))
    assert (
        10 < written < 30 and f"the budget does not cover the other {120 - written} requests" in capsys.readouterr().out
    )


def test_errors(ask, tmp_path):
    with pytest.raises(DataError, match="--teacher batch needs --batch-out or --batch-in"):
        ask(address="batch")
    with pytest.raises(DataError, match=r"an address takes neither, got --teacher ADDRESS, --batch-out .*x"):
        ask(batch_out=tmp_path / "x")
    with pytest.raises(DataError, match=r"--batch-in must name .*nowhere, which does not exist"):
        ask(address="batch", batch_in=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"between 1 and the .* training lists, got 0"):
        ask(lists=0)
    assert not (tmp_path / "t.jsonl").exists()


def test_the_command(prepared, tmp_path, monkeypatch, capsys):
    """Which endpoint receives which key, exit codes, and the flags that only a language model has."""
    stub = Stub(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.delenv("R2RANK_TEACHER_API_KEY", raising=False)
    command = ["data", "synthesize", "--data", str(prepared), "--out", str(tmp_path / "t"), "--lists", "2"]
    command += ["--model", "stub", "--show-label", "always"]

    def run(*options):
        stub.keys.clear()
        status = main([*command, *options])
        return status, set(stub.keys)

    assert run("--teacher", URL) == (0, {""}), "OpenAI's key is not for others"
    assert run("--teacher", "https://api.openai.com/v1", "--temperature", "0.5") == (0, {"sk-openai"})
    assert run("--teacher", "https://api.openai.com.evil.org/v1", "--temperature", "0.4") == (0, {""})
    assert run("--teacher", "http://api.openai.com/v1", "--temperature", "0.35") == (0, {""}), "in clear text"
    monkeypatch.setenv("R2RANK_TEACHER_API_KEY", "sk-own")
    assert run("--teacher", URL, "--temperature", "0.3") == (0, {"sk-own"})
    assert run("--teacher", URL, "--budget-tokens", "0", "--temperature", "0.2") == (1, set())
    assert "r2rank: the budget is reached; 2 of 2 lists are unfinished" in capsys.readouterr().err
    assert run("--teacher", "nowhere") == (2, set())
    assert run() == (2, set()), "the template teacher has no --model"
    assert "unknown argument '--model'" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if b"sk-o" in path.read_bytes()]


def test_lists_are_nested_training_lists_that_depend_on_the_seed(ask, tmp_path, prepared, monkeypatch):
    Stub(monkeypatch)
    pairs = {}
    for name, lists, seed in (("few", 3, 0), ("more", LISTS, 0), ("other", LISTS, 1)):
        ask(f"{name}.jsonl", lists=lists, seed=seed)
        drawn = read_traces(tmp_path / f"{name}.jsonl", load(prepared, "leave_one_out"), None).lists
        pairs[name] = list(zip(drawn.user.tolist(), drawn.position.tolist()))
        assert np.all(drawn.position >= 5)
    assert pairs["more"][:3] == pairs["few"] and pairs["other"] != pairs["more"]
