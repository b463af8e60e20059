"""A worker's life as its parent takes it in: who is woken for it, and what comes late."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

import mpcluster
from mpcluster import ChannelClosedError, ClusterProcess, WorkerState, descent, family, watcher
from mpcluster.family import Family
from mpcluster.life import Life
from mpcluster.popen import Popen
from mpcluster.watcher import Watcher
from tests.happenings import PATIENCE, Diary, Gate, relatives_fixture, settle

__all__ = ["relatives_fixture"]

pytestmark = pytest.mark.usefixtures("relatives")


def nothing() -> None:
    """What most of these workers do."""


def test_a_start_that_nobody_listens_to_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Callable[[], object]] = []
    one = ClusterProcess(target=nothing)
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "call_soon", lambda _self, call: calls.append(call))
        one.start()
        one.join()
        one.close()
    assert calls == []


def test_one_that_nobody_listens_to_does_not_occupy_the_watcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[object] = []
    call = Watcher._call

    def counted(self: Watcher, function: Callable[..., object], *args: object) -> None:
        calls.append(function)
        call(self, function, *args)

    one = ClusterProcess(target=nothing)
    settle()
    monkeypatch.setattr(Watcher, "_call", counted)
    one.start()
    one.join()
    one.close()
    monkeypatch.undo()
    settle()
    assert not [function for function in calls if getattr(function, "__name__", "") == "_on_end"]


def test_one_that_nobody_joins_or_listens_to_is_reaped_all_the_same(relatives: Family) -> None:
    one = ClusterProcess(target=nothing)
    one.start()
    assert one.id is not None
    with relatives._told:  # without `wait_told`, which would have the watcher look after it
        assert relatives._told.wait_for(lambda: one.id not in relatives.workers, PATIENCE)
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, one.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def test_one_that_has_ended_unheard_goes_with_its_object_whoever_has_looked() -> None:
    """``multiprocessing`` keeps those that it has not been asked about."""
    one = ClusterProcess(target=nothing)
    one.start()
    select.select([one.sentinel], [], [])
    assert one.is_dead
    settle()
    reference = weakref.ref(one)
    del one
    assert reference() is None


def test_of_those_that_have_ended_unheard_the_last_ones_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(family, "MOST_DEAD_KEPT", 3)
    with watcher_busy():  # it looks after none by itself
        several = [ClusterProcess(target=nothing) for _ in range(5)]
        for one in several:
            one.start()
            one.join()
    diary = Diary()
    mpcluster.on("death", lambda worker: diary.write(worker.id))
    settle()
    assert diary.events == [one.id for one in several[2:]]


def test_who_asks_for_the_living_is_not_told_of_one_that_has_ended() -> None:
    with Gate() as gate, watcher_busy():
        one = ClusterProcess(target=gate.wait)
        one.start()
        assert list(mpcluster.workers) == [one.id]
        gate.open()
        select.select([one.sentinel], [], [])
        assert mpcluster.workers == {}


STORY = ("fork", "online", "disconnect", "death")


@contextlib.contextmanager
def watcher_busy() -> Iterator[None]:
    """What is asked of the watcher inside, it does afterwards."""
    entered, done = threading.Event(), threading.Event()

    def callback() -> None:
        entered.set()
        done.wait(PATIENCE)

    watcher.current().call_soon(callback)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        done.set()


def test_who_subscribes_after_all_of_it_is_told_all_in_order_and_once() -> None:
    one = ClusterProcess(target=nothing)
    diary = Diary()
    with watcher_busy():
        one.start()
        one.join()
        assert (one.state, one.is_connected, one.exitcode) == (WorkerState.DEAD, False, 0)
        for event in STORY:
            one.on(event, diary.writer(event))
    diary.until("death")
    one.on("death", diary.writer("again"))
    settle()
    assert diary.events == list(STORY)


def test_who_subscribes_to_all_after_all_of_it_is_told_of_each_in_order(
    relatives: Family,
) -> None:
    workers = [ClusterProcess(target=nothing) for _ in range(3)]
    diary = Diary()
    with watcher_busy():
        for worker in workers:
            worker.start()
            worker.join()
        for event in STORY:
            relatives.emitter.add(event, diary.writer(event))
    diary.until_count(12)
    assert diary.lines == [(event, worker) for worker in workers for event in STORY]
    assert [worker.state for worker in workers] == [WorkerState.DEAD] * 3
    relatives.emitter.clear()


def test_one_that_was_killed_before_it_could_say_that_it_runs_is_not_told_to_have_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descent, "write", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    one = ClusterProcess(target=nothing)
    one.start()
    one.join()
    diary = Diary()
    with watcher_busy():
        for event in STORY:
            one.on(event, diary.writer(event))
    diary.until("death")
    assert diary.events == ["fork", "disconnect", "death"]


def test_what_one_has_said_and_nobody_has_read_at_its_end_is_kept() -> None:
    """It is joined before the watcher has heard the bell."""
    one = ClusterProcess(target=lambda: mpcluster.send("said"))
    with watcher_busy():
        one.start()
        one.join()
    diary = Diary()
    one.on("message", diary.writer("message"))
    diary.until("message", "said")


def test_one_that_another_thread_has_reaped_before_its_start_is_through_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`active_children()` looks at every process that is forked, and does not ask whose it is."""
    adopt = Popen._adopt

    def adopt_and_reap(self: Popen, pid: int, ours: int) -> None:
        adopt(self, pid, ours)
        self.wait()

    monkeypatch.setattr(Popen, "_adopt", adopt_and_reap)
    with watcher_busy():
        one = ClusterProcess(target=nothing)
        one.start()
        assert one.state is WorkerState.DEAD
        assert mpcluster.workers == {}


def test_one_that_has_ended_unheard_takes_what_comes_too_late_as_any_dead_one() -> None:
    with watcher_busy():
        one = ClusterProcess(target=nothing)
        one.start()
        one.join()
        with pytest.raises(ChannelClosedError, match="the channel to worker"):
            one.send("late")
        assert one.disconnect() is one
        one.kill()
        assert not one.exited_after_disconnect
        one.close()


def test_a_dead_one_that_nobody_keeps_is_not_kept_for_who_might_subscribe(
    relatives: Family,
) -> None:
    with watcher_busy():
        one = ClusterProcess(target=nothing)
        one.start()
        one.join()
        gone = weakref.ref(one)
        del one
        assert gone() is None
    diary = Diary()
    relatives.emitter.add("death", diary.writer("death"))
    settle()
    assert diary.events == []
    relatives.emitter.clear()


def test_a_dead_one_that_has_spoken_to_nobody_is_let_go_with_its_object() -> None:
    one = ClusterProcess(target=mpcluster.send, args=("said",))
    one.start()
    assert mpcluster.join(PATIENCE)
    settle()
    gone = weakref.ref(one)
    del one
    assert gone() is None


def test_a_callback_that_closes_one_while_its_past_is_told_hears_the_rest_within() -> None:
    one = ClusterProcess(target=nothing)
    one.start()
    one.join()
    diary = Diary()

    def close() -> None:
        diary.write("fork")
        one.close()

    with watcher_busy():
        one.on("fork", close)
        for event in STORY[1:]:
            one.on(event, diary.writer(event))
    diary.until("death")
    settle()
    assert diary.events == list(STORY)


def test_one_that_nobody_listens_to_is_read_when_it_speaks() -> None:
    """Else it would wait for ever: the kernel has no room for so much."""

    def target() -> None:
        for _ in range(20):
            mpcluster.send(b"x" * 100_000)

    one = ClusterProcess(target=target)
    one.start()
    one.join(PATIENCE)
    assert one.exitcode == 0
    diary = Diary()
    one.on("message", diary.writer("message"))
    diary.until_count(20)


def test_one_that_speaks_before_its_start_is_through_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It rings, the watcher looks, and only then is known whose bell that was."""

    def target() -> None:
        mpcluster.send(b"x" * 4_000_000)

    when_woken = Watcher.when_woken
    rings = watcher.current().rings

    def when_woken_late(self: Watcher, call: Callable[[], object]) -> bool:
        while self.rings == rings:
            settle_by_polling(self)
        return when_woken(self, call)

    monkeypatch.setattr(Watcher, "when_woken", when_woken_late)
    one = ClusterProcess(target=target)
    one.start()
    one.join(PATIENCE)
    assert one.exitcode == 0


def settle_by_polling(the_watcher: Watcher) -> None:
    """Wait for the thread's next round, without waking it by the bell."""
    read_end, write_end = os.pipe()
    passed = threading.Event()
    try:
        os.write(write_end, b".")
        the_watcher.add(read_end, lambda _events: (the_watcher.remove(read_end), passed.set()))
        assert passed.wait(PATIENCE)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_in_a_forked_child_nobody_looks_after_the_parents_workers() -> None:
    with Gate() as gate:
        one = ClusterProcess(target=gate.wait)
        one.start()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                one.is_connected, one.state  # noqa: B018
                code = watcher.current().is_running()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.open()
        one.join(PATIENCE)


def test_one_that_nobody_listened_to_is_online_for_who_asks_and_who_subscribes() -> None:
    runs, say = os.pipe()

    def target() -> None:
        os.write(say, b".")
        gate.wait()

    with Gate() as gate:
        for ask in (True, False):
            one = ClusterProcess(target=target)
            one.start()
            assert os.read(runs, 1) == b"."
            if ask:
                assert one.state is WorkerState.ONLINE
                assert one.is_connected
            diary = Diary()
            one.on("online", diary.writer("online"))
            diary.until("online")
            assert one.state is WorkerState.ONLINE
            gate.open()
            one.join(PATIENCE)
            assert one.exitcode == 0
    os.close(runs)
    os.close(say)


def test_one_that_only_runs_and_ends_needs_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ClusterProcess(target=nothing)
    diary = Diary()
    for event in ("online", "disconnect", "death"):
        one.on(event, diary.writer(event))
    one.start()
    life = one._life
    assert life is not None
    monkeypatch.setattr(life, "downstream", lambda: pytest.fail("a channel was made"))
    diary.until("death")
    assert diary.events == ["online", "disconnect", "death"]
    assert not one.is_connected
    one.join()


def test_who_subscribes_to_fork_when_nothing_else_has_come_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descent, "write", lambda *_: None)  # it does not say that it runs
    with Gate() as gate:
        one = ClusterProcess(target=gate.wait)
        one.start()
        diary = Diary()
        one.on("fork", diary.writer("fork"))
        diary.until("fork")
        assert one.state is WorkerState.STARTING
        one.on("fork", diary.writer("fork"))
        settle()
        assert diary.events == ["fork"]
        gate.open()
        one.join(PATIENCE)
        assert one.exitcode == 0


def test_who_subscribes_to_fork_of_all_is_told_of_those_that_live(
    relatives: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "write", lambda *_: None)
    with Gate() as gate:
        workers = [ClusterProcess(target=gate.wait) for _ in range(2)]
        for worker in workers:
            worker.start()
        diary = Diary()
        relatives.emitter.add("fork", diary.writer("fork"))
        diary.until("fork", workers[0])
        diary.until("fork", workers[1])
        gate.open(2)
        for worker in workers:
            worker.join(PATIENCE)
        relatives.emitter.clear()


def test_what_was_sent_before_it_is_watched_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may find a worker in `workers` and send before its start is through."""
    received, answer = os.pipe()

    def target() -> None:
        worker = mpcluster.worker
        assert worker is not None
        worker.on("message", lambda message: os.write(answer, b"%d" % len(message)))
        signal.pause()

    one = ClusterProcess(target=target)
    begin = Life.begin

    def send_first(life: Life) -> None:
        monkeypatch.setattr(Life, "begin", begin)
        one.send(b"x" * (4 << 20))  # more than the kernel takes at once, of a child that may sleep
        begin(life)

    monkeypatch.setattr(Life, "begin", send_first)
    one.on("message", print)  # so that it has a life from the beginning
    one.start()
    try:
        assert os.read(received, 100) == b"%d" % (4 << 20)
    finally:
        one.kill()
        one.join()
        os.close(received)
        os.close(answer)


def test_to_close_one_whose_death_is_told_waits_for_nothing(
    relatives: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ClusterProcess(target=nothing)
    diary = Diary().follow(one)
    one.start()
    diary.until("death")
    settle()
    monkeypatch.setattr(relatives, "wait_told", lambda *_: pytest.fail("it waited"))
    one.close()
    monkeypatch.undo()


def test_one_that_cannot_be_watched_is_killed_and_its_death_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's limit on what epolls wait for (`max_user_watches`) is reached."""
    with Gate() as gate:
        one = ClusterProcess(target=gate.wait)
        diary = Diary()
        for event in ("disconnect", "death"):
            one.on(event, diary.writer(event))
        add = Watcher.add

        def no_room(
            self: Watcher, fd: int, callback: Callable[[int], object], events: int = 1
        ) -> None:
            assert one._popen is not None
            if fd == one._popen.sentinel:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add(self, fd, callback, events)

        monkeypatch.setattr(Watcher, "add", no_room)
        with pytest.raises(OSError, match="No space left"):
            one.start()
        diary.until("death")
        assert diary.events == ["disconnect", "death"]
        assert one.exitcode == -signal.SIGKILL
        assert one.state is WorkerState.DEAD


def test_a_callback_that_closes_the_worker_while_its_start_goes_on_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both descriptors are registered, or neither is: none is closed in between."""
    registered = Diary()
    one = ClusterProcess(target=nothing)

    def close() -> None:
        one.join()
        one.close()
        registered.write("closed")

    add = Watcher.add

    def add_slowly(
        self: Watcher, fd: int, callback: Callable[[int], object], events: int = 1
    ) -> None:
        add(self, fd, callback, events)
        assert one._popen is not None
        if fd != one._popen.sentinel:
            # The watcher has seen that it runs, and wants to go on to its end.
            one._popen.wait()
        else:
            registered.write("watched")

    monkeypatch.setattr(Watcher, "add", add_slowly)
    one.on("disconnect", close)
    one.start()
    registered.until("closed")
    assert registered.events == ["watched", "closed"]


def test_a_fork_during_a_callback_is_known_to_the_child() -> None:
    """What the watcher was printing at that moment has locks that did not come along."""
    read_end, write_end = os.pipe()

    def tell() -> None:
        os.write(write_end, b"1" if watcher.was_calling() else b"0")

    with Gate() as gate:
        entered = Diary()

        def callback() -> None:
            entered.write("in")
            gate.wait()

        watcher.current().call_soon(callback)
        entered.until("in")
        beside = ClusterProcess(target=tell)
        beside.start()
        assert os.read(read_end, 1) == b"1"
        gate.open()
        settle()
        beside.join()
    os.close(read_end)
    os.close(write_end)
