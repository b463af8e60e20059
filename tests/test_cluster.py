"""What ``import mpcluster as cluster`` gives: fork, workers, events, messages, the end."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import mpcluster as cluster
from mpcluster import NotMasterError, Settings, WorkerState, ending, family, watcher, workerside
from mpcluster.events import KeptEvents
from mpcluster.family import Family
from tests.happenings import (  # noqa: F401  # one is a fixture
    PATIENCE,
    Diary,
    Gate,
    relatives_fixture,
    settle,
)
from tests.running import environment, python

pytestmark = pytest.mark.usefixtures("relatives")


def nothing() -> None:
    pass


def for_ever() -> None:
    while True:
        signal.pause()


def wait() -> None:
    threading.Event().wait()


def echo() -> None:
    cluster.on("message", cluster.send)
    wait()


def fail(text: str) -> NoReturn:
    raise ValueError(text)


class Bad:
    """Whose unpickling raises."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return fail, (self.text,)


def follow(*names: str) -> Diary:
    """Write down events of the whole cluster, with the worker's id."""
    diary = Diary()
    for name in names or ("fork", "online", "message", "disconnect", "death"):
        cluster.on(name, lambda worker, *args, name=name: diary.write(name, worker.id, *args))
    return diary


class TestFork:
    def test_it_gives_a_started_worker(self) -> None:
        worker = cluster.fork(nothing)
        assert isinstance(worker, cluster.ClusterProcess)
        assert worker.pid is not None
        assert worker.id == 1
        worker.join(PATIENCE)

    def test_the_target_gets_its_arguments(self) -> None:
        diary = follow("message")
        cluster.fork(lambda *args, **kwargs: cluster.send((args, kwargs)), (1, 2), {"a": 3})
        diary.until("message", 1, ((1, 2), {"a": 3}))

    def test_ids_count_and_are_not_used_again(self) -> None:
        ids = []
        for _ in range(3):
            worker = cluster.fork(nothing)
            ids.append(worker.id)
            worker.join(PATIENCE)
        assert ids == [1, 2, 3]

    def test_workers_are_the_living_by_their_id(self) -> None:
        one, two = cluster.fork(for_ever), cluster.fork(for_ever)
        assert cluster.workers == {1: one, 2: two}
        one.kill()
        diary = follow("death")
        diary.until("death", 1)
        assert cluster.workers == {2: two}
        two.kill()
        diary.until("death", 2)
        assert cluster.workers == {}

    def test_name_env_cwd_and_daemon_are_passed_on(self, tmp_path: Any) -> None:
        diary = follow("message")

        def target() -> None:
            cluster.send((os.environ["A"], os.getcwd()))

        worker = cluster.fork(target, name="mine", env={"A": "b"}, cwd=tmp_path, daemon=True)
        assert worker.name == "mine"
        assert worker.daemon
        diary.until("message", 1, ("b", str(tmp_path)))

    @pytest.mark.parametrize("target", [42, "print", [], object()])
    def test_a_target_that_cannot_be_called_is_refused(self, target: Any) -> None:
        with pytest.raises(TypeError, match="target must be callable, not "):
            cluster.fork(target)
        assert not cluster.workers

    @pytest.mark.parametrize(
        "wrong", [{"args": 5}, {"kwargs": 5}, {"env": {"a": 1}}, {"cwd": 5}, {"nosuch": 1}]
    )
    def test_other_wrong_arguments_are_refused_before_anything_is_forked(
        self, wrong: dict[str, Any]
    ) -> None:
        with pytest.raises(TypeError):
            cluster.fork(nothing, **wrong)
        assert not cluster.workers

    def test_arguments_without_a_target_are_refused(self) -> None:
        with pytest.raises(TypeError, match="there is no target"):
            cluster.fork(args=(1,))

    def test_in_a_thread(self) -> None:
        diary = follow()
        thread = threading.Thread(target=cluster.fork, args=(nothing,))
        thread.start()
        thread.join()
        diary.until("death", 1)
        assert diary.events == ["fork", "online", "disconnect", "death"]

    def test_in_many_threads_at_once(self, relatives: Family) -> None:
        diary = follow("death")
        threads = [threading.Thread(target=cluster.fork, args=(nothing,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        diary.until_count(20)
        assert {line[1] for line in diary.lines} == set(range(1, 21))
        assert not relatives.workers


class TestWhoIAm:
    def test_the_master(self) -> None:
        assert cluster.is_master is True
        assert cluster.is_worker is False
        assert cluster.worker is None

    def test_a_worker(self) -> None:
        def target() -> None:
            me = cluster.worker
            assert me is not None
            cluster.send(
                (cluster.is_master, cluster.is_worker, me.id, me.pid == os.getpid(),
                 me.is_connected, cluster.workers, os.environ["MPCLUSTER_WORKER_ID"])
            )  # fmt: skip

        diary = follow("message")
        cluster.fork(nothing)
        cluster.fork(target)
        diary.until("message", 2, (False, True, 2, True, True, {}, "2"))

    def test_a_worker_may_not_fork(self) -> None:
        def target() -> None:
            try:
                cluster.fork(nothing)
            except NotMasterError as error:
                cluster.send(str(error))

        diary = follow("message")
        worker = cluster.fork(target)
        diary.until_count(1)
        text = str(diary.lines[0][2])
        assert f"fork() was called in worker 1 (pid {worker.pid}); only the master forks" in text
        assert "if cluster.is_master:" in text

    def test_a_child_of_a_plain_fork_is_a_master_with_no_workers(self) -> None:
        cluster.fork(for_ever)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if cluster.is_master and not cluster.workers else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_a_program_that_a_worker_executes_is_a_master_again(self) -> None:
        code = (
            "import os, mpcluster as c; "
            "print(c.is_master, c.worker, 'MPCLUSTER_WORKER_ID' in os.environ)"
        )

        def target() -> None:
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=environment(MPCLUSTER_WORKER_ID=os.environ["MPCLUSTER_WORKER_ID"]),
                capture_output=True,
                text=True,
                check=False,
            )
            cluster.send(done.stdout + done.stderr)

        diary = follow("message")
        cluster.fork(target)
        diary.until("message", 1, "True None False\n")

    def test_an_unknown_name_is_no_attribute(self) -> None:
        with pytest.raises(AttributeError, match="module 'mpcluster' has no attribute 'nosuch'"):
            _ = cluster.nosuch

    def test_all_that_is_public_is_there(self) -> None:
        for name in cluster.__all__:
            getattr(cluster, name)


class TestEvents:
    def test_fork_comes_after_fork_has_returned(self) -> None:
        """Also inside a callback, where the watcher's thread is the one that forks."""
        diary = Diary()
        cluster.on("fork", lambda worker: diary.write("event", worker.id))

        def again() -> None:
            worker = cluster.fork(nothing)
            diary.write("returned", worker.id)

        first = cluster.fork(nothing)
        first.once("death", again)
        diary.until("event", 2)
        assert diary.lines == [("event", 1), ("returned", 2), ("event", 2)]

    def test_on_a_worker_without_and_on_the_cluster_with_the_worker(self) -> None:
        diary = Diary()
        cluster.on("message", lambda *args: diary.write("cluster", *args))
        worker = cluster.fork(cluster.send, ("said",))
        worker.on("message", lambda *args: diary.write("worker", *args))
        diary.until("cluster", worker, "said")
        settle()
        assert ("worker", "said") in diary.lines or len(diary.lines) == 1

    def test_the_workers_own_callbacks_come_first(self) -> None:
        diary = Diary()
        with Gate() as gate:
            cluster.on("death", lambda _: diary.write("cluster"))
            worker = cluster.fork(gate.wait)
            worker.on("death", diary.writer("worker"))
            gate.open()
            diary.until("cluster")
        assert diary.events == ["worker", "cluster"]

    def test_death_is_told_when_all_that_can_be_known_is_known(self) -> None:
        diary = Diary()

        @cluster.on("death")
        def on_death(worker: cluster.ClusterProcess) -> None:
            diary.write(
                worker.exitcode, worker.is_dead, worker.state, worker.is_alive(),
                worker.id in cluster.workers,
            )  # fmt: skip

        assert callable(on_death)
        cluster.fork(lambda: os._exit(3))
        diary.until(3, True, WorkerState.DEAD, False, False)

    def test_who_subscribes_when_all_are_dead_hears_of_all(self) -> None:
        for _ in range(10):
            cluster.fork(cluster.send, ("said",))
        assert cluster.join(PATIENCE)
        diary = follow("message")
        diary.until_count(10)
        follow_deaths = follow("death")
        follow_deaths.until_count(10)
        assert {line[1] for line in follow_deaths.lines} == set(range(1, 11))

    def test_what_is_kept_of_the_dead_is_bounded(self) -> None:
        many = family.MOST_DEAD_KEPT + 20
        for _ in range(many):
            cluster.fork(nothing).join()
        assert cluster.join(PATIENCE)
        settle()
        diary = follow("death")
        diary.until("death", many)
        assert len(diary.lines) == family.MOST_DEAD_KEPT

    def test_messages_that_nobody_hears_are_bounded_by_their_bytes(self, relatives: Family) -> None:
        relatives._kept = KeptEvents(weight=10_000)

        def target() -> None:
            for number in range(5):
                cluster.send((number, b"x" * 4000))

        diary = Diary()
        cluster.fork(target)
        assert cluster.join(PATIENCE)
        cluster.on("message", lambda _, message: diary.write(message[0]))
        diary.until(4)
        assert diary.events == [3, 4]

    def test_once_is_once_for_all_workers(self) -> None:
        diary = Diary()
        cluster.once("death", diary.writer("once"))
        cluster.on("death", diary.writer("on"))
        for _ in range(3):
            cluster.fork(nothing)
        diary.until_count(4)
        assert sorted(map(str, diary.events)) == ["on", "on", "on", "once"]

    def test_off_unsubscribes_one_or_all(self) -> None:
        diary = Diary()
        callback = cluster.on("death", diary.writer("never"))
        cluster.off("death", callback)
        cluster.on("online", diary.writer("never"))
        cluster.off("online")
        cluster.on("death", diary.writer("death"))
        cluster.fork(nothing)
        diary.until_count(1)
        assert diary.events == ["death"]

    @pytest.mark.parametrize("function", [cluster.on, cluster.once, cluster.off])
    def test_an_unknown_event_is_refused(self, function: Callable[..., object]) -> None:
        with pytest.raises(ValueError, match="there is no event 'exit'; there are: fork, onl"):
            function("exit", nothing)

    def test_a_callback_that_cannot_be_called_is_refused(self) -> None:
        with pytest.raises(TypeError, match="must be callable"):
            cluster.on("death", 5)  # type: ignore[call-overload]

    @pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
    def test_a_callback_that_raises_is_reported_and_stops_nothing(
        self, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        reported: list[str] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(repr(args)))
        diary = Diary()

        def bad(_worker: object) -> NoReturn:
            raise error

        cluster.on("death", bad)
        cluster.on("death", diary.writer("the next callback"))
        with caplog.at_level(logging.ERROR, "mpcluster"):
            cluster.fork(nothing).join()
            diary.until_count(1)
            cluster.fork(nothing).join()
            diary.until_count(2)
        assert len(reported) == 2
        assert len(caplog.records) == 2
        assert error.__name__ in caplog.text
        for record in caplog.records:
            record.exc_info, record.args = None, ()  # the error's frames hold the worker

    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_a_callback_for_messages_that_raises_stops_none_of_the_others(
        self, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        """Neither the worker's other callbacks, nor everybody's, nor the next message."""
        reported: list[str] = []
        monkeypatch.setattr(
            sys, "unraisablehook", lambda args: reported.append(args.exc_type.__name__)
        )
        diary = Diary()

        def bad(*_: object) -> NoReturn:
            raise error

        def target() -> None:
            gate.wait()
            cluster.send(1)
            cluster.send(2)

        with Gate() as gate:
            worker = cluster.fork(target)
            worker.on("message", bad)
            worker.on("message", diary.writer("its own"))
            cluster.on("message", bad)
            cluster.on("message", lambda _, message: diary.write("everybody's", message))
            gate.open()
            diary.until("everybody's", 2)
        assert diary.lines == [
            ("its own", 1), ("everybody's", 1), ("its own", 2), ("everybody's", 2),
        ]  # fmt: skip
        assert reported == [error.__name__] * 4
        for record in caplog.records:
            record.exc_info, record.args = None, ()  # the error's frames hold the worker

    def test_a_thread_may_subscribe_and_unsubscribe_while_events_come(self) -> None:
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                callback = cluster.on("message", lambda *_: None)
                cluster.off("message", callback)

        diary = follow("message")
        thread = threading.Thread(target=busy)
        thread.start()

        def target() -> None:
            for number in range(300):
                cluster.send(number)

        cluster.fork(target)
        diary.until("message", 1, 299)
        stop.set()
        thread.join()
        assert [line[2] for line in diary.lines] == list(range(300))

    def test_who_subscribes_as_a_message_comes_hears_the_earlier_ones_first(
        self, relatives: Family
    ) -> None:
        """They were kept before, in another look at the channel."""
        kept, heard = threading.Semaphore(0), Diary()

        class Telling(KeptEvents):
            def keep(self, *args: Any, **kwargs: Any) -> bool:
                try:
                    return super().keep(*args, **kwargs)
                finally:
                    if args[2] == "message":
                        kept.release()

        def subscribe() -> int:
            cluster.on("message", lambda _, message: heard.write(message))
            return 3

        def target() -> None:
            cluster.send(1)
            cluster.send(2)
            gate.wait()
            cluster.send(Late())

        relatives._kept = Telling()
        Late.arrives = subscribe
        with Gate() as gate:
            cluster.fork(target)
            for _ in range(2):
                assert kept.acquire(timeout=PATIENCE)
            gate.open()
            heard.until(3)
        assert heard.events == [1, 2, 3]

    def test_once_death_is_told_nothing_older_is(self) -> None:
        diary = follow("death")
        cluster.fork(nothing)
        diary.until("death", 1)
        late = follow("fork", "online", "disconnect")
        settle()
        assert late.lines == []


class Late:
    """A message at whose arrival something happens."""

    arrives: Callable[[], object]

    def __reduce__(self) -> Any:
        return _arrive, ()


def _arrive() -> object:
    return Late.arrives()


class TestInCallbacks:
    def test_fork(self) -> None:
        diary = Diary()

        @cluster.on("death")
        def restart(worker: cluster.ClusterProcess) -> None:
            diary.write(worker.id)
            if (worker.id or 0) < 20:
                cluster.fork(nothing)

        assert callable(restart)
        cluster.fork(nothing)
        diary.until(20)
        assert diary.events == list(range(1, 21))

    def test_a_blocking_join_of_another_worker(self) -> None:
        diary = Diary()

        @cluster.on("death")
        def on_death(worker: cluster.ClusterProcess) -> None:
            if worker.id == 1:
                other = cluster.fork(lambda: os._exit(5))
                other.join(PATIENCE)
                diary.write("joined", other.exitcode)
            diary.write("death", worker.id)

        assert callable(on_death)
        cluster.fork(nothing)
        diary.until("death", 2)
        assert diary.lines == [("joined", 5), ("death", 1), ("death", 2)]

    def test_joining_the_worker_whose_callback_it_is(self) -> None:
        diary = Diary()
        worker = cluster.fork(nothing)
        worker.on("disconnect", lambda: (worker.join(PATIENCE), diary.write(worker.exitcode)))
        diary.until(0)

    def test_cluster_join_waits_for_the_processes(self) -> None:
        diary = Diary()
        first = cluster.fork(nothing)

        def on_death() -> None:
            other = cluster.fork(for_ever)
            diary.write("in time", cluster.join(0))
            other.kill()
            diary.write("joined", cluster.join(PATIENCE))

        first.on("death", on_death)
        diary.until("joined", True)
        assert diary.lines == [("in time", False), ("joined", True)]

    def test_send_broadcast_disconnect_setup(self) -> None:
        diary = Diary()
        cluster.on("message", lambda worker, message: diary.write(worker.id, message))

        @cluster.on("online")
        def on_online(worker: cluster.ClusterProcess) -> None:
            worker.send("sent")
            cluster.broadcast("broadcast")
            cluster.setup(kill_timeout=3)

        assert callable(on_online)
        cluster.fork(echo)
        diary.until(1, "broadcast")
        cluster.disconnect(diary.writer("left"))
        diary.until("left")
        assert diary.lines == [(1, "sent"), (1, "broadcast"), ("left",)]
        assert cluster.settings.kill_timeout == 3

    def test_listen(self) -> None:
        diary = Diary()

        def on_death() -> None:
            with cluster.listen(("127.0.0.1", 0)) as listener:
                diary.write(listener.getsockname()[0])

        cluster.fork(nothing).on("death", on_death)
        diary.until("127.0.0.1")


class TestMessages:
    def test_both_ways(self) -> None:
        diary = follow("message")
        worker = cluster.fork(echo)
        for message in ("text", {"a": [1, None]}, b"bytes"):
            worker.send(message)
            diary.until("message", 1, message)

    def test_lambdas_closures_and_classes_of_the_program(self) -> None:
        factor = 6

        def target() -> None:
            class Mine:
                value = factor * 7

            cluster.send(lambda number: number * factor)
            cluster.send(Mine)

        diary = Diary()
        cluster.on(
            "message",
            lambda _, message: diary.write(
                message.value if isinstance(message, type) else message(7)
            ),
        )
        cluster.fork(target)
        diary.until_count(2)
        assert diary.events == [42, 42]

    def test_a_socket_travels(self) -> None:
        ours, theirs = socket.socketpair()

        def target() -> None:
            cluster.on("message", lambda sock: sock.sendall(b"from the worker"))
            wait()

        worker = cluster.fork(target)
        worker.send(theirs)
        theirs.close()
        with ours:
            assert ours.recv(100) == b"from the worker"

    def test_broadcast_reaches_every_worker(self) -> None:
        diary = follow("message")
        for _ in range(3):
            cluster.fork(echo)
        cluster.broadcast("to all")
        diary.until_count(3)
        assert sorted(map(str, diary.lines)) == [
            str(("message", number, "to all")) for number in (1, 2, 3)
        ]

    def test_broadcast_without_workers_or_with_dead_ones_is_no_error(self) -> None:
        cluster.broadcast("nobody")
        cluster.fork(nothing).join()
        cluster.broadcast("nobody")

    def test_broadcast_reaches_the_others_where_one_has_just_died(self) -> None:
        """Nobody here has noticed yet."""
        go_on = threading.Event()
        diary = follow("message")
        mortal, other = cluster.fork(echo), cluster.fork(echo)
        for worker in (mortal, other):
            worker.send("here")
            diary.until("message", worker.id, "here")
        watcher.current().call_soon(lambda: go_on.wait(PATIENCE))
        try:
            mortal.kill()
            mortal.join()
            assert mortal.is_connected
            cluster.broadcast("everybody")
        finally:
            go_on.set()
        diary.until("message", other.id, "everybody")

    def test_broadcast_of_what_does_not_pickle_raises_and_nobody_gets_it(self) -> None:
        worker = cluster.fork(echo)
        with pytest.raises(cluster.SerializationError, match="lock"):
            cluster.broadcast(threading.Lock())
        diary = follow("message")
        worker.send("next")
        diary.until_count(1)
        assert diary.lines == [("message", 1, "next")]

    def test_broadcast_reaches_the_others_where_one_does_not_read(self) -> None:
        cluster.setup(channel_limit=1000, send_timeout=0.05)
        deaf = cluster.fork(lambda: (cluster.send("here"), for_ever()), share_ports=False)
        diary = follow("message")
        diary.until("message", 1, "here")
        with pytest.raises(cluster.ChannelFullError):
            while True:
                deaf.send(b"x" * 10_000)
        cluster.fork(echo)
        with pytest.raises(ExceptionGroup, match="not every worker") as caught:
            cluster.broadcast("to all")
        assert [type(error) for error in caught.value.exceptions] == [cluster.ChannelFullError]
        diary.until("message", 2, "to all")

    def test_send_in_the_master_says_what_to_do(self) -> None:
        with pytest.raises(cluster.ClusterError, match=r"worker.send\(message\) of one worker"):
            cluster.send("to whom?")

    def test_a_message_that_cannot_be_unpickled_is_reported_and_the_next_arrives(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reported: list[str] = []
        monkeypatch.setattr(logging.getLogger("mpcluster"), "disabled", True)
        monkeypatch.setattr(
            sys, "unraisablehook", lambda args: reported.append(str(args.exc_value))
        )

        def target() -> None:
            cluster.send(Bad("not here"))
            cluster.send("next")

        diary = follow("message")
        cluster.fork(target)
        diary.until("message", 1, "next")
        assert diary.lines == [("message", 1, "next")]
        (text,) = reported
        assert "worker 1 (pid" in text
        assert "not here" in text

    def test_in_the_worker_a_message_that_cannot_be_unpickled_is_reported_and_the_next_arrives(
        self,
    ) -> None:
        def target() -> None:
            logging.getLogger("mpcluster").propagate = False
            sys.unraisablehook = lambda args: cluster.send(str(args.exc_value))
            echo()

        diary = follow("message")
        worker = cluster.fork(target)
        worker.send("first")
        diary.until("message", 1, "first")
        worker.send(Bad("not there"))
        worker.send("next")
        diary.until("message", 1, "next")
        _, reported, _ = (str(line[2]) for line in diary.lines)
        assert "a message of the master" in reported
        assert "not there" in reported

    def test_in_the_worker_once_and_off(self) -> None:
        def target() -> None:
            cluster.once("message", lambda message: cluster.send(("once", message)))
            callback = cluster.on("message", lambda message: cluster.send(("never", message)))
            cluster.off("message", callback)
            cluster.on("message", lambda message: cluster.send(("on", message)))
            cluster.send("here")
            wait()

        diary = follow("message")
        worker = cluster.fork(target)
        diary.until("message", 1, "here")
        worker.send(1)
        worker.send(2)
        diary.until("message", 1, ("on", 2))
        assert [line[2] for line in diary.lines[1:]] == [("once", 1), ("on", 1), ("on", 2)]

    def test_in_the_worker_a_callback_that_raises_stops_none_of_the_others(self) -> None:
        def bad(_message: object) -> NoReturn:
            raise ValueError("on purpose")

        def target() -> None:
            logging.getLogger("mpcluster").propagate = False
            sys.unraisablehook = lambda args: cluster.send(str(args.exc_value))
            cluster.on("message", bad)
            cluster.on("message", cluster.send)
            cluster.send("here")
            wait()

        diary = follow("message")
        worker = cluster.fork(target)
        diary.until("message", 1, "here")
        worker.send(1)
        worker.send(2)
        diary.until("message", 1, 2)
        assert [line[2] for line in diary.lines[1:]] == ["on purpose", 1, "on purpose", 2]

    def test_in_the_worker_messages_that_nobody_hears_are_bounded_by_their_bytes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        come = threading.Event()  # in the worker, a copy of its own

        class Bounded(KeptEvents):
            def __init__(self) -> None:
                super().__init__(weight=10_000)

            def keep(self, *args: Any, **kwargs: Any) -> bool:
                fitted = super().keep(*args, **kwargs)
                if args[3][0][0] == 4:
                    come.set()
                return fitted

        monkeypatch.setattr(workerside, "KeptEvents", Bounded)

        def target() -> None:
            assert cluster.worker is not None
            cluster.worker.attend()
            assert come.wait(PATIENCE)
            cluster.on("message", lambda message: cluster.send(message[0]))
            wait()

        diary = follow("message")
        worker = cluster.fork(target)
        for number in range(5):
            worker.send((number, b"x" * 4000))
        diary.until("message", 1, 4)
        assert [line[2] for line in diary.lines] == [3, 4]


class TestSettings:
    def test_they_hold_for_later_forks_and_are_cumulative(self) -> None:
        cluster.setup(kill_timeout=1)
        before = cluster.fork(for_ever)
        cluster.setup(channel_limit=99)
        after = cluster.fork(for_ever)
        assert before._settings == Settings(kill_timeout=1)
        assert after._settings == Settings(kill_timeout=1, channel_limit=99)
        assert cluster.settings == after._settings

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(TypeError, match="no setting 'exec'; there are: scheduling, "):
            cluster.setup(exec="x")

    def test_an_unknown_policy_is_refused_at_once(self) -> None:
        with pytest.raises((ValueError, TypeError), match="fastest"):
            cluster.setup(scheduling="fastest")
        assert cluster.settings == Settings()


class TestDisconnect:
    def test_the_callback_comes_after_the_last_death(self) -> None:
        diary = follow("death")
        with Gate() as gate:

            def slow() -> None:
                cluster.on("disconnect", lambda: (gate.wait(), os._exit(0)))
                cluster.send("here")
                wait()

            for target in (wait, slow, wait):
                cluster.fork(target)
            follow("message").until("message", 2, "here")
            cluster.disconnect(diary.writer("all gone"))
            diary.until("death", 1)
            diary.until("death", 3)
            assert ("all gone",) not in diary.lines
            gate.open()
            diary.until("all gone")
        assert diary.lines[-1] == ("all gone",)
        assert len(diary.lines) == 4

    def test_it_returns_at_once_and_twice_is_no_error(self) -> None:
        diary = Diary()
        cluster.fork(wait)
        cluster.disconnect(diary.writer("first"))
        cluster.disconnect(diary.writer("second"))
        diary.until("second")
        assert diary.events == ["first", "second"]

    def test_without_workers_the_callback_comes_all_the_same(self) -> None:
        diary = Diary()
        cluster.disconnect(diary.writer("nobody"))
        diary.until("nobody")
        cluster.disconnect()

    def test_what_is_forked_meanwhile_is_not_waited_for(self) -> None:
        diary = Diary()
        cluster.fork(wait)
        cluster.on("death", lambda worker: worker.id == 1 and cluster.fork(for_ever))
        cluster.disconnect(diary.writer("those are gone"))
        diary.until("those are gone")
        assert list(cluster.workers) == [2]

    def test_the_timeout_reaches_those_that_do_not_leave(self) -> None:
        def stubborn() -> None:
            cluster.on("disconnect", nothing)
            cluster.send("here")
            wait()

        diary = follow("message")
        worker = cluster.fork(stubborn)
        diary.until("message", 1, "here")
        cluster.disconnect(diary.writer("left"), timeout=0)
        diary.until("left")
        assert worker.exitcode == -signal.SIGTERM

    @pytest.mark.parametrize("wrong", [{"callback": 5}, {"timeout": -1}, {"timeout": "x"}])
    def test_a_wrong_argument_asks_nobody_to_leave(self, wrong: dict[str, Any]) -> None:
        worker = cluster.fork(for_ever)
        with pytest.raises((TypeError, ValueError)):
            cluster.disconnect(**wrong)
        assert not worker.exited_after_disconnect

    def test_in_a_worker_the_handler_of_the_program_replaces_the_rest(self) -> None:
        def target() -> None:
            left = threading.Event()

            @cluster.on("disconnect")
            def on_disconnect() -> None:
                cluster.send("asked")
                left.set()

            assert callable(on_disconnect)
            cluster.send("here")
            left.wait()
            sys.exit(9)

        diary = follow("message", "death")
        worker = cluster.fork(target)
        diary.until("message", 1, "here")
        cluster.disconnect()
        diary.until("death", 1)
        assert diary.lines[1:] == [("message", 1, "asked"), ("death", 1)]
        assert worker.exitcode == 9
        assert worker.exited_after_disconnect


class TestJoin:
    def test_without_workers(self) -> None:
        assert cluster.join() is True
        assert cluster.join(0) is True

    def test_it_returns_when_every_death_has_been_told(self) -> None:
        diary = follow("death")
        for _ in range(5):
            cluster.fork(nothing)
        assert cluster.join() is True
        assert len(diary.lines) == 5

    def test_a_death_whose_callback_goes_on_is_not_yet_told(self) -> None:
        entered, go_on = threading.Event(), threading.Event()
        cluster.on("death", lambda _: (entered.set(), go_on.wait(PATIENCE)))
        worker = cluster.fork(nothing)
        assert entered.wait(PATIENCE)
        assert worker.is_dead
        assert not cluster.join(0)
        go_on.set()
        assert cluster.join(PATIENCE)

    def test_who_has_subscribed_before_it_has_heard_of_the_dead_after_it(self) -> None:
        go_on = threading.Event()
        cluster.fork(nothing)
        assert cluster.join(PATIENCE)
        watcher.current().call_soon(lambda: go_on.wait(PATIENCE))
        diary = follow("death")
        assert not cluster.join(0)
        go_on.set()
        assert cluster.join(PATIENCE)
        assert diary.lines == [("death", 1)]

    def test_it_tells_that_time_was_too_short(self) -> None:
        cluster.fork(for_ever)
        assert cluster.join(0) is False
        assert cluster.join(0.01) is False
        assert cluster.join(-1) is False

    def test_it_waits_for_what_callbacks_fork(self) -> None:
        cluster.fork(nothing)
        cluster.on("death", lambda worker: (worker.id or 0) < 5 and cluster.fork(nothing))
        assert cluster.join() is True
        assert cluster.fork(nothing).id == 6
        assert cluster.join() is True

    def test_in_many_threads(self) -> None:
        with Gate() as gate:
            cluster.fork(gate.wait)
            results: list[bool] = []
            threads = [
                threading.Thread(target=lambda: results.append(cluster.join(PATIENCE)))
                for _ in range(5)
            ]
            for thread in threads:
                thread.start()
            gate.open()
            for thread in threads:
                thread.join()
        assert results == [True] * 5


class TestNested:
    def test_a_worker_has_workers_of_its_own_with_ids_of_their_own(self) -> None:
        def inner() -> None:
            me = cluster.worker
            assert me is not None
            cluster.send((me.id, cluster.is_worker))

        def outer() -> None:
            seen: Any = threading.Event()
            process = cluster.ClusterProcess(target=inner)
            heard: list[object] = []
            process.on("message", heard.append)
            process.on("death", seen.set)
            process.start()
            seen.wait(PATIENCE)
            cluster.send((process.id, list(cluster.workers), heard, process.exitcode))

        diary = follow("message")
        cluster.fork(outer)
        diary.until("message", 1, (1, [], [(1, True)], 0))

    def test_their_listen_is_answered_by_the_root(self) -> None:
        """The innermost asks; the port is the very one that the outermost shares."""

        def innermost() -> None:
            with cluster.listen(("127.0.0.1", port)) as listener:
                os._exit(listener.getsockname()[1] != port)

        def outer() -> None:
            with cluster.listen(("127.0.0.1", port)):
                processes = [cluster.ClusterProcess(target=innermost) for _ in range(3)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
                cluster.send([process.exitcode for process in processes])

        with cluster.listen(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            diary = follow("message", "death")
            cluster.fork(outer)
            diary.until("message", 1, [0, 0, 0])
            diary.until("death", 1)  # by itself, so that nobody keeps its listeners for it

    def test_an_error_of_the_root_is_raised_in_the_innermost(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]

            def innermost() -> None:
                try:
                    cluster.listen(("127.0.0.1", port))
                except OSError as error:
                    cluster.send((error.errno, str(port) in str(error)))

            def outer() -> None:
                process = cluster.ClusterProcess(target=innermost)
                process.on("message", cluster.send)
                process.start()
                process.join()
                cluster.join()

            diary = follow("message")
            cluster.fork(outer)
            diary.until("message", 1, (98, True))

    def test_when_the_worker_in_between_is_killed_those_that_hear_of_it_leave(self) -> None:
        """One that minds its own business goes with the root at the latest."""

        def innermost() -> None:
            cluster.on("message", nothing)
            cluster.send("here")
            wait()

        def outer() -> None:
            process = cluster.ClusterProcess(target=innermost)
            process.on("message", lambda _: cluster.send(process.pid))
            process.start()
            wait()

        diary = follow("message", "death")
        worker = cluster.fork(outer)
        diary.until_count(1)
        pid = diary.lines[0][2]
        assert isinstance(pid, int)
        pidfd = os.pidfd_open(pid)
        try:
            worker.kill()
            assert select.select([pidfd], [], [], PATIENCE)[0]
        finally:
            os.close(pidfd)


def test_a_worker_that_shares_no_ports_and_does_not_listen_has_no_thread_of_ours() -> None:
    diary = follow("message")
    cluster.fork(lambda: cluster.send(threading.active_count()), share_ports=False)
    diary.until("message", 1, 1)


def test_no_fork_while_the_master_ends(relatives: Family) -> None:
    relatives.silence()
    with pytest.raises(RuntimeError, match="this master is about to end"):
        cluster.fork(nothing)
    assert not relatives.workers


def test_the_end_gives_workers_the_kill_timeout_of_the_settings(
    relatives: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []

    def noted(workers: list[Any], deadline: float) -> list[Any]:
        deadlines.append(deadline - time.monotonic())
        return wait_for(workers, deadline)

    wait_for = ending._wait_for
    monkeypatch.setattr(ending, "_wait_for", noted)
    relatives.settings = Settings(kill_timeout=3600)
    ending.end_workers()
    assert 1000 < deadlines[0] <= 3600


def test_the_end_waits_for_forks_that_are_under_way(
    relatives: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, waits = threading.Event(), threading.Event()
    order = Diary()
    wait_for = relatives._told.wait_for

    def wait_for_noted(*args: Any) -> bool:
        waits.set()
        return wait_for(*args)

    def fork() -> None:
        with relatives.forking():
            inside.set()
            waits.wait(PATIENCE)
            order.write("forked")

    monkeypatch.setattr(family, "FORK_PATIENCE", PATIENCE)
    thread = threading.Thread(target=fork)
    thread.start()
    assert inside.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(relatives._told, "wait_for", wait_for_noted)
        ending.end_workers()
    order.write("ended")
    waits.set()
    thread.join()
    assert order.events == ["forked", "ended"]


def test_the_main_program_is_not_over_while_a_death_is_being_told(
    relatives: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its callback may fork again."""
    asked: list[Callable[[], bool]] = []
    entered, go_on = threading.Event(), threading.Event()
    cluster.on("death", lambda _: (entered.set(), go_on.wait(PATIENCE)))
    cluster.fork(nothing)
    assert entered.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(ending, "_ending", ending._Ending(lambda: None))
        patch.setattr(relatives, "wait_told", lambda done, _timeout: asked.append(done))
        ending._main_program_is_over()
    (is_over,) = asked
    assert not is_over()
    go_on.set()
    assert cluster.join(PATIENCE)
    assert is_over()


def test_a_program_that_joins_has_heard_of_every_death() -> None:
    done = python(
        """
        import mpcluster as cluster
        cluster.on("death", lambda worker: print(f"death{worker.id}", flush=True))
        for _ in range(3):
            cluster.fork(print, ("worker",))
        assert cluster.join(30)
        """
    )
    for word, count in {"worker": 3, "death1": 1, "death2": 1, "death3": 1}.items():
        assert done.stdout.count(word) == count
    assert (done.stderr, done.returncode) == ("", 0)
