"""One thread that waits for everything: what it calls, when it is there and when not."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpcluster import descriptors, watcher
from mpcluster.watcher import Watcher
from tests.happenings import PATIENCE, Diary


@pytest.fixture
def the_watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """A watcher of its own, whose thread does not linger."""
    monkeypatch.setattr(watcher, "LINGER", 0.0)
    mine = Watcher()
    yield mine
    end(mine)
    descriptors.disown(mine._wake_fd)
    os.close(mine._wake_fd)
    descriptors.disown(mine._epoll.fileno())
    mine._epoll.close()


def end(one: Watcher) -> None:
    """Wait until its thread has ended for want of work."""
    thread = one._thread
    if thread is not None:
        thread.join(PATIENCE)
    assert not one.is_running()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def read_into(diary: Diary, fd: int, the_watcher: Watcher) -> Callable[[int], None]:
    def on_ready(_events: int) -> None:
        diary.write(os.read(fd, 100), the_watcher.in_thread())

    return on_ready


def test_a_descriptor_that_becomes_readable_is_called_for_in_the_thread(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    diary = Diary()
    the_watcher.add(pipe[0], read_into(diary, pipe[0], the_watcher))
    os.write(pipe[1], b"x")
    diary.until(b"x", True)
    os.write(pipe[1], b"y")
    diary.until(b"y", True)
    the_watcher.remove(pipe[0])


def test_one_that_is_ready_already_is_called_for_at_once(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    diary = Diary()
    os.write(pipe[1], b"x")
    the_watcher.add(pipe[0], read_into(diary, pipe[0], the_watcher))
    diary.until(b"x", True)
    the_watcher.remove(pipe[0])


def test_one_that_is_removed_in_the_same_round_is_not_called_for(the_watcher: Watcher) -> None:
    """Both are ready; whoever comes first removes the other."""
    pipes = [os.pipe(), os.pipe()]
    diary = Diary()
    fds = [read_end for read_end, _ in pipes]

    def remove_both(_events: int) -> None:
        diary.write("called")
        for fd in fds:
            the_watcher.remove(fd)

    for read_end, write_end in pipes:
        os.write(write_end, b"x")
        the_watcher._callbacks[read_end] = remove_both
        the_watcher._epoll.register(read_end, select.EPOLLIN)
    the_watcher.call_soon(lambda: the_watcher.call_soon(diary.writer("next round")))
    diary.until("next round")
    assert diary.events == ["called", "next round"]
    for pair in pipes:
        os.close(pair[0])
        os.close(pair[1])


def test_removing_what_is_not_watched_is_no_error(the_watcher: Watcher) -> None:
    the_watcher.remove(12345)
    the_watcher.modify(12345, watcher.READABLE)


def test_modifying_what_another_thread_has_just_closed_is_no_error(the_watcher: Watcher) -> None:
    read_end, write_end = os.pipe()
    the_watcher._callbacks[read_end] = print
    os.close(read_end)
    os.close(write_end)
    the_watcher.modify(read_end, watcher.READABLE)
    del the_watcher._callbacks[read_end]


def test_what_cannot_be_registered_is_not_half_registered(
    the_watcher: Watcher, tmp_path: Any
) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        the_watcher.add(file.fileno(), print)  # an epoll takes no regular file
    assert "watching=0" in repr(the_watcher)


def test_writability_is_told_only_while_it_is_asked_for(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    diary = Diary()

    def on_ready(events: int) -> None:
        the_watcher.modify(pipe[1], watcher.READABLE)
        diary.write(bool(events & watcher.WRITABLE))

    the_watcher.add(pipe[1], on_ready)
    the_watcher.call_soon(diary.writer("before"))
    diary.until("before")
    the_watcher.modify(pipe[1], watcher.READABLE | watcher.WRITABLE)
    diary.until(True)
    the_watcher.call_soon(diary.writer("after"))
    diary.until("after")
    assert diary.events == ["before", True, "after"]
    the_watcher.remove(pipe[1])


def test_calls_come_in_their_order_and_one_at_a_time(the_watcher: Watcher) -> None:
    diary = Diary()
    at_once = threading.Lock()

    def step(number: int) -> None:
        assert at_once.acquire(blocking=False)
        diary.write(number)
        at_once.release()

    for number in range(500):
        the_watcher.call_soon(lambda number=number: step(number))  # type: ignore[misc]
    diary.until_count(500)
    assert diary.events == list(range(500))


def test_an_idle_call_wakes_nobody_and_comes_when_the_thread_is_awake(
    the_watcher: Watcher,
) -> None:
    passed = threading.Event()
    the_watcher.call_soon(passed.set)
    assert passed.wait(PATIENCE)
    order: list[str] = []
    the_watcher.call_idly(lambda: order.append("idly"))
    assert select.select([the_watcher._wake_fd], [], [], 0)[0] == []
    done = threading.Event()
    the_watcher.call_soon(done.set)
    assert done.wait(PATIENCE)
    assert order == ["idly"]


def test_who_waits_to_be_woken_is_called_once_by_whoever_wakes(the_watcher: Watcher) -> None:
    diary = Diary()
    woken = diary.writer("woken")

    def both() -> None:  # in the thread: it does not look in between
        the_watcher.when_woken(woken)
        the_watcher.when_woken(woken)
        diary.write("put")

    the_watcher.call_soon(both)
    diary.until("put")
    the_watcher.call_soon(diary.writer("first"))
    diary.until("first")
    the_watcher.call_soon(diary.writer("second"))
    diary.until("second")
    assert diary.events == ["put", "woken", "first", "second"]


def test_what_the_watcher_watches_wakes_nobody_else(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    read_end, write_end = pipe
    diary = Diary()
    the_watcher.add(read_end, read_into(diary, read_end, the_watcher))
    the_watcher.call_soon(diary.writer("started"))
    diary.until("started")
    asleep_for_long(the_watcher)
    assert not the_watcher.when_woken(diary.writer("woken"))
    os.write(write_end, b"x")
    diary.until("woken")  # by itself, for it will not sleep for long any more
    assert diary.events == ["started", b"x", "woken"]
    the_watcher.remove(read_end)


def asleep_for_long(the_watcher: Watcher) -> None:
    """Wait until the thread waits for something else than its own time."""
    while the_watcher._is_napping:
        os.sched_yield()


def test_a_thread_with_nothing_to_watch_wakes_by_itself(the_watcher: Watcher) -> None:
    diary = Diary()
    assert the_watcher.when_woken(diary.writer("woken"))
    diary.until("woken")


def test_a_thread_that_waits_for_a_far_timer_wakes_by_itself_once_it_has_looked(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    read_end, write_end = pipe
    diary = Diary()
    timer = the_watcher.call_later(PATIENCE * 10, diary.writer("too late"))
    the_watcher.add(read_end, read_into(diary, read_end, the_watcher))
    the_watcher.call_soon(diary.writer("started"))
    diary.until("started")
    asleep_for_long(the_watcher)
    the_watcher.when_woken(diary.writer("woken"))
    os.write(write_end, b"x")  # which wakes it for something else
    diary.until("woken")
    timer.cancel()
    the_watcher.remove(read_end)


def test_a_child_that_was_let_have_the_bell_wakes_by_it(
    the_watcher: Watcher, pipe: tuple[int, int]
) -> None:
    diary = Diary()
    the_watcher.add(pipe[0], lambda _events: None)  # so that there is a thread
    the_watcher.call_soon(diary.writer("started"))
    diary.until("started")
    the_watcher.when_woken(diary.writer("woken"))
    with descriptors.keep(the_watcher.bell):
        pid = os.fork()
    if pid == 0:
        os.eventfd_write(the_watcher.bell, 1)
        os._exit(0)
    os.waitpid(pid, 0)
    diary.until("woken")
    the_watcher.remove(pipe[0])


def test_a_call_from_within_comes_after_what_is_under_way(the_watcher: Watcher) -> None:
    diary = Diary()

    def outer() -> None:
        the_watcher.call_soon(diary.writer("inner"))
        diary.write("outer")

    the_watcher.call_soon(outer)
    diary.until("inner")
    assert diary.events == ["outer", "inner"]


def test_what_a_call_raises_is_reported_and_stops_nothing(
    the_watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    monkeypatch.setattr(sys, "unraisablehook", lambda args: diary.write(repr(args.exc_value)))

    def bad() -> None:
        raise SystemExit(1)

    the_watcher.call_soon(bad)
    the_watcher.call_soon(diary.writer("next"))
    diary.until("next")
    assert diary.events == ["SystemExit(1)", "next"]


def test_timers_come_by_their_time_not_by_their_making(
    the_watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(watcher.time, "monotonic", lambda: now)  # all are made at once
        the_watcher.call_later(0.02, diary.writer("second"))
        the_watcher.call_later(0.01, diary.writer("first"))
        the_watcher.call_later(0.02, diary.writer("third"))
    diary.until("third")
    assert diary.events == ["first", "second", "third"]


def test_a_timer_that_is_cancelled_is_not_called(the_watcher: Watcher) -> None:
    diary = Diary()
    the_watcher.call_later(3600.0, diary.writer("cancelled")).cancel()
    timers: list[watcher.Timer] = []

    def two_that_are_due() -> None:
        timers.append(the_watcher.call_later(0.0, diary.writer("cancelled")))
        the_watcher.call_later(0.0, diary.writer("due"))
        timers[0].cancel()

    the_watcher.call_soon(two_that_are_due)
    diary.until("due")
    assert diary.events == ["due"]


def test_a_timer_that_is_cancelled_when_it_is_too_late_is_no_error(the_watcher: Watcher) -> None:
    diary = Diary()
    timer = the_watcher.call_later(0.0, diary.writer("due"))
    diary.until("due")
    timer.cancel()


def test_cancelled_timers_do_not_keep_the_thread(the_watcher: Watcher) -> None:
    timers = [the_watcher.call_later(3600.0, print) for _ in range(10)]

    def cancel_all() -> None:
        for timer in timers:
            timer.cancel()

    the_watcher.call_soon(cancel_all)
    end(the_watcher)


@pytest.mark.parametrize("seconds", [math.inf, 1e12])
def test_a_timer_far_away_stops_nothing(the_watcher: Watcher, seconds: float) -> None:
    diary = Diary()
    timer = the_watcher.call_later(seconds, diary.writer("never"))
    for word in ("first", "second"):
        the_watcher.call_soon(diary.writer(word))
        diary.until(word)
    the_watcher.call_soon(timer.cancel)
    end(the_watcher)


def test_the_thread_is_a_daemon_with_a_name_and_there_when_needed_only(
    the_watcher: Watcher,
) -> None:
    assert not the_watcher.is_running()
    diary = Diary()
    the_watcher.call_soon(lambda: diary.write(threading.current_thread()))
    diary.until_count(1)
    (thread,) = diary.events
    assert isinstance(thread, threading.Thread)
    assert thread.daemon
    assert thread.name == watcher.THREAD_NAME
    end(the_watcher)
    assert not thread.is_alive()
    the_watcher.call_soon(diary.writer("again"))
    diary.until("again")


def test_only_its_own_thread_is_in_thread(the_watcher: Watcher) -> None:
    diary = Diary()
    the_watcher.call_soon(lambda: diary.write(the_watcher.in_thread()))
    diary.until(True)
    assert not the_watcher.in_thread()


def test_a_later_thread_with_the_same_number_is_not_taken_for_it(
    the_watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    the_watcher.call_soon(lambda: diary.write(threading.get_ident()))
    diary.until_count(1)
    end(the_watcher)
    (ident,) = diary.events
    monkeypatch.setattr(threading, "get_ident", lambda: ident)
    assert not the_watcher.in_thread()


class Late(Watcher):
    """One that finds no work once more than there is none: work came just after the look."""

    def __init__(self) -> None:
        super().__init__()
        self.at_the_end: list[Callable[[], object]] = []

    def _has_work(self) -> bool:
        if super()._has_work():
            return True
        if self._thread is threading.current_thread() and self.at_the_end:
            # Nothing to do, says the look; before the thread says that it ends, this comes.
            self.at_the_end.pop()()
            return False
        return False


def close(one: Watcher) -> None:
    end(one)
    descriptors.close(one._wake_fd)
    descriptors.disown(one._epoll.fileno())
    one._epoll.close()


@pytest.mark.parametrize("when", ["before it says that it ends", "after"])
def test_work_that_comes_while_the_thread_ends_is_done(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(watcher, "LINGER", 0.0)
    diary = Diary()
    late = Late()
    if when == "after":

        class Dropped(Late):
            """Work is added when `_thread` is None already and the last look is to come."""

            def _has_work(self) -> bool:
                if self._thread is None and self.at_the_end:
                    self.at_the_end.pop()()
                return Watcher._has_work(self)

        close(late)
        late = Dropped()
    late.at_the_end.append(lambda: late.call_soon(diary.writer("late")))
    late.call_soon(diary.writer("early"))
    diary.until("late")
    assert diary.events == ["early", "late"]
    close(late)


def test_adding_from_many_threads_while_it_ends_again_and_again_loses_nothing(
    the_watcher: Watcher,
) -> None:
    diary = Diary()

    def add() -> None:
        for number in range(200):
            the_watcher.call_soon(diary.writer(number))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    diary.until_count(800)


def test_a_signal_handler_that_adds_while_the_thread_is_being_started_does_not_hang(
    the_watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs in the very thread that holds the lock of the start."""
    diary = Diary()
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        the_watcher.call_soon(diary.writer("from the handler"))
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    the_watcher.call_soon(diary.writer("from the program"))
    diary.until("from the handler")
    diary.until("from the program")


def test_a_thread_that_cannot_be_started_is_tried_for_again(
    the_watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    diary = Diary()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        with pytest.raises(RuntimeError, match="can't start"):
            the_watcher.call_soon(diary.writer("first"))
    the_watcher.call_soon(diary.writer("second"))
    diary.until("second")
    assert diary.events == ["first", "second"]


def test_out_of_descriptors_it_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors.owned()

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", none_left)
    with pytest.raises(OSError, match="Too many"):
        Watcher()
    assert descriptors.owned() == before


def test_a_forked_child_has_a_watcher_of_its_own_also_when_forked_by_the_thread() -> None:
    diary = Diary()

    def fork_here() -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                mine = watcher.current()
                called = threading.Event()
                mine.call_soon(called.set)
                code = 0 if called.wait(PATIENCE) and not mine.in_thread() else 2
            finally:
                os._exit(code)
        diary.write("forked", pid)

    parents = watcher.current()
    parents.call_soon(fork_here)
    diary.until_count(1)
    ((_, pid),) = diary.lines
    assert isinstance(pid, int)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert watcher.current() is parents


def test_it_waits_without_using_the_processor(the_watcher: Watcher, pipe: tuple[int, int]) -> None:
    """It is woken for what it watches alone: between two events there is no round."""
    diary = Diary()
    rounds = []
    waited = the_watcher._wait_and_call

    def counted() -> bool:
        rounds.append(None)
        return waited()

    the_watcher._wait_and_call = counted  # type: ignore[method-assign]
    the_watcher.add(pipe[0], read_into(diary, pipe[0], the_watcher))
    os.write(pipe[1], b"x")
    diary.until(b"x", True)
    before = len(rounds)
    signal.pthread_kill(threading.get_ident(), 0)
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        os.getpid()
    assert len(rounds) <= before + 1
    the_watcher.remove(pipe[0])
    the_watcher.call_soon(lambda: None)
