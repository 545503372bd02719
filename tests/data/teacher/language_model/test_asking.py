import threading
import time
from collections import Counter

import pytest

from r2rank_jax.data.teacher.language_model import asking
from r2rank_jax.data.teacher.language_model.answers import Answer
from r2rank_jax.data.teacher.language_model.asking import Asker, ChatRequest, ProgressLine
from r2rank_jax.data.teacher.language_model.endpoint import AskError
from r2rank_jax.data.teacher.language_model.journal import Journal
from r2rank_jax.data.teacher.language_model.ledger import NOTHING, Budget, Ledger, Tokens
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

CEILING = Tokens(80, 20)
USAGE = Tokens(30, 10)


def requests(count):
    return [ChatRequest(f"{i:03}", {"i": i}, CEILING) for i in range(count)]


class Endpoint:
    """Answers `say(i, times)`, an Answer or an AskError; counts the requests and how many were concurrent."""

    def __init__(self, say):
        self.say, self.times, self.now, self.most = say, Counter(), 0, 0
        self.lock = threading.Lock()

    def ask(self, body):
        with self.lock:
            self.times[body["i"]] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            times = self.times[body["i"]]
        time.sleep(0.002)
        with self.lock:
            self.now -= 1
        reply = self.say(body["i"], times)
        if isinstance(reply, BaseException):
            raise reply
        return reply


def yes(*_):
    return Answer("yes", "", "stop", "m", USAGE)


@pytest.fixture
def run(tmp_path, capsys):
    """Ask `count` requests; returns outcome, endpoint, ledger, journal's past, seconds."""

    def run(count, say, budget=Budget(), **settings):  # noqa: B008
        endpoint = Endpoint(say)
        chosen = TeacherSettings(**{"model": "m", "concurrency": 8, "backoff_s": 0.001, "attempts": 3} | settings)
        start = time.monotonic()
        with Journal(tmp_path / "j.jsonl") as journal:
            ledger = Ledger(budget, journal.past.reported, journal.past.unreported)
            waiting = [request for request in requests(count) if request.key not in journal.answers]
            outcome = Asker(endpoint, journal, ledger, chosen).ask_all(waiting)
        seconds = time.monotonic() - start
        with Journal(tmp_path / "j.jsonl") as journal:
            assert journal.past.reported == ledger.reported and journal.past.unreported == ledger.unreported
            assert ledger.in_flight == NOTHING
            return outcome, endpoint, ledger, journal, seconds

    return run


def test_all_requests_are_sent_once_and_concurrently(run):
    outcome, endpoint, ledger, journal, _ = run(100, yes)
    assert outcome.answered == 100 == len(journal.answers) and outcome.stopped is None and not outcome.given_up
    assert set(endpoint.times.values()) == {1} and 4 <= endpoint.most <= 8
    assert ledger.booked == Tokens(3000, 1000)


def test_failures_are_retried_up_to_the_limit(run):
    def say(i, times):
        if i % 10 == 0:
            return AskError("status 500", billed=False)  # never well
        return yes() if i % 10 > 2 or times == 3 else AskError("cut off")  # well the third time

    outcome, endpoint, ledger, journal, _ = run(40, say)
    assert {i: n for i, n in endpoint.times.items() if n > 1} == {i: 3 for i in range(40) if i % 10 <= 2}
    assert outcome.given_up == {f"{i:03}": "status 500" for i in range(0, 40, 10)} and outcome.answered == 36
    assert outcome.retries == 2 * 12 and outcome.stopped is None
    assert ledger.unreported == Tokens(16 * 80, 16 * 20), "a cut answer may have been billed; 500 is not"
    assert journal.past.counts["failed: status 500"] == 12 and journal.past.counts["failed: cut off"] == 16
    again, endpoint, *_ = run(40, yes)
    assert again.answered == 4 and set(endpoint.times) == {0, 10, 20, 30}, "answered requests are not sent again"


def test_a_refused_request_is_not_retried(run):
    refuse = AskError("status 400", detail="too long", retry=False, billed=False)
    outcome, endpoint, *_ = run(10, lambda i, _: refuse if i == 4 else yes())
    assert endpoint.times[4] == 1 and outcome.given_up == {"004": "status 400: too long"} and outcome.answered == 9


def test_retry_after_is_respected(run):
    limited = AskError("status 429", after_s=0.3, billed=False)
    outcome, _, _, _, seconds = run(4, lambda i, times: limited if i == 0 and times == 1 else yes())
    assert outcome.answered == 4 and seconds >= 0.3
    long = AskError("status 429", after_s=3600.0, billed=False)
    outcome, _, _, _, seconds = run(99, lambda i, times: long if i == 50 else yes())
    assert "accepts no request for 3600 s" in outcome.stopped and outcome.answered < 99 and seconds < 5


def test_back_off_doubles_up_to_a_minute_with_full_jitter(run, monkeypatch):
    asked = []
    monkeypatch.setattr(asking.random, "uniform", lambda low, high: asked.append((low, high)) or 0.0)
    run(1, lambda *_: AskError("cut off"), attempts=9, backoff_s=1.0)
    assert asked == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 32), (0, 60), (0, 60)]


def test_an_error_that_affects_every_request_stops_the_run(run):
    unknown = AskError("status 401", detail="no such key", retry=False, remedy="the key", billed=False)
    outcome, endpoint, *_ = run(100, lambda *_: unknown)
    assert outcome.stopped == "the endpoint answers status 401: no such key; check the key"
    assert endpoint.times.total() <= 8


def test_many_failures_in_a_row_stop_the_run(run):
    down = AskError("no connection", billed=False)
    outcome, endpoint, *_ = run(500, lambda i, _: down if i >= 10 else yes(), attempts=2)
    assert outcome.stopped == "20 requests in a row brought no answer, the last with no connection"
    assert endpoint.times.total() <= 10 + 2 * (20 + 8)


def test_failures_between_answers_do_not_stop_the_run(run):
    refuse = AskError("status 400", retry=False, billed=False)
    outcome, *_ = run(100, lambda i, _: refuse if i % 2 else yes(), concurrency=1)
    assert outcome.stopped is None and len(outcome.given_up) == 50 == outcome.answered


@pytest.mark.parametrize("budget", [Budget(tokens=1000), Budget(usd=0.001, prompt_usd=1.0, completion_usd=1.0)])
def test_a_budget_is_used_and_never_exceeded(run, budget):
    """Answers cost 40 tokens, with a ceiling of 100: after 23 answers the rest does not cover another request."""
    outcome, _, ledger, _, _ = run(100, yes, budget)
    assert outcome.stopped == "the budget is reached"
    assert outcome.answered == 23 and ledger.booked.total == 920
    outcome, endpoint, ledger, _, _ = run(100, yes, budget)
    assert endpoint.times.total() == 0 and ledger.booked.total == 920, "earlier runs count"


def test_unreported_usage_counts_at_its_ceiling(run):
    silent = Answer("yes", "", "stop", "m", None)
    outcome, _, ledger, _, _ = run(100, lambda i, times: silent if i % 2 else AskError("stalled"), Budget(tokens=1000))
    assert ledger.reported == NOTHING and ledger.unreported.total == 1000 and outcome.answered <= 10


def test_a_journal_that_cannot_be_written_ends_the_run(run, monkeypatch):
    def full(*_):
        raise DataError("the disk is full")

    monkeypatch.setattr(Journal, "answered", full)
    with pytest.raises(DataError, match="the disk is full"):
        run(100, yes)


def test_an_interrupt_waits_for_requests_in_flight(tmp_path, capsys):
    endpoint, calls = Endpoint(lambda *_: time.sleep(0.3) or yes()), []

    def interrupt():
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with Journal(tmp_path / "j.jsonl") as journal:
        asker = Asker(endpoint, journal, Ledger(Budget(), NOTHING, NOTHING), TeacherSettings(model="m", concurrency=4))
        outcome = asker.ask_all(requests(100), interrupt)
        assert outcome.stopped == "interrupted" and outcome.answered == 4 == len(journal.answers)
    assert "waiting for the requests in flight" in capsys.readouterr().err


def test_progress_in_one_line(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        ledger = Ledger(Budget(prompt_usd=2.0, completion_usd=10.0), Tokens(1_500_000, 100_000), NOTHING)
        asker = Asker(Endpoint(yes), journal, ledger, TeacherSettings(model="m"))
        progress = ProgressLine(asker)
        asker.outcome.answered = 30
        progress.left(1200)
        line = progress.line(progress._start + 60)
    assert line == ("teacher: 30 of 1,230 answers, 0.5/s, 0 retries, 1,500,000 + 100,000 tokens, $4.00, 40 min to go")
