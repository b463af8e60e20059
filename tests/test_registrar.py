"""Asking for listeners through real channels: the root master's watcher answers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NoReturn

import pytest

import mpcluster
from mpcluster import ClusterProcess, registrar, watcher
from tests.happenings import Diary, Gate, relatives_fixture, settle  # noqa: F401  # a fixture
from tests.sharers import LOCAL, is_refused

pytestmark = pytest.mark.usefixtures("relatives")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """One for this test alone."""
    registrar.close()
    yield
    registrar.close()


def started(target: Callable[[], object]) -> tuple[ClusterProcess, Diary]:
    one, diary = ClusterProcess(target=target), Diary()
    diary.follow(one)
    one.start()
    return one, diary


# -- what a policy of the user's own may raise ------------------------------------------------


class LoadsNot(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class DumpsNot(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def loads_not(_kept: object) -> NoReturn:
    raise LoadsNot("un", "loadable")


def dumps_not(_kept: object) -> NoReturn:
    raise DumpsNot


@pytest.mark.parametrize(
    ("policy", "says"), [(loads_not, "LoadsNot: unloadable"), (dumps_not, "DumpsNot: locked")]
)
def test_an_error_that_cannot_travel_is_told_by_its_text(
    policy: Callable[[object], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asker does not wait for ever."""
    monkeypatch.setattr(logging.getLogger("mpcluster"), "disabled", True)

    def target() -> None:
        try:
            mpcluster.listen(LOCAL, scheduling=policy)
        except mpcluster.ClusterError as error:
            mpcluster.send(says in str(error))

    _, diary = started(target)
    diary.until("death")
    assert ("message", True) in diary.lines


# -- settings ---------------------------------------------------------------------------------


def test_the_grace_is_that_of_the_settings_when_a_listener_opens() -> None:
    """Also where an earlier listener has known another."""

    def target() -> None:
        with mpcluster.listen(LOCAL) as sock:
            mpcluster.send(sock.getsockname())
            threading.Event().wait()

    mpcluster.listen(LOCAL).close()
    mpcluster.setup(listener_grace=0.0)
    one, diary = started(target)
    diary.until_count(4)  # fork, online, listening, message
    (address,) = [line[1] for line in diary.lines if line[0] == "message"]
    one.kill()
    diary.until("death")
    one.close()
    settle()  # its timer was due at once
    assert is_refused(address)


@pytest.mark.parametrize("asked", [True, False])
def test_the_grace_is_for_the_crashed_and_not_for_who_was_made_to_leave(asked: bool) -> None:
    """By SIGTERM, when the time to leave was over."""

    def target() -> None:
        mpcluster.on("disconnect", mpcluster.send)
        with mpcluster.listen(LOCAL) as sock:
            mpcluster.send(sock.getsockname())
            threading.Event().wait()

    one, diary = started(target)
    diary.until_count(4)  # fork, online, listening, message
    (address,) = [line[1] for line in diary.lines if line[0] == "message"]
    assert one.state is mpcluster.WorkerState.LISTENING
    if asked:
        one.disconnect(timeout=0)
    else:
        one.terminate()
    diary.until("death")
    assert one.exit_signal == signal.SIGTERM
    one.close()
    assert is_refused(address) is asked


# -- the master's own listener ----------------------------------------------------------------


def test_the_master_closes_its_own_listener_and_opens_it_again() -> None:
    """Its registry keeps a copy in this very process, which does not count as a use."""
    with mpcluster.listen(LOCAL) as sock:
        address = sock.getsockname()
    settle()
    assert is_refused(address)
    mpcluster.listen(address).close()


# -- workers of workers -------------------------------------------------------------------------


def test_the_root_master_hears_what_a_nested_worker_closes_and_that_it_ends() -> None:
    """The worker in between goes on all the while."""

    def nested() -> None:
        with mpcluster.listen(LOCAL) as sock:
            mpcluster.send(sock.getsockname())
            gate.wait()
        mpcluster.send("closed")
        with mpcluster.listen(LOCAL) as sock:
            mpcluster.send(sock.getsockname())
            gate.wait()
            os._exit(0)

    def between() -> None:
        one, over = ClusterProcess(target=nested), threading.Event()
        one.on("message", mpcluster.send)
        one.on("death", lambda: (mpcluster.send("ended"), over.set()))
        one.start()
        over.wait()
        stays.wait()

    def said(count: int) -> list[object]:
        """Beside `fork` and `online`."""
        diary.until_count(2 + count)
        return [line[1] for line in diary.lines[2:]]

    with Gate() as gate, Gate() as stays:
        one, diary = started(between)
        (first,) = said(1)
        gate.open()
        *_, closed, second = said(3)
        assert closed == "closed"
        assert first == second or is_refused(first)
        assert not is_refused(second)
        gate.open()
        assert said(4)[-1] == "ended"
        assert is_refused(second)
        stays.open()
        diary.until("death")
    assert one.exitcode == 0
    one.close()


# -- a worker that leaves by its own will -----------------------------------------------------


def test_new_connections_are_steered_away_from_a_worker_that_wants_to_leave() -> None:
    """Before it stops to accept: what queues for it alone would wait for nobody."""

    def target() -> None:
        myself = mpcluster.worker
        assert myself is not None
        with mpcluster.listen(LOCAL, scheduling="slots"):
            myself.on("disconnect", lambda: mpcluster.send("leaving"))
            myself.disconnect()
            threading.Event().wait()

    one = ClusterProcess(target=target)
    seen: list[str] = []
    told = threading.Event()

    def message(_: object) -> None:
        seen.append(repr(registrar._registry))
        told.set()

    one.on("message", message)
    one.start()
    assert told.wait(30)
    assert "0:draining" in seen[0]
    assert one.exited_after_disconnect
    one.kill()
    one.join()


def test_a_worker_is_told_to_leave_when_nothing_waits_for_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, diary = [2, 1, 0], Diary()
    kept = SimpleNamespace(fileno=lambda: 0)
    monkeypatch.setattr(registrar, "_registry", SimpleNamespace(drain=lambda _route: [kept]))
    monkeypatch.setattr(registrar, "queued", lambda _kept: waiting.pop(0))
    monkeypatch.setattr(registrar, "QUEUE_PATIENCE", 30.0)

    def ask() -> None:
        registrar._steer_away((1,), lambda: False, lambda: diary.write("told", *waiting))

    watcher.current().ask(ask)
    diary.until_count(1)
    assert diary.lines == [("told",)]


@pytest.mark.parametrize("depth", [1, 2])
def test_new_connections_are_steered_away_from_a_nested_worker_that_leaves(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by its own parent, which has no registry: the root master does it first."""
    monkeypatch.setattr(registrar, "QUEUE_PATIENCE", 30.0)

    def serves() -> None:
        myself = mpcluster.worker
        assert myself is not None
        leaving = threading.Event()
        with mpcluster.listen(LOCAL, scheduling="slots"):
            myself.on("disconnect", leaving.set)
            mpcluster.send("up")
            leaving.wait()
            mpcluster.send("leaving")

    def has_one(below: int) -> None:
        one = ClusterProcess(target=has_one if below else serves, args=(below - 1,) * bool(below))

        def heard(message: object) -> None:
            mpcluster.send(message)
            if message == "up" and not below:
                one.disconnect()

        one.on("message", heard)
        over = threading.Event()
        one.on("death", over.set)  # told after all that it has said, where join() may be quicker
        one.start()
        over.wait()

    one = ClusterProcess(target=has_one, args=(depth - 1,))
    seen: list[str] = []
    told = threading.Event()

    def message(what: object) -> None:
        if what == "leaving":
            seen.append(repr(registrar._registry))
            told.set()

    one.on("message", message)
    one.start()
    assert told.wait(30)
    assert "0:draining" in seen[0]
    one.join()


def test_a_nested_worker_takes_its_own_queue_before_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer to its parent's question waits for that."""
    monkeypatch.setattr(registrar, "QUEUE_PATIENCE", 30.0)

    def serves(gate: Gate) -> None:
        myself = mpcluster.worker
        assert myself is not None
        with mpcluster.listen(LOCAL, scheduling="slots") as sock:
            leaving = threading.Event()
            myself.on("disconnect", leaving.set)
            mpcluster.send(sock.getsockname())
            gate.wait()
            mpcluster.send(("leaving", leaving.is_set()))
            sock.accept()[0].close()
            leaving.wait()

    def has_one() -> None:
        one = ClusterProcess(target=serves, args=(gate,))
        one.on("message", mpcluster.send)
        mpcluster.on("message", lambda _: one.disconnect())
        over = threading.Event()
        one.on("death", over.set)  # told after all that it has said, where join() may be quicker
        one.start()
        over.wait()

    with Gate() as gate:
        one, diary = started(has_one)
        diary.until_count(3)  # fork, online, message
        (address,) = [line[1] for line in diary.lines if line[0] == "message"]
        with socket.create_connection(address):
            steered = threading.Event()
            drain = registrar._registry.drain  # type: ignore[union-attr]

            def noted(route: tuple[int, ...]) -> list[socket.socket]:
                found = drain(route)
                steered.set()
                return found

            registrar._registry.drain = noted  # type: ignore[union-attr,method-assign]
            one.send("let it go")
            assert steered.wait(30)
            gate.open()
            diary.until("death")
    said = [line[1] for line in diary.lines if line[0] == "message"]
    assert said == [address, ("leaving", False)]
    one.close()
