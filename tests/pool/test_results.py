"""Results: a future and an AsyncResult in one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import threading
from types import SimpleNamespace

import pytest

from mpcluster.errors import ResultTimeoutError, TaskCancelledError
from mpcluster.pool.calls import Options
from mpcluster.pool.results import ApplyResult


class Engine:
    """Calls what is to be called later at once, and never finishes anything by itself."""

    def __init__(self) -> None:
        self.cancelled: list[object] = []
        self.called = 0

    def call_later(self, job):
        self.called += 1
        job()

    def wait(self, awaited, deadline):
        import time

        lock = awaited.enlist()
        if not awaited.ready():
            lock.acquire(timeout=60 if deadline is None else max(0, deadline - time.monotonic()))
        awaited.delist(lock)

    def cancel(self, call):
        self.cancelled.append(call)
        return True

    def is_running(self, call):
        return False


@pytest.fixture
def result():
    return ApplyResult(Engine(), SimpleNamespace(), 3, abs, None, (1,), Options())


def test_a_value(result):
    assert not result.ready()
    result.finish(3)
    assert result.ready()
    assert result.done()
    assert result.successful()
    assert result.get() == result.result() == 3
    assert result.exception() is None


def test_an_error_is_raised_as_the_very_object(result):
    error = KeyError("x")
    result.fail(error)
    assert not result.successful()
    assert result.exception() is error
    with pytest.raises(KeyError) as caught:
        result.get()
    assert caught.value is error


def test_successful_before_the_end_is_a_value_error_with_the_words_of_multiprocessing(result):
    with pytest.raises(ValueError, match="not ready"):
        result.successful()


def test_a_late_result_is_both_kinds_of_timeout(result):
    for kind in (multiprocessing.TimeoutError, TimeoutError, ResultTimeoutError):
        with pytest.raises(kind):
            result.get(timeout=0)
    with pytest.raises(TimeoutError):
        result.exception(timeout=0)


def test_a_thread_that_waits_is_woken(result):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(result.get()))
    thread.start()
    while not result._sleepers:
        pass
    result.finish(7)
    thread.join()
    assert seen == [7]


def test_the_callback_is_called_before_the_result_is_ready(result):
    seen = []
    result._callback = lambda value: seen.append((value, result.ready()))
    result.finish(1)
    assert seen == [(1, False)]
    assert result.ready()


def test_a_callback_that_raises_is_reported_and_the_result_is_there(result, monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    result._callback = lambda value: 1 / 0
    result.finish(1)
    assert result.get() == 1
    assert isinstance(told[0].exc_value, ZeroDivisionError)


def test_done_callbacks_are_called_once_whether_early_or_late(result):
    seen = []
    result.add_done_callback(lambda r: seen.append("early"))
    result.finish(1)
    result.add_done_callback(lambda r: seen.append("late"))
    assert seen == ["early", "late"]


def test_the_functions_of_concurrent_futures_take_it(result):
    other = ApplyResult(Engine(), None, 3, abs, None, (1,), Options())
    other.finish(1)
    done, pending = concurrent.futures.wait([result, other], return_when="FIRST_COMPLETED")
    assert (done, pending) == ({other}, {result})
    threading.Thread(target=result.finish, args=(2,)).start()
    assert set(concurrent.futures.as_completed([result, other], timeout=60)) == {result, other}


def test_it_can_be_awaited(result):
    async def main():
        asyncio.get_running_loop().call_soon(result.finish, 5)
        return await result

    assert asyncio.run(main()) == 5


def test_cancelled_is_cancelled_for_everybody(result):
    assert result.cancel()
    assert result._engine.cancelled == [result]
    assert result.cancelled()
    result.finish(1)  # too late
    for kind in (TaskCancelledError, concurrent.futures.CancelledError):
        with pytest.raises(kind):
            result.get()
    assert result.cancel()


def test_a_finished_one_cannot_be_cancelled(result):
    result.finish(1)
    assert not result.cancel()
    assert result.get() == 1


def test_it_lets_go_of_pool_and_arguments_when_it_is_done(result):
    result.finish(1)
    assert (result._pool, result.given, result.function) == (None, None, None)


def test_dropped_with_the_pool_it_calls_nobody_back(result):
    seen = []
    result._callback = result._error_callback = seen.append
    result.drop(TaskCancelledError("over"))
    with pytest.raises(TaskCancelledError):
        result.get()
    assert not seen
