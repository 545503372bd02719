"""Processes talk with time limits, over a stand-in for the coordination service."""

import threading
import time

import pytest

from r2rank_jax.doctor.clocks import skew
from r2rank_jax.doctor.processes import LostProcessError, Processes, within
from r2rank_jax.doctor.shared_folder import check_shared, judged, scratch


class Service:
    """Keys and values in memory, with the methods of JAX's client."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_in_ms / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self._values[key]


def job(count: int, present: list[int], work, limit_s=5.0):
    """Carry out `work(processes)` as each of the present processes of a job; process -> result or error."""
    service, results = Service(), {}

    def one(index):
        try:
            results[index] = work(Processes(service, index, count, limit_s))
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_values_go_to_process_0_and_from_it():
    gathered = job(3, [0, 1, 2], lambda p: p.gather("x", [p.index]))
    assert gathered == {0: {0: [0], 1: [1], 2: [2]}, 1: {1: [1]}, 2: {2: [2]}}
    assert job(3, [0, 1, 2], lambda p: p.share("x", p.index or None)) == {0: None, 1: None, 2: None}
    assert job(2, [0, 1], lambda p: p.share("x", {"y": 1})) == {0: {"y": 1}, 1: {"y": 1}}
    alone = Processes(None, 0, 1, 5.0)
    assert alone.gather("x", 4) == {0: 4} and alone.share("x", 5) == 5
    alone.meet("x")


def test_a_missing_process_is_left_out_within_the_limit():
    start = time.monotonic()
    assert job(3, [0, 2], lambda p: p.gather("x", p.index), limit_s=0.5)[0] == {0: 0, 2: 2}
    assert time.monotonic() - start < 5


def test_a_missing_process_0_is_an_error_within_twice_the_limit():
    error = job(2, [1], lambda p: p.share("x"), limit_s=0.3)[1]
    assert isinstance(error, LostProcessError) and "process 0 must answer within 0.6 s" in str(error)


def test_a_service_that_is_stopped_is_not_waited_for():
    class Stopped:
        def blocking_key_value_get(self, key, timeout_in_ms):
            time.sleep(20)

        key_value_set = blocking_key_value_get

    stopped, start = Processes(Stopped(), 1, 2, 0.2), time.monotonic()
    for call in (stopped.share, stopped.gather):
        with pytest.raises(LostProcessError):
            call("x", 1)
    assert time.monotonic() - start < 5


def test_work_has_a_time_limit():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {"y": 1}["x"])
    with pytest.raises(TimeoutError, match="took longer than 0 s"):
        within(0.05, lambda: time.sleep(5))


# -- the run directory ------------------------------------------------------------------------------------------------


def test_a_shared_run_directory(tmp_path):
    with scratch(tmp_path):
        found = job(3, [0, 1, 2], lambda p: check_shared(tmp_path / "doctor.scratch", p))
        assert [one.verdict for one in found[0]] == ["ok"] and found[1] == found[2] == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_do_not_see_or_write(tmp_path, monkeypatch):
    monkeypatch.setattr("r2rank_jax.doctor.shared_folder.SEEN_WITHIN_S", 0.2)
    with scratch(tmp_path):
        elsewhere = lambda p: check_shared(tmp_path / ("other" if p.index == 2 else "doctor.scratch"), p)  # noqa: E731
        (found,) = job(3, [0, 1, 2], elsewhere)[0]
        assert found.verdict == "fault" and "got process 2 without its file" in found.what
    seen, blocked = {"reached": True, "error": None}, {"reached": True, "error": "Read-only file system"}
    read_only, hidden = judged(tmp_path / "x", {0: seen, 1: blocked, 2: seen}, [2])
    assert "got Read-only file system in process 1" in read_only.what
    assert "got nothing from process 2" in hidden.what


def test_a_file_that_only_its_writer_sees(tmp_path, monkeypatch):
    """Process 0 reads its folder, in which the file of process 1 never appears; one wait serves all processes."""
    monkeypatch.setattr("r2rank_jax.doctor.shared_folder.SEEN_WITHIN_S", 0.3)
    with scratch(tmp_path):

        def work(processes):
            if processes.index == 0:
                return check_shared(tmp_path / "doctor.scratch", processes)
            token = processes.share("token")
            one_way = tmp_path / str(processes.index)  # a mount that shows the others nothing
            one_way.mkdir()
            (one_way / "0").write_text(token)
            processes.share = lambda name, value: token
            return check_shared(one_way, processes)

        start = time.monotonic()
        (found,) = job(4, [0, 1, 2, 3], work)[0]
    assert "got nothing from processes 1, 2 and 3" in found.what and time.monotonic() - start < 5


# -- clocks -----------------------------------------------------------------------------------------------------------


def test_the_skew_of_clocks_by_hand():
    """The barrier opens at 10.1 s of process 0, at 15.3 of process 1; process 2 came 8 s early and may be right."""
    readings = {0: (10.0, 10.2), 1: (15.1, 15.5), 2: (2.0, 10.2)}
    (found,) = skew(readings)
    assert found.verdict == "warning" and "got process 1 up to 5,200.0 ms, known to 300.0 ms" in found.what
    (found,) = skew({0: (10.0, 10.2), 1: (10.4, 10.6)})
    assert found.verdict == "ok" and found.what == "apart by at most 400.0 ms, known to 200.0 ms"
