"""A look at a supervisor: the figures are those of its workers, and what is not known is None."""

from __future__ import annotations

import _socket
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import watcher
from mpcluster.monitor import snapshot
from mpcluster.monitor.snapshot import Snapshot, Worker
from mpcluster.supervision import Supervisor
from tests.happenings import PATIENCE, Diary, Gate, relatives_fixture, settle  # noqa: F401
from tests.monitor.fleets import serving, until_ready
from tests.running import python
from tests.supervision.supervising import supervise_fixture  # noqa: F401


def of_slot(seen: Snapshot, slot: int) -> Worker:
    (worker,) = [one for one in seen.workers if one.slot == slot]
    return worker


def test_each_worker_is_there_with_its_pid_its_slot_and_what_it_uses(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(serving, 2)
    until_ready(supervisor, 2)
    seen = snapshot.take(supervisor)
    pids = {one.slot: one.pid for one in supervisor.status()}
    assert {one.slot: one.pid for one in seen.workers} == pids
    assert [one.number for one in seen.slots] == [0, 1]
    assert seen.serving == 2
    assert seen.master.pid == os.getpid()
    for worker in seen.workers:
        assert (worker.place, worker.state, worker.serves) == ("serving", "listening", True)
        assert worker.usage.own
        assert worker.ready_for is not None
        assert worker.ready_for <= worker.uptime
    (listener,) = seen.listeners
    assert listener.workers == tuple(sorted(one.id for one in seen.workers))
    assert (listener.policy, listener.waiting) == ("shared", 0)


def test_what_a_worker_has_open_has_accepted_and_has_sent_is_counted(
    supervise: Callable[..., Supervisor],
) -> None:
    diary = Diary()
    cluster.on("message", diary.writer())
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    (listener,) = snapshot.take(supervisor).listeners
    host, port = listener.address.split(":")
    with ExitStack() as clients:
        for number in range(3):
            client = clients.enter_context(socket.create_connection((host, int(port))))
            diary.until_count(number + 1)
        client.sendall(b"close")
        diary.until_count(4)
        seen = of_slot(snapshot.take(supervisor), 0)
    assert (seen.accepted, seen.connections, seen.messages) == (3, 2, 4)


def test_a_slot_keeps_what_its_dead_have_done(supervise: Callable[..., Supervisor]) -> None:
    diary = Diary()
    cluster.on("message", diary.writer())
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    before = snapshot.take(supervisor)
    host, port = before.listeners[0].address.split(":")
    with socket.create_connection((host, int(port))):
        diary.until_count(1)
        ready = Diary()
        supervisor.on("ready", lambda worker: ready.write(worker.id))
        pid = of_slot(before, 0).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ready.until_count(1)
    after = snapshot.take(supervisor)
    assert (after.slots[0].accepted, after.slots[0].messages) == (1, 1)
    assert (of_slot(after, 0).accepted, of_slot(after, 0).messages) == (0, 0)
    assert after.slots[0].restarts == 1
    assert "SIGKILL" in str(after.slots[0].trouble)


def test_during_a_reload_the_one_that_comes_and_the_one_that_serves_are_told_apart(
    supervise: Callable[..., Supervisor],
) -> None:
    with Gate() as gate:

        def boot() -> None:
            with cluster.listen(("127.0.0.1", 0)):
                gate.wait()
                cluster.ready()
                signal.pause()

        supervisor = supervise(boot, 1, ready="explicit")
        listening = Diary()
        cluster.on("listening", lambda worker, _address: listening.write(worker.id))
        gate.open()
        until_ready(supervisor, 1)
        done = supervisor.reload()
        listening.until_count(2)
        seen = snapshot.take(supervisor)
        assert [(one.place, one.serves) for one in seen.workers] == [
            ("serving", True),
            ("incoming", False),
        ]
        assert (seen.under_way, seen.workers[1].ready_for) == ("reload", None)
        gate.open()
        done.result(PATIENCE)


def test_a_worker_that_was_told_to_leave_and_has_not_yet_leaves(
    supervise: Callable[..., Supervisor],
) -> None:
    def stay() -> None:
        cluster.on("disconnect", lambda: cluster.send("asked"))
        with cluster.listen(("127.0.0.1", 0)):
            while True:
                signal.pause()

    supervisor = supervise(stay, 2)
    until_ready(supervisor, 2)
    asked = Diary()
    cluster.on("message", asked.writer())
    supervisor.scale(1)
    asked.until_count(1)
    seen = snapshot.take(supervisor)
    assert [(one.slot, one.place, one.state) for one in seen.workers] == [
        (0, "serving", "listening"),
        (1, "leaving", "draining"),
    ]
    assert [one.number for one in seen.slots] == [0]


def test_where_accepting_is_not_counted_there_is_no_number(
    supervise: Callable[..., Supervisor],
) -> None:
    """As in a server in C that is given the listener's descriptor."""

    def serve() -> None:
        with cluster.listen(("127.0.0.1", 0)) as listener:
            bare = _socket.socket(fileno=os.dup(listener.fileno()))
            select.select([bare], [], [])
            bare._accept()  # type: ignore[attr-defined]
            cluster.send("accepted")
            signal.pause()

    diary = Diary()
    cluster.on("message", diary.writer())
    supervisor = supervise(serve, 1)
    until_ready(supervisor, 1)
    host, port = snapshot.take(supervisor).listeners[0].address.split(":")
    with socket.create_connection((host, int(port))):
        diary.until_count(1)
        seen = of_slot(snapshot.take(supervisor), 0)
    assert (seen.connections, seen.accepted) == (1, None)


def test_all_of_it_is_json(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    seen = snapshot.take(supervisor)
    told: dict[str, Any] = json.loads(json.dumps(seen.as_dict()))
    assert told["workers"][0]["own"] == seen.workers[0].usage.own
    assert told["serving"] == 1
    assert "usage" not in told["workers"][0]


def test_a_watcher_that_does_not_get_on_is_named_after_a_time(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    go_on, busy = threading.Event(), threading.Event()

    def callback() -> None:
        busy.set()
        go_on.wait()

    watcher.current().call_soon(callback)
    assert busy.wait(PATIENCE)
    try:
        with pytest.raises(TimeoutError, match="a callback of the program's"):
            snapshot.take(supervisor, patience=0)
    finally:
        go_on.set()
    assert snapshot.take(supervisor).serving == 1  # and what was given up is not done late


def test_it_can_be_taken_in_a_callback_too(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    taken = Diary()
    watcher.current().call_soon(lambda: taken.write(snapshot.take(supervisor).serving))
    taken.until(1)


def test_a_supervisor_that_has_stopped_has_no_workers(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(serving, 1)
    until_ready(supervisor, 1)
    supervisor.stop()
    assert supervisor.wait(PATIENCE)
    seen = snapshot.take(supervisor)
    assert (seen.workers, seen.serving, seen.slots[0].state) == ((), 0, "closed")


def test_in_a_worker_there_is_nothing_to_look_at(supervise: Callable[..., Supervisor]) -> None:
    told = Diary()
    cluster.on("message", lambda _worker, message: told.write(message))
    made: list[Supervisor] = []

    def look() -> None:
        cluster.on("message", lambda _message: None)
        try:
            snapshot.take(made[0])
        except cluster.NotMasterError as error:
            cluster.send(str(error)[:24])
        cluster.ready()

    first = supervise(serving, 1)
    until_ready(first, 1)
    made.append(first)
    supervise(look, 1)
    told.until("snapshot.take() was called"[:24])


def test_it_needs_no_extra() -> None:
    done = python(
        """
        import sys
        for name in ("psutil", "prometheus_client", "rich"):
            sys.modules[name] = None
        from mpcluster.monitor import snapshot
        print(snapshot.take.__name__)
        """
    )
    assert (done.stdout, done.stderr) == ("take\n", "")
