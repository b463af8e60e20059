"""``ClusterProcess``: a multiprocessing.Process, and what it can beside that."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mpcluster
from mpcluster import (
    NotMasterError,
    WorkerState,
    above,
    forking,
    life,
    messages,
    watcher,
    workerside,
)
from mpcluster.family import Family
from mpcluster.popen import UNKNOWN_EXITCODE, Popen
from mpcluster.process import ClusterProcess
from tests.happenings import (  # noqa: F401  # one is a fixture
    PATIENCE,
    Diary,
    Gate,
    relatives_fixture,
    settle,
)

pytestmark = pytest.mark.usefixtures("relatives")


def nothing() -> None:
    pass


def answer_once() -> None:
    """Send back the first message that comes."""
    mpcluster.on("message", lambda message: (mpcluster.send(message), os._exit(0)))
    threading.Event().wait()


def for_ever() -> None:
    while True:
        signal.pause()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported, as text: the log and the runner would keep the worker alive by it."""
    seen: list[str] = []
    monkeypatch.setattr(logging.getLogger("mpcluster"), "disabled", True)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(repr(args.exc_value)))
    return seen


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as one:
        yield one


def started(
    target: Callable[..., object] = nothing, *args: object, **kwargs: Any
) -> ClusterProcess:
    one = ClusterProcess(target=target, args=args, **kwargs)
    one.start()
    return one


def ended(one: ClusterProcess) -> int | None:
    one.join(PATIENCE)
    return one.exitcode


# -- as multiprocessing.Process -----------------------------------------------------------------


class TestAsProcess:
    def test_it_is_one(self) -> None:
        one = ClusterProcess(target=nothing)
        assert isinstance(one, multiprocessing.context.ForkProcess)
        assert isinstance(one, multiprocessing.process.BaseProcess)

    def test_it_runs_its_target_with_its_arguments_in_another_process(self) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        with receiver, sender:

            def target(*args: object, **kwargs: object) -> None:
                sender.send((os.getpid(), args, kwargs))

            one = ClusterProcess(target=target, args=(1, 2), kwargs={"a": 3})
            one.start()
            assert receiver.recv() == (one.pid, (1, 2), {"a": 3})
            assert one.pid != os.getpid()
            assert ended(one) == 0

    def test_a_subclass_overrides_run(self) -> None:
        class Sub(ClusterProcess):
            def run(self) -> None:
                sys.exit(7)

        one = Sub()
        one.start()
        assert ended(one) == 7

    def test_names_count_and_can_be_given(self) -> None:
        assert re.fullmatch(r"ClusterProcess-[\d:]+", ClusterProcess().name)
        assert ClusterProcess(name="mine").name == "mine"

    @pytest.mark.parametrize(
        ("how", "code"),
        [
            (lambda: None, 0),
            (lambda: sys.exit(), 0),
            (lambda: sys.exit(None), 0),
            (lambda: sys.exit(5), 5),
            (lambda: sys.exit(False), 0),
            (lambda: os._exit(3), 3),
            (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
            (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
            (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3), -(signal.SIGRTMIN + 3)),
        ],
    )
    def test_the_exit_code_is_that_of_multiprocessing(
        self, how: Callable[[], object], code: int
    ) -> None:
        assert ended(started(how)) == code

    def test_an_exception_ends_it_with_1_and_its_traceback(self, capfd: Any) -> None:
        def target() -> NoReturn:
            raise ValueError("what it was")

        assert ended(started(target)) == 1
        assert "ValueError: what it was" in capfd.readouterr().err

    def test_a_text_to_exit_with_is_printed_and_the_code_is_1(self, capfd: Any) -> None:
        assert ended(started(lambda: sys.exit("the text"))) == 1
        assert "the text" in capfd.readouterr().err

    def test_alive_until_it_has_ended(self, gate: Gate) -> None:
        one = ClusterProcess(target=gate.wait)
        assert one.exitcode is None
        one.start()
        assert one.is_alive()
        assert one.exitcode is None
        assert one in multiprocessing.active_children()
        gate.open()
        assert ended(one) == 0
        assert not one.is_alive()
        assert one not in multiprocessing.active_children()

    def test_join_returns_at_its_timeout_while_it_lives(self, gate: Gate) -> None:
        one = started(gate.wait)
        for timeout in (0, -1, 0.001):
            one.join(timeout)
        assert one.exitcode is None
        gate.open()
        one.join()
        assert one.exitcode == 0

    def test_join_takes_a_time_longer_than_poll_does(self) -> None:
        one = started()
        one.join(1e12)
        assert one.exitcode == 0

    def test_the_sentinel_is_ready_when_it_has_ended_and_stays_so(self, gate: Gate) -> None:
        one = started(gate.wait)
        assert multiprocessing.connection.wait([one.sentinel], 0) == []
        gate.open()
        for _ in range(2):
            assert multiprocessing.connection.wait([one.sentinel], PATIENCE) == [one.sentinel]
        assert ended(one) == 0
        assert multiprocessing.connection.wait([one.sentinel], 0) == [one.sentinel]

    def test_terminate_ends_it_by_sigterm(self) -> None:
        one = started(for_ever)
        one.terminate()
        assert ended(one) == -signal.SIGTERM

    def test_the_child_knows_its_parent_and_that_it_lives(self) -> None:
        def target() -> None:
            parent = multiprocessing.parent_process()
            assert parent is not None
            assert parent.pid == os.getppid()
            assert parent.is_alive()

        assert ended(started(target)) == 0

    def test_starting_twice_is_refused_as_there(self) -> None:
        one = started()
        with pytest.raises(AssertionError, match="cannot start a process twice"):
            one.start()
        assert ended(one) == 0

    def test_a_daemon_may_not_have_children_as_there(self, capfd: Any) -> None:
        def target() -> None:
            ClusterProcess(target=nothing).start()

        one = started(target, daemon=True)
        assert ended(one) == 1
        assert "daemonic processes are not allowed to have children" in capfd.readouterr().err

    def test_closing_it_while_it_runs_is_refused_as_there(self, gate: Gate) -> None:
        one = started(gate.wait)
        with pytest.raises(ValueError, match="Cannot close a process while it is still running"):
            one.close()
        gate.open()
        assert ended(one) == 0
        one.close()
        one.close()
        for use in (one.is_alive, one.join, one.terminate, one.kill, one.disconnect):
            with pytest.raises(ValueError, match="process object is closed"):
                use()

    def test_the_context_makes_them(self) -> None:
        mp = mpcluster.get_context()
        queue = mp.SimpleQueue()
        one = mp.Process(target=queue.put, args=("said",))
        assert isinstance(one, ClusterProcess)
        one.start()
        assert queue.get() == "said"
        assert ended(one) == 0
        queue.close()

    def test_output_that_waits_in_a_buffer_is_written_at_its_end(self, capfd: Any) -> None:
        assert ended(started(lambda: sys.stdout.write("no newline"))) == 0
        assert "no newline" in capfd.readouterr().out

    def test_standard_input_is_closed_to_it(self) -> None:
        assert ended(started(lambda: sys.exit(len(sys.stdin.read())))) == 0

    def test_it_can_be_forked_while_standard_input_is_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        assert ended(started()) == 0


# -- env, cwd --------------------------------------------------------------------------------------


class TestSurroundings:
    def test_env_is_added_to_the_parents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OF_THE_PARENT", "1")

        def target() -> None:
            assert os.environ["OF_THE_PARENT"] == "1"
            assert os.environ["OF_THE_CHILD"] == "2"
            assert os.environ["MPCLUSTER_WORKER_ID"] == "1"

        assert ended(started(target, env={"OF_THE_CHILD": "2"})) == 0
        assert "OF_THE_CHILD" not in os.environ
        assert "MPCLUSTER_WORKER_ID" not in os.environ

    def test_env_is_taken_as_it_was_when_it_was_given(self) -> None:
        env = {"NAME": "given"}
        one = ClusterProcess(target=lambda: sys.exit(os.environ["NAME"] != "given"), env=env)
        env["NAME"] = "changed"
        one.start()
        assert ended(one) == 0

    def test_env_may_be_huge(self) -> None:
        env = {f"NAME_{number}": "x" * 10_000 for number in range(500)}
        one = started(lambda: sys.exit(sum(map(len, os.environ.values())) < 5_000_000), env=env)
        assert ended(one) == 0

    @pytest.mark.parametrize("env", [{"A": 1}, {1: "a"}, {"A": None}, {b"A": "b"}])
    def test_env_maps_strings_to_strings(self, env: Any) -> None:
        with pytest.raises(TypeError, match="env maps names to strings, not "):
            ClusterProcess(env=env)

    @pytest.mark.parametrize("env", [{"A=B": "c"}, {"": "c"}, {"A\0": "c"}, {"A": "b\0c"}])
    def test_env_is_such_as_a_process_can_have(self, env: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="no name and value of an environment"):
            ClusterProcess(env=env)

    def test_cwd_is_the_childs_alone(self, tmp_path: Path) -> None:
        before = Path.cwd()
        assert ended(started(lambda: sys.exit(Path.cwd() != tmp_path), cwd=tmp_path)) == 0
        assert Path.cwd() == before

    def test_a_directory_that_is_none_is_refused_before_anything_is_forked(
        self, tmp_path: Path
    ) -> None:
        one = ClusterProcess(cwd=tmp_path / "none")
        with pytest.raises(NotADirectoryError, match="none"):
            one.start()
        assert one.pid is None
        assert one.state is WorkerState.NEW

    def test_one_that_goes_in_the_last_moment_is_told_of_by_the_child(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        monkeypatch.setattr(os.path, "isdir", lambda _: True)
        one = started(cwd=tmp_path / "gone")
        assert ended(one) == 1
        assert "FileNotFoundError" in capfd.readouterr().err


# -- events, states --------------------------------------------------------------------------------


def say(message: object = "said") -> None:
    mpcluster.send(message)


def stay_until_asked() -> None:
    """A program that minds its own business."""
    threading.Event().wait()


def ask_to_leave(one: ClusterProcess) -> None:
    one.disconnect()


def leave() -> None:
    worker = mpcluster.worker
    assert worker is not None
    worker.disconnect()
    threading.Event().wait()


def leave_at_once() -> None:
    worker = mpcluster.worker
    assert worker is not None
    worker.kill()


def segfault() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


def raise_it() -> NoReturn:
    raise ValueError("on purpose")


#: How it ends: what the child does, what the parent does; exit code, asked for?
WAYS: dict[str, tuple[Callable[[], object], Callable[[ClusterProcess], object] | None, int, bool]]
WAYS = {
    "the parent asks it to leave": (stay_until_asked, ask_to_leave, 0, True),
    "the parent kills it": (for_ever, ClusterProcess.kill, -signal.SIGKILL, False),
    "by another signal": (for_ever, lambda one: one.kill(signal.SIGTERM), -signal.SIGTERM, False),
    "terminate()": (for_ever, ClusterProcess.terminate, -signal.SIGTERM, False),
    "its target returns": (nothing, None, 0, False),
    "it exits": (lambda: sys.exit(7), None, 7, False),
    "it exits without a word": (lambda: os._exit(7), None, 7, False),
    "it raises": (raise_it, None, 1, False),
    "it leaves by itself": (leave, None, 0, True),
    "it leaves at once": (leave_at_once, None, 0, True),
    "it kills itself": (lambda: os.kill(os.getpid(), signal.SIGKILL), None, -9, False),
    "it dies of a segmentation fault": (lambda: segfault(), None, -signal.SIGSEGV, False),
    "it aborts": (lambda: (faulthandler.disable(), os.abort()), None, -signal.SIGABRT, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_end_tells_the_same_events_in_the_same_order(
    way: str, relatives: Family, capfd: Any
) -> None:
    child, parent, exitcode, asked_for = WAYS[way]
    del capfd  # what the child prints of its end
    diary = Diary()
    one = ClusterProcess(target=child)
    states: list[WorkerState] = []
    inside: list[bool] = []
    for event in ("fork", "online", "disconnect", "death"):
        one.on(event, lambda: states.append(one.state))
        one.on(event, lambda: inside.append(one.id in relatives.workers))
    diary.follow(one)
    assert one.state is WorkerState.NEW
    one.start()
    if parent is not None:
        diary.until("online")
        assert not one.exited_after_disconnect
        parent(one)
    diary.until("death")
    assert diary.lines == [("fork",), ("online",), ("disconnect",), ("death",)]
    assert states[2:] == [WorkerState.DISCONNECTED, WorkerState.DEAD]
    assert inside == [True, True, True, False]
    assert one.exitcode == exitcode
    assert one.exited_after_disconnect is asked_for
    assert one.exit_signal == (signal.Signals(-exitcode) if exitcode < 0 else None)
    assert one.is_dead
    assert not one.is_connected
    assert one.id == 1


class TestEvents:
    def test_messages_come_between_online_and_disconnect_in_their_order(self) -> None:
        def target() -> None:
            for number in range(100):
                mpcluster.send(number)

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("death")
        said = [("message", number) for number in range(100)]
        assert diary.lines == [("fork",), ("online",), *said, ("disconnect",), ("death",)]

    def test_who_subscribes_when_all_is_over_hears_all_in_order(self) -> None:
        one = started(say)
        assert ended(one) == 0
        settle()
        diary = Diary()
        the_watcher = watcher.current()
        halted, go_on = threading.Event(), threading.Event()
        the_watcher.call_soon(lambda: (halted.set(), go_on.wait(PATIENCE)))
        assert halted.wait(PATIENCE)
        diary.follow(one)
        go_on.set()
        diary.until("death")
        assert diary.lines == [
            ("fork",), ("online",), ("message", "said"), ("disconnect",), ("death",),
        ]  # fmt: skip

    def test_a_subscription_in_the_middle_changes_no_order(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`fork` is kept and `online` under way when both get a callback."""
        one = ClusterProcess(target=nothing)
        diary = Diary()
        told = one._family.emit

        def emit(worker: ClusterProcess, event: str, *args: object, weight: int = 0) -> None:
            if event == "online":
                diary.follow(one)
            told(worker, event, *args, weight=weight)

        monkeypatch.setattr(one._family, "emit", emit)
        one.start()
        diary.until("death")
        assert diary.events == ["fork", "online", "disconnect", "death"]

    def test_messages_are_kept_for_who_comes_after_the_death_was_told(self) -> None:
        one = started(say)
        diary = Diary()
        one.on("death", diary.writer("death"))
        diary.until("death")
        one.on("message", diary.writer("message"))
        diary.until("message", "said")

    def test_one_subscriber_for_one_time_leaves_the_rest_to_the_next(self) -> None:
        def target() -> None:
            for number in range(3):
                mpcluster.send(number)

        one = started(target)
        assert ended(one) == 0
        settle()
        diary = Diary()
        one.once("message", diary.writer("once"))
        diary.until("once", 0)
        one.on("message", diary.writer("on"))
        diary.until("on", 2)
        assert diary.lines == [("once", 0), ("on", 1), ("on", 2)]

    def test_each_event_comes_once_even_if_many_threads_look(self, gate: Gate) -> None:
        one = ClusterProcess(target=gate.wait)
        diary = Diary().follow(one)
        one.start()

        def look() -> None:
            while one.is_alive():
                one.join(0.001)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join()
        diary.until("death")
        settle()
        assert diary.events == ["fork", "online", "disconnect", "death"]
        assert one.exitcode == 0

    def test_callbacks_run_in_the_watchers_thread(self) -> None:
        one = ClusterProcess(target=nothing)
        diary = Diary()
        one.on("death", lambda: diary.write(watcher.current().in_thread()))
        one.start()
        diary.until(True)

    def test_the_decorator_gives_the_function_back(self) -> None:
        one = ClusterProcess(target=nothing)
        diary = Diary()

        @one.on("death")
        def on_death() -> None:
            diary.write("on")

        @one.once("death")
        def once_at_death() -> None:
            diary.write("once")

        assert callable(on_death)
        assert callable(once_at_death)
        one.start()
        diary.until("once")
        assert diary.events == ["on", "once"]

    def test_who_unsubscribes_hears_no_more(self, gate: Gate) -> None:
        one = ClusterProcess(target=gate.wait)
        diary = Diary()
        callback = one.on("death", diary.writer("never"))
        one.start()
        one.off("death", callback)
        one.on("death", diary.writer("death"))
        gate.open()
        diary.until("death")
        assert diary.events == ["death"]

    def test_a_callback_may_close_what_it_is_told_the_death_of(self) -> None:
        one = ClusterProcess(target=nothing)
        diary = Diary()
        one.on("death", lambda: (one.close(), diary.write("closed")))
        one.start()
        diary.until("closed")

    def test_closing_it_in_the_midst_of_its_messages_keeps_their_order(self) -> None:
        """join() and close() in the first message's callback: the rest is told within."""

        def target() -> None:
            for number in range(5):
                mpcluster.send(number)

        one = ClusterProcess(target=target)
        diary = Diary()

        def on_message(number: int) -> None:
            diary.write(number)
            if number == 0:
                one.join()
                one.close()
                diary.write("closed")

        one.on("message", on_message)
        one.on("death", diary.writer("death"))
        one.start()
        diary.until("closed")
        settle()
        assert diary.events == [0, 1, 2, 3, 4, "death", "closed"]

    def test_disconnect_in_the_callback_of_the_same_worker(self) -> None:
        def target() -> None:
            mpcluster.send("first")
            threading.Event().wait()

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.on("message", lambda _: one.disconnect())
        one.start()
        diary.until("death")
        assert one.exited_after_disconnect
        assert one.exitcode == 0

    def test_disconnect_in_each_of_its_callbacks_is_no_error(self) -> None:
        one = ClusterProcess(target=stay_until_asked)
        diary = Diary()
        for event in ("fork", "online", "disconnect", "death"):
            one.on(event, one.disconnect)
        diary.follow(one)
        one.start()
        diary.until("death")
        assert diary.events == ["fork", "online", "disconnect", "death"]

    def test_a_send_that_may_not_wait_in_a_callback_raises_and_the_watcher_goes_on(
        self, relatives: Family
    ) -> None:
        relatives.settings = mpcluster.Settings(channel_limit=1000)
        diary = Diary()
        one = ClusterProcess(target=for_ever)

        def fill() -> None:
            try:
                for _ in range(100):
                    one.send(b"x" * 100_000)
            except mpcluster.ChannelFullError:
                diary.write("full")

        one.on("online", fill)
        one.start()
        diary.until("full")
        one.kill()
        assert ended(one) == -signal.SIGKILL


# -- the watcher's side: bad control messages, races ----------------------------------------------


def control(message: object) -> None:
    worker = mpcluster.worker
    assert worker is not None
    worker.tell(message)


@pytest.mark.parametrize(
    "message",
    [
        messages.Online(),
        messages.Listening(family=12345, sockname=None),
        messages.Listening(family=socket.AF_INET, sockname="what"),
        messages.Reply(7),
        messages.Disconnect(),
        messages.Bound(key=None),  # type: ignore[arg-type]
        messages.Release(key="what"),  # type: ignore[arg-type]
        messages.Gone(route=(), crashed=False),
        messages.Request(number=1, body="what"),
        messages.Request(number="x", body=None, route=(1, "y")),  # type: ignore[arg-type]
        "a text",
        None,
    ],
    ids=repr,
)
def test_a_control_message_out_of_place_takes_nothing_along(
    message: object, reported: list[str]
) -> None:
    """It is told of at most; what stands behind it in the same lot arrives."""
    del reported

    def target() -> None:
        control(message)
        mpcluster.send("behind it")

    one = ClusterProcess(target=target)
    diary = Diary().follow(one)
    one.start()
    diary.until("death")
    assert ("message", "behind it") in diary.lines
    assert diary.events.count("online") == 1


@pytest.mark.parametrize(
    "message",
    [messages.Online(), messages.Reply(7), messages.Bound(key=None), "a text", None],  # type: ignore[arg-type]
    ids=repr,
)
def test_a_control_message_that_a_worker_does_not_know_takes_nothing_along(
    message: object,
) -> None:
    one = ClusterProcess(target=answer_once)
    diary = Diary().follow(one)
    one.start()
    assert one._life is not None
    assert one._life.downstream().order(message)
    one.send("behind it")
    diary.until("death")
    assert ("message", "behind it") in diary.lines
    assert one.exitcode == 0


def test_a_death_while_the_watcher_sits_in_a_callback_is_told_though_it_is_closed() -> None:
    """The round of the watcher that is under way has looked before the end."""
    sitting, go_on = threading.Event(), threading.Event()
    diary = Diary()
    one = ClusterProcess(target=for_ever)
    one.on("death", diary.writer("death"))
    one.start()
    watcher.current().call_soon(lambda: (sitting.set(), go_on.wait(PATIENCE)))
    assert sitting.wait(PATIENCE)
    one.kill()
    one.join()
    closing = threading.Thread(target=one.close)
    closing.start()
    go_on.set()
    closing.join()
    diary.until("death")


def test_close_does_not_wait_for_a_callback_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, relatives: Family
) -> None:
    monkeypatch.setattr(life, "CLOSE_PATIENCE", 0.01)
    sitting, go_on = threading.Event(), threading.Event()
    diary = Diary()
    one = ClusterProcess(target=for_ever)
    one.on("death", diary.writer("death"))
    one.start()
    pidfd = one.sentinel
    watcher.current().call_soon(lambda: (sitting.set(), go_on.wait(PATIENCE)))
    assert sitting.wait(PATIENCE)
    one.kill()
    one.join()
    one.close()
    assert diary.events == []
    go_on.set()
    diary.until("death")
    assert not relatives.workers
    settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)


def test_an_upper_layer_that_fails_at_a_death_does_not_hide_it(
    monkeypatch: pytest.MonkeyPatch, reported: list[str]
) -> None:
    class Failing(above.Above):
        def gone(self, worker: ClusterProcess, *, crashed: bool) -> None:
            raise RuntimeError("in the registry")

    monkeypatch.setattr(above, "current", Failing())
    diary = Diary()
    one = ClusterProcess(target=nothing)
    one.on("death", diary.writer("death"))
    one.start()
    diary.until("death")
    assert reported == ["RuntimeError('in the registry')"]


def test_a_backlog_told_while_the_watcher_flushes_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watcher has written all, another thread finds no room: who asks last, wins."""

    def target() -> None:
        worker = mpcluster.worker
        assert worker is not None
        mpcluster.send("reads nothing")  # who is spoken to before he has begun, reads at once
        release_me.wait()
        total = 0

        def counted(message: bytes | None) -> None:
            nonlocal total
            if message is None:
                os._exit(0)
            total += len(message)
            if total == 10_000_000:
                mpcluster.send(total)

        worker.on("message", counted)
        threading.Event().wait()

    with Gate() as release_me:
        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "reads nothing")
        assert one._life is not None
        channel = one._life.downstream().channel
        flush = channel.flush
        once = iter([True])
        sent = threading.Event()

        def flush_then_send() -> bool:
            waited = channel.wants_write
            done = flush()
            if waited and done and next(once, None):
                sender = threading.Thread(target=lambda: send_much(b"y" * 5000))
                sender.start()
                sender.join()
                sent.set()
            return done

        def send_much(piece: bytes) -> None:
            for _ in range(1000):  # more than the kernel has room for
                one.send(piece)

        monkeypatch.setattr(channel, "flush", flush_then_send)
        send_much(b"x" * 5000)
        release_me.open()
        assert sent.wait(PATIENCE)
        diary.until("message", 10_000_000)
        one.send(None)
        diary.until("death")


# -- leaving ---------------------------------------------------------------------------------------


def latest_timer() -> float:
    """When the last thing that the watcher has to do is due, on the monotonic clock."""
    timers = [timer for _, _, timer in watcher.current()._timers]
    return max(timer.due for timer in timers if not timer.is_cancelled)


class TestLeaving:
    def test_disconnect_returns_the_worker_and_marks_it_at_once(self) -> None:
        one = started(stay_until_asked)
        one.kill(signal.SIGSTOP)  # it cannot be quicker than the lines below
        assert one.disconnect() is one
        assert one.exited_after_disconnect
        assert one.state is WorkerState.DRAINING
        one.kill(signal.SIGCONT)
        assert ended(one) == 0

    def test_a_second_call_changes_nothing(self) -> None:
        diary = Diary()
        one = ClusterProcess(target=stay_until_asked)
        diary.follow(one)
        one.start()
        for _ in range(3):
            assert one.disconnect(timeout=100) is one
        diary.until("death")
        assert one.exitcode == 0
        assert diary.events == ["fork", "online", "disconnect", "death"]
        assert one.disconnect() is one

    def test_a_second_call_does_not_change_the_time_that_the_first_has_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def target() -> None:
            mpcluster.on("disconnect", nothing)
            mpcluster.on("message", os._exit)
            mpcluster.send("ready")
            stay_until_asked()

        signals: list[int] = []
        send_signal = Popen.send_signal

        def noted(self: Popen, sig: int) -> None:
            signals.append(sig)
            send_signal(self, sig)

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "ready")
        monkeypatch.setattr(Popen, "send_signal", noted)
        one.disconnect(timeout=3600)
        one.disconnect(timeout=0)
        for _ in range(3):  # it is asked, its timer is set, its timer is due
            settle()
        assert signals
        assert latest_timer() > time.monotonic() + 1000
        one.send(7)
        assert ended(one) == 7
        assert signal.SIGTERM not in signals

    def test_on_the_dead_it_is_no_error_and_no_leave_that_was_asked_for(self) -> None:
        one = started()
        assert ended(one) == 0
        assert one.disconnect() is one
        assert one.disconnect(timeout=0) is one
        assert not one.exited_after_disconnect

    def test_right_after_the_start_it_reaches_the_worker(self) -> None:
        """Before its handler stands, before it is online: 30 at once."""
        several = [started(stay_until_asked).disconnect() for _ in range(30)]
        assert [ended(one) for one in several] == [0] * 30

    def test_it_is_called_again_until_it_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call may come in the instant before its main thread waits for something in C."""
        calls = threading.Semaphore(0)
        send_signal = Popen.send_signal

        def noted(self: Popen, sig: int) -> None:
            send_signal(self, sig)
            if sig == signal.SIGURG:
                calls.release()

        monkeypatch.setattr(Popen, "send_signal", noted)
        monkeypatch.setattr(life, "FIRST_KNOCK", 0.001)
        one = started(stay_until_asked)
        one.kill(signal.SIGSTOP)
        one.disconnect()
        for _ in range(4):
            assert calls.acquire(timeout=PATIENCE)
        one.kill(signal.SIGCONT)
        assert ended(one) == 0

    def test_one_that_wants_to_leave_does_not_wait_for_a_parent_in_a_callback(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def target() -> None:
            assert mpcluster.worker is not None
            mpcluster.worker.disconnect()
            stay_until_asked()

        monkeypatch.setattr(workerside, "PARENT_PATIENCE", 0.01)
        sitting, go_on = threading.Event(), threading.Event()
        watcher.current().call_soon(lambda: (sitting.set(), go_on.wait(PATIENCE)))
        assert sitting.wait(PATIENCE)
        try:
            one = started(target)
            assert ended(one) == 0
        finally:
            go_on.set()

    def test_a_program_that_sleeps_leaves(self) -> None:
        one = started(time.sleep, 1000)
        one.disconnect()
        assert ended(one) == 0

    def test_a_program_that_swallows_the_exit_is_ended_all_the_same(self) -> None:
        def target() -> None:
            while True:
                try:
                    time.sleep(1000)
                except SystemExit:
                    pass

        one = started(target)
        one.disconnect()
        assert ended(one) == 0

    def test_one_whose_program_is_over_but_for_a_thread_keeps_its_own_code(self) -> None:
        def target() -> NoReturn:
            # Called when the main thread begins to wait for the others.
            threading._register_atexit(mpcluster.send, "over")  # type: ignore[attr-defined]
            threading.Thread(target=stay_until_asked).start()
            sys.exit(3)

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "over")
        one.disconnect()
        assert ended(one) == 3

    def test_what_it_has_to_clean_up_is_cleaned_up(self, tmp_path: Path) -> None:
        def target() -> None:
            try:
                mpcluster.send("here")
                time.sleep(1000)
            finally:
                (tmp_path / "cleaned").touch()

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "here")
        one.disconnect()
        assert ended(one) == 0
        assert (tmp_path / "cleaned").exists()

    def test_what_cleans_up_is_not_interrupted_by_a_further_call(
        self, tmp_path: Path, gate: Gate
    ) -> None:
        def target() -> None:
            try:
                mpcluster.send("here")
                stay_until_asked()
            finally:
                mpcluster.send("cleans up")
                gate.wait()
                (tmp_path / "cleaned").touch()

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "here")
        one.disconnect()
        diary.until("message", "cleans up")
        one.kill(signal.SIGURG)
        gate.open()
        assert ended(one) == 0
        assert (tmp_path / "cleaned").exists()

    def test_one_that_does_not_leave_in_time_gets_sigterm(self) -> None:
        def target() -> None:
            mpcluster.on("disconnect", nothing)
            for_ever()

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("online")
        one.disconnect(timeout=0)
        assert ended(one) == -signal.SIGTERM
        assert one.exited_after_disconnect

    def test_and_then_sigkill(self, relatives: Family) -> None:
        relatives.settings = mpcluster.Settings(kill_timeout=0.01)

        def target() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            mpcluster.on("disconnect", nothing)
            mpcluster.send("deaf")
            for_ever()

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "deaf")
        one.disconnect(timeout=0)
        assert ended(one) == -signal.SIGKILL

    def test_it_has_kill_timeout_from_the_one_to_the_other(
        self, relatives: Family, gate: Gate
    ) -> None:
        relatives.settings = mpcluster.Settings(kill_timeout=3600)

        def asked(*_: object) -> None:
            os.write(write_end, b".")  # no message: it may come in the midst of the one below
            gate.wait()
            os._exit(9)

        def target() -> None:
            signal.signal(signal.SIGTERM, asked)
            mpcluster.on("disconnect", nothing)
            mpcluster.send("ready")
            for_ever()

        read_end, write_end = os.pipe()
        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "ready")
        one.disconnect(timeout=0)
        is_asked = select.select([read_end], [], [], PATIENCE)[0]
        os.close(read_end)
        os.close(write_end)
        assert is_asked
        settle()
        assert latest_timer() > time.monotonic() + 1000
        gate.open()
        assert ended(one) == 9

    def test_one_whose_queue_is_full_hears_it_too(self, relatives: Family) -> None:
        relatives.settings = mpcluster.Settings(channel_limit=1000, send_timeout=0.01)
        one = ClusterProcess(target=lambda: (say(), stay_until_asked()))
        diary = Diary().follow(one)
        one.start()
        diary.until("message", "said")  # what comes from now on is not looked for
        with pytest.raises(mpcluster.ChannelFullError):
            for _ in range(1000):
                one.send(b"x" * 10_000)
        one.disconnect()
        assert ended(one) == 0

    def test_timers_of_a_worker_that_left_keep_nothing(self) -> None:
        one = started(stay_until_asked)
        one.disconnect(timeout=3600)
        assert ended(one) == 0
        one.close()
        settle()
        assert all(timer.is_cancelled for _, _, timer in watcher.current()._timers)

    def test_kill_on_the_dead_is_no_error(self) -> None:
        one = started()
        assert ended(one) == 0
        one.kill()
        one.kill(signal.SIGTERM)
        one.terminate()
        assert one.exitcode == 0

    def test_kill_never_meets_another_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the parent it goes by the pidfd, not by a number that may be taken again."""
        monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("by number"))
        one = started(for_ever)
        one.kill()
        assert ended(one) == -signal.SIGKILL

    def test_in_another_process_a_signal_goes_to_the_right_one(self) -> None:
        """The pidfd is the parent's: in a sibling its number may mean another process."""
        victim = started(for_ever)

        def target() -> None:
            own = [started(for_ever) for _ in range(5)]  # their pidfds take the free numbers
            victim.terminate()
            for one in own:
                assert one.is_alive()
                one.kill()

        killer = started(target)
        assert ended(killer) == 0
        assert ended(victim) == -signal.SIGTERM

    def test_a_stopped_worker_can_be_killed(self) -> None:
        one = started(for_ever)
        one.kill(signal.SIGSTOP)
        one.kill()
        assert ended(one) == -signal.SIGKILL


# -- wrong calls -----------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_moment_of_the_start(relatives: Family) -> None:
    def target() -> None:
        assert mpcluster.worker is not None
        mpcluster.send(mpcluster.worker._settings.kill_timeout)

    one = ClusterProcess(target=target)
    diary = Diary().follow(one)
    relatives.settings = mpcluster.Settings(kill_timeout=17.0)
    one.start()
    diary.until("message", 17.0)


def test_a_signal_that_has_no_name_is_told_by_its_number() -> None:
    one = started(lambda: signal.raise_signal(signal.SIGRTMIN + 1))
    assert ended(one) == -(signal.SIGRTMIN + 1)
    assert one.exit_signal == signal.SIGRTMIN + 1


class TestWrongCalls:
    def test_before_the_start(self) -> None:
        one = ClusterProcess(name="mine")
        calls: list[Callable[[], object]] = [
            lambda: one.send(1), one.disconnect, one.kill, one.terminate,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises((ValueError, AttributeError)):
                call()
        with pytest.raises(ValueError, match=r"mine was not started; call start\(\) first"):
            one.send(1)
        assert one.id is None
        assert not one.is_dead
        assert not one.is_connected
        assert one.exit_signal is None
        assert not one.exited_after_disconnect

    @pytest.mark.parametrize("timeout", [-1, -0.1, float("nan")])
    def test_a_timeout_that_is_none(self, timeout: float) -> None:
        one = started(for_ever)
        with pytest.raises(ValueError, match="timeout must not be negative, not .* seconds"):
            one.disconnect(timeout=timeout)
        assert not one.exited_after_disconnect
        one.kill()

    def test_a_timeout_that_is_no_number(self) -> None:
        one = started(for_ever)
        with pytest.raises(TypeError, match="timeout must be a number of seconds, not '5'"):
            one.disconnect(timeout="5")  # type: ignore[arg-type]
        assert not one.exited_after_disconnect
        one.kill()

    def test_an_unknown_event(self) -> None:
        one = ClusterProcess()
        with pytest.raises(ValueError, match="there is no event 'exit'; there are: fork, online"):
            one.on("exit", nothing)

    def test_in_another_process_than_the_parent(self) -> None:
        one = started(for_ever)

        def target() -> None:
            for call in (lambda: one.send(1), one.disconnect):
                try:
                    call()
                except NotMasterError as error:
                    mpcluster.send(str(error))

        other = ClusterProcess(target=target)
        diary = Diary().follow(other)
        other.start()
        diary.until("death")
        texts = [line[1] for line in diary.lines if line[0] == "message"]
        assert len(texts) == 2
        for text, verb in zip(texts, ("send to", "disconnect"), strict=True):
            assert f"only the process that started {one.name} can {verb} it" in str(text)
            assert f"(pid {os.getpid()}; this is pid {other.pid})" in str(text)
        one.kill()

    def test_to_send_to_the_dead(self) -> None:
        one = started()
        assert ended(one) == 0
        settle()
        with pytest.raises(mpcluster.ChannelClosedError, match=rf"worker 1 \(pid {one.pid}\)"):
            one.send("late")

    def test_a_message_that_does_not_pickle_names_it_and_the_channel_lives_on(self) -> None:
        one = ClusterProcess(target=answer_once)
        diary = Diary().follow(one)
        one.start()

        class Explosive:
            def __reduce__(self) -> NoReturn:
                raise RuntimeError("boom")

        with pytest.raises(mpcluster.SerializationError, match="boom"):
            one.send(Explosive())
        with pytest.raises(mpcluster.SerializationError, match="lock"):
            one.send({"job": threading.Lock()})
        one.send("good")
        diary.until("message", "good")


# -- reaping ---------------------------------------------------------------------------------------


class TestReaping:
    def test_whoever_waits_for_it_beside_us_takes_the_code_but_not_the_death(self) -> None:
        one = ClusterProcess(target=for_ever)
        diary = Diary().follow(one)
        sitting, go_on = threading.Event(), threading.Event()
        one.start()
        watcher.current().call_soon(lambda: (sitting.set(), go_on.wait(PATIENCE)))
        assert sitting.wait(PATIENCE)
        one.kill()
        assert os.waitpid(one.pid or 0, 0)[0] == one.pid
        go_on.set()
        diary.until("death")
        assert one.exitcode in {UNKNOWN_EXITCODE, -signal.SIGKILL}
        assert not one.is_alive()
        one.join()

    def test_any_number_of_threads_may_wait_for_it(self, gate: Gate) -> None:
        one = started(gate.wait)
        codes: list[int | None] = []
        threads = [threading.Thread(target=lambda: codes.append(ended(one))) for _ in range(10)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join()
        assert codes == [0] * 10

    def test_a_signal_handler_may_look_while_it_is_being_reaped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The handler runs in the very thread that is about to reap, under its lock."""
        one = started(for_ever)
        waitpid = os.waitpid
        looked: list[bool] = []

        def interrupted(pid: int, options: int) -> tuple[int, int]:
            monkeypatch.setattr(os, "waitpid", waitpid)
            looked.append(one.is_alive())
            return waitpid(pid, options)

        monkeypatch.setattr(os, "waitpid", interrupted)
        assert one.is_alive()
        assert looked
        one.kill()

    def test_a_sentinel_does_not_wait_for_a_silent_grandchild(self) -> None:
        """It holds copies of every descriptor of the child, and lives on."""
        with Gate() as gate:
            held, _ours = socket.socketpair()

            def target() -> None:
                if os.fork() == 0:
                    gate.wait()
                    os._exit(0)
                os._exit(4)

            one = ClusterProcess(target=target)
            diary = Diary().follow(one)
            one.start()
            diary.until("death")
            assert one.exitcode == 4
            assert select.select([one.sentinel], [], [], 0)[0]
            gate.open()
            held.close()
            _ours.close()

    def test_children_of_others_are_left_alone(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(9)
        one = started()
        assert ended(one) == 0
        settle()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


# -- nothing is left behind ------------------------------------------------------------------------


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def warm_up() -> None:
    """What a process makes once and keeps: watcher, leash, its own pidfd."""
    one = started()
    ended(one)
    one.close()
    settle()


def open_here() -> list[str]:
    """What this process has open, by the kernel's names."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return kinds


class TestNothingLeft:
    def test_after_close_no_descriptor_is_left(self) -> None:
        warm_up()
        before = open_descriptors()
        for _ in range(20):
            one = started(say)
            assert ended(one) == 0
            one.close()
        assert open_descriptors() == before

    def test_without_close_they_go_with_the_object_and_need_no_collector(self) -> None:
        warm_up()
        gc.collect()
        before = open_descriptors()
        gc.disable()
        try:
            for _ in range(20):
                one = started()
                assert ended(one) == 0
                settle()
            del one
            settle()
            assert open_descriptors() == before
        finally:
            gc.enable()

    def test_a_child_has_no_descriptor_of_its_siblings_or_its_parents_bookkeeping(self) -> None:
        others = [started(for_ever) for _ in range(5)]
        for other in others[:2]:
            other.send("so there is more than a bare descriptor")

        one = ClusterProcess(target=lambda: mpcluster.send(open_here()))
        diary = Diary().follow(one)
        one.start()
        diary.until("death")
        (kinds,) = [line[1] for line in diary.lines if line[0] == "message"]
        assert isinstance(kinds, list)
        assert not [kind for kind in kinds if "eventpoll" in kind]
        # The bell, by which it wakes its parent when it has something to say: this once.
        assert len([kind for kind in kinds if "eventfd" in kind]) == 1
        # Its parent's pidfd, for `parent_process()`; not those of the others.
        assert len([kind for kind in kinds if "pidfd" in kind]) <= 1
        # Its end of the channel is a socket of its own; the parent's ends are not there.
        ours = set()
        for other in others:
            assert other._popen is not None
            ours.add(os.readlink(f"/proc/self/fd/{other._popen.connection}"))
        assert len(ours) == 5
        assert not ours.intersection(kinds)
        for other in others:
            other.kill()

    def test_a_child_that_has_rung_the_bell_has_it_no_more(self) -> None:
        def target() -> None:
            mpcluster.send("said")
            mpcluster.send(open_here())

        one = ClusterProcess(target=target)
        diary = Diary().follow(one)
        one.start()
        diary.until("death")
        *_, kinds = [line[1] for line in diary.lines if line[0] == "message"]
        assert isinstance(kinds, list)
        assert not [kind for kind in kinds if "eventfd" in kind]

    def test_a_fork_that_fails_leaves_nothing_and_can_be_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, relatives: Family
    ) -> None:
        warm_up()
        before = open_descriptors()
        one = ClusterProcess(target=nothing)

        def no_room(_keep: tuple[int, ...] = ()) -> int:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        with monkeypatch.context() as patch:
            patch.setattr(forking, "fork", no_room)
            with pytest.raises(BlockingIOError):
                one.start()
        assert open_descriptors() == before
        assert not relatives.workers
        assert one.state is WorkerState.NEW
        assert one.pid is None
        one.start()
        assert ended(one) == 0
        one.close()

    def test_ids_are_never_used_again(self) -> None:
        ids = []
        for _ in range(3):
            one = started()
            ids.append(one.id)
            ended(one)
        assert ids == sorted(set(ids), key=lambda number: number or 0)
        assert ids[0] == 1


def test_a_process_object_cannot_be_sent_to_a_worker() -> None:
    one = started(for_ever)
    with pytest.raises(mpcluster.SerializationError):
        one.send(one)
    one.kill()


def test_a_user_message_that_looks_like_a_control_message_is_a_users() -> None:
    def target() -> None:
        mpcluster.send(messages.Leaving())

    one = ClusterProcess(target=target)
    diary = Diary().follow(one)
    one.start()
    diary.until("death")
    assert ("message", messages.Leaving()) in diary.lines
    assert not one.exited_after_disconnect
