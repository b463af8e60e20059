"""Looks from time to time: one after the other, whatever a look meets, until it is stopped."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from mpcluster.monitor import sampler
from mpcluster.monitor.sampler import Sampler
from mpcluster.monitor.snapshot import Snapshot
from tests.happenings import PATIENCE
from tests.monitor.looks import snapshot, worker

NOBODY: Any = None  # the supervisor, at whom only the looks would look


class Looks:
    """What is to be seen, one after the other; then nothing more, until the end."""

    def __init__(self, *seen: Snapshot | Exception) -> None:
        self._seen: queue.SimpleQueue[Snapshot | Exception] = queue.SimpleQueue()
        for one in seen:
            self._seen.put(one)

    def __call__(self, _supervisor: object) -> Snapshot:
        try:
            found = self._seen.get_nowait()
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.001)


def test_the_last_look_and_what_happened_since_the_one_before_are_kept() -> None:
    looks = Looks(
        snapshot(worker(1, cpu=1.0), clock=1),
        snapshot(worker(1, cpu=1.5), clock=2),
    )
    one = Sampler(NOBODY, look=looks)
    try:
        assert one.wait_for(lambda _, rates: rates.total.cpu == 0.5, PATIENCE)
        assert one.last()[0].clock == 2
        (point,) = one.history()
        assert (point["cpu"], point["memory"], point["connections"]) == (0.5, 2000, 4)
        assert point["workers"] == {1: 0.5}
    finally:
        one.stop()


def test_a_look_that_the_watcher_does_not_answer_leaves_the_last_as_it_is_and_says_so() -> None:
    answers, asked = threading.Event(), threading.Event()
    clock = iter(range(1, 1000))

    def look(_supervisor: object) -> Snapshot:
        number = next(clock)
        if number == 3:
            asked.set()  # the second has been dealt with
            answers.wait(PATIENCE)
        if number == 2:
            raise TimeoutError
        return snapshot(clock=number)

    one = Sampler(NOBODY, look=look)
    try:
        assert asked.wait(PATIENCE)
        assert one.stalled
        assert one.last()[0].clock == 1
        answers.set()
        assert one.wait_for(lambda seen, _: seen.clock > 3, PATIENCE)
        assert not one.stalled
    finally:
        answers.set()
        one.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_look_that_fails_is_reported_and_the_next_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[BaseException] = []
    monkeypatch.setattr(sampler, "report", lambda _what, error, _whose: reported.append(error))
    looks = Looks(snapshot(clock=1), ZeroDivisionError("ours"), snapshot(clock=2))
    one = Sampler(NOBODY, look=looks)
    try:
        assert one.wait_for(lambda seen, _: seen.clock == 2, PATIENCE)
    finally:
        one.stop()
    assert [str(error) for error in reported] == ["ours"]


def test_a_sum_of_which_a_part_is_not_known_is_not_drawn() -> None:
    looks = Looks(snapshot(clock=1), snapshot(worker(1, connections=None), worker(2), clock=2))
    one = Sampler(NOBODY, look=looks)
    try:
        assert one.wait_for(lambda seen, _: seen.clock == 2, PATIENCE)
        assert one.history()[-1]["connections"] is None
    finally:
        one.stop()


def test_ten_minutes_are_kept_and_no_more() -> None:
    looks = Looks(*(snapshot(clock=number) for number in range(sampler.KEPT + 5)))
    one = Sampler(NOBODY, look=looks)
    try:
        assert one.wait_for(lambda seen, _: seen.clock == sampler.KEPT + 4, PATIENCE)
        history = one.history()
        assert (len(history), history[0]["time"]) == (sampler.KEPT, 1e9 + 5)
    finally:
        one.stop()


def test_looks_that_take_long_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each costing a fifth of a second of a processor, the next is ten seconds away."""
    pauses: queue.SimpleQueue[float] = queue.SimpleQueue()
    clock = iter(range(100))
    monkeypatch.setattr("mpcluster.monitor.sampler.time.thread_time", lambda: next(clock) / 5)
    wait = Sampler._wait

    def noting(self: Sampler, seconds: float) -> bool:
        pauses.put(seconds)
        return wait(self, min(seconds, 0.001))

    monkeypatch.setattr(Sampler, "_wait", noting)
    one = Sampler(NOBODY, look=Looks(snapshot(clock=1), snapshot(clock=2)))
    try:
        assert pauses.get(timeout=PATIENCE) == sampler.INTERVAL
        assert pauses.get(timeout=PATIENCE) == 10
    finally:
        one.stop()


def test_stopped_it_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 3600.0)
    one = Sampler(NOBODY, look=Looks(snapshot()))
    one.stop()
    one.stop()
    assert sampler.THREAD_NAME not in [thread.name for thread in threading.enumerate()]
