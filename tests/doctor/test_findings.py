"""Findings of several processes as lines of text."""

import pytest

from r2rank_jax.doctor.findings import attempt, fault, merged, named, of_error, ok, size_text, text, warning
from r2rank_jax.errors import ConfigError


def test_errors_of_the_package_are_split_at_their_remedy():
    found = of_error("devices", ConfigError("mesh needs 2 devices, found 1; lower it; or start more"))
    assert found == fault("devices", "mesh needs 2 devices, found 1; lower it", "or start more")
    refused = of_error("resume", ConfigError("other settings; differing: a.b: 1 -> 2. Use the saved values, or stop"))
    assert (refused.what, refused.remedy) == ("other settings; differing: a.b: 1 -> 2", "Use the saved values, or stop")
    assert of_error("data", ConfigError("no remedy")).what == "no remedy"
    full = OSError(28, "No space left on device", "/run/file")
    assert of_error("disk", full).what == "/run/file: No space left on device"
    assert of_error("data", KeyError("column")).what == "KeyError: 'column'"


def test_sizes_have_three_digits_or_so():
    sizes = [size_text(size) for size in (1e5, 3 * 2**20, 1023.4 * 2**20, 2**30, 12345 * 2**30)]
    assert sizes == ["0.0954 MiB", "3 MiB", "1,023 MiB", "1 GiB", "12,345 GiB"]


def test_an_attempt_gives_the_result_or_the_fault():
    assert attempt("check", lambda: 3) == (3, [])
    assert attempt("check", lambda: 1 / 0) == (None, [of_error("check", ZeroDivisionError("division by zero"))])


def test_processes_are_named():
    assert named([1]) == "process 1" and named([5, 1, 2]) == "processes 1, 2 and 5"


@pytest.mark.parametrize(
    ("by_process", "lines"),
    [
        ({0: [ok("a", "3 GiB")], 1: [ok("a", "2 GiB")]}, [ok("a", "3 GiB")]),
        ({0: [ok("a", "x")], 1: [fault("a", "y", "z")]}, [fault("a", "process 1: y", "z")]),
        ({0: [fault("a", "y", "z")], 1: [fault("a", "y", "z")]}, [fault("a", "y", "z")]),
        (
            {0: [ok("a", "x")], 1: [fault("a", "y", "z")], 2: [warning("a", "y", "z")], 3: [fault("a", "y", "z")]},
            [fault("a", "processes 1 and 3: y", "z"), warning("a", "process 2: y", "z")],
        ),
        ({0: [fault("a", "every process must", "z")], 1: []}, [fault("a", "every process must", "z")]),
        ({0: [], 1: [fault("a", "y", "z")]}, [fault("a", "process 1: y", "z")]),
        (
            {0: [ok("a", "x"), ok("b", "y")], 1: [ok("b", "w"), ok("c", "v")]},
            [ok("a", "x"), ok("b", "y"), ok("c", "v")],
        ),
    ],
)
def test_what_every_process_says_is_said_once(by_process, lines):
    assert merged(by_process) == lines


def test_the_text_is_aligned_and_ends_in_a_summary():
    findings = [ok("memory", "3 GiB"), warning("cache", "w", "do this"), fault("run directory", "f", "do that")]
    assert text(findings, ["checkpoints"]).splitlines() == [
        "ok       memory         3 GiB",
        "warning  cache          w",
        "                        remedy: do this",
        "fault    run directory  f",
        "                        remedy: do that",
        "doctor: would not run; 1 fault, 1 warning; not tried: checkpoints",
    ]
    assert text([ok("memory", "3 GiB")]).endswith("doctor: would run; 0 faults, 0 warnings")
