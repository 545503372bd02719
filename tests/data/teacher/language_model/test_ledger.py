import threading
import time

import pytest

from r2rank_jax.data.teacher.language_model.ledger import NOTHING, Budget, Ledger, Tokens, prompt_ceiling
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

GO = threading.Event()


def test_costs_by_hand():
    budget = Budget(usd=1.0, prompt_usd=0.5, completion_usd=2.0)
    assert budget.cost(Tokens(1_000_000, 250_000)) == 1.0
    assert budget.holds(Tokens(1_000_000, 250_000)) and not budget.holds(Tokens(1_000_002, 250_000))
    assert Budget(tokens=10).holds(Tokens(4, 6)) and not Budget(tokens=10).holds(Tokens(5, 6))
    assert Budget().holds(Tokens(10**12, 10**12))


def test_a_request_is_admitted_only_if_the_budget_covers_all_ceilings():
    ledger = Ledger(Budget(tokens=100), Tokens(10, 10), Tokens(0, 20))
    assert ledger.admit(Tokens(10, 20), GO) and ledger.admit(Tokens(0, 30), GO)  # 40 booked, 60 in flight
    late = threading.Thread(target=lambda: admitted.append(ledger.admit(Tokens(0, 20), GO)))
    admitted: list[bool] = []
    late.start()
    time.sleep(0.05)
    assert not admitted, "it waits, because requests in flight may cost less"
    ledger.settle(Tokens(10, 20), Tokens(5, 5))
    late.join(2)
    assert admitted == [True]
    assert ledger.booked == Tokens(15, 35) and ledger.in_flight == Tokens(0, 50)
    ledger.settle(Tokens(0, 30))  # billed, and nothing reported
    ledger.settle(Tokens(0, 20), billed=False)
    assert ledger.reported == Tokens(15, 15) and ledger.unreported == Tokens(0, 50) and ledger.in_flight == NOTHING
    assert not ledger.admit(Tokens(0, 21), GO), "nothing in flight, and too much"
    assert ledger.admit(Tokens(0, 20), GO)


def test_a_waiting_request_ends_when_the_run_stops():
    ledger, stop = Ledger(Budget(tokens=10), NOTHING, NOTHING), threading.Event()
    assert ledger.admit(Tokens(0, 10), stop)
    threading.Timer(0.05, stop.set).start()
    assert not ledger.admit(Tokens(0, 10), stop)


def test_a_ceiling_counts_bytes():
    assert prompt_ceiling(["ab", "é", "\U0001f600"]) == 256 + 2 + 2 + 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": " "}, "--model must name"),
        ({"draws": 0}, "--draws must be at least 1, got 0"),
        ({"timeout_s": 0.0}, "--timeout-s must be positive"),
        ({"budget_usd": -1.0}, "--budget-usd must not be negative"),
        (
            {"budget_usd": 1.0, "prompt_usd": 0.1},
            "--budget-usd needs --prompt-usd and --completion-usd.*got 0.1 and None",
        ),
        ({"rationale_tokens": 80}, "--tokenizer and --rationale-tokens belong together"),
        ({"extra": "[1]"}, "--extra must be a JSON object.*got '.1.'"),
        ({"extra": '{"n": 4}'}, "--extra must leave model.*got n"),
        ({"extra": '{"max_tokens": null}'}, "positive max_tokens or max_completion_tokens"),
        ({"temperature": 0.0}, "several --draws of the same prompt need a --temperature above 0.*--draws 2"),
        ({"temperature": 0.0, "show_label": "never", "draws": 2}, "--draws 1"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(DataError, match=message):
        TeacherSettings(**{"model": "m"} | settings)


def test_extra_is_merged_into_the_body_and_null_removes_a_field():
    extra = '{"max_tokens": null, "max_completion_tokens": 900, "top_p": 0.9, "temperature": null}'
    settings = TeacherSettings(model="m", extra=extra)
    assert settings.body_fields() == {"model": "m", "max_completion_tokens": 900, "top_p": 0.9}
    assert settings.token_limit() == 900
