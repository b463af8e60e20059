"""Asking for listeners through real channels: the root master's watcher answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

import mpcluster
from mpcluster import ClusterProcess, registrar
from tests.happenings import Diary, relatives_fixture, settle  # noqa: F401  # a fixture
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


# -- the master's own listener ----------------------------------------------------------------


def test_the_master_closes_its_own_listener_and_opens_it_again() -> None:
    """Its registry keeps a copy in this very process, which does not count as a use."""
    with mpcluster.listen(LOCAL) as sock:
        address = sock.getsockname()
    settle()
    assert is_refused(address)
    mpcluster.listen(address).close()


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
