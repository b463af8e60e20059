"""From one master to the next: two registries, and what the first one leaves."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcluster import bequest
from mpcluster.bequest import Bequest
from tests.sharers import LOCAL, Floor, free_address, is_refused, serve_one

UNIX = {"family": socket.AF_UNIX}


@pytest.fixture(name="floors")
def floors_fixture() -> Iterator[tuple[Floor, Floor]]:
    floors = Floor(), Floor()
    yield floors
    for floor in floors:
        floor.close()
        assert floor.clock.pending == 0


def hand_down(old: Floor, new: Floor) -> None:
    """As the environment and a fork would: by text, and with descriptors of its own."""
    environ = bequest.written(old.registry.bequeath())
    environ["MPCLUSTER_LISTENERS_FROM"] = str(os.getppid())
    left = bequest.read(environ)
    assert environ == {}
    new.registry.succeed(dataclasses.replace(one, fds=tuple(map(os.dup, one.fds))) for one in left)


def let_go(old: Floor, new: Floor) -> None:
    old.registry.let_go()
    new.registry.settle()


def test_what_is_written_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (int(socket.AF_INET), 1, 0, ("127.0.0.1", 80), None)
    path = (int(socket.AF_UNIX), 1, 0, b"/\xff", None)
    left = [
        Bequest((key, path), "slots", (3, 4), True, True, "/x", 7),
        Bequest((key,), "shared", (5,)),
    ]
    environ = bequest.written(left)
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert bequest.read(environ) == left


def test_what_another_program_has_inherited_is_not_its_own() -> None:
    environ = bequest.written([Bequest((), "shared", (3,))])  # of this process, not of its parent
    assert bequest.read(environ) == []


def test_a_port_is_found_by_number_and_as_the_same_random_one(floors) -> None:
    old, new = floors
    first = old[1].bind(LOCAL, ordinal=0)
    hand_down(old, new)
    again = new[1].bind(LOCAL, ordinal=0)
    by_number = new[2].bind(first.getsockname())
    assert first.getsockname() == again.getsockname() == by_number.getsockname()


@pytest.mark.parametrize("event_loop", [False, True], ids=["shared", "slots"])
def test_what_waits_is_served_by_the_next_masters_workers(floors, event_loop: bool) -> None:
    old, new = floors
    first = old[1].bind(free_address(), event_loop=event_loop)
    clients = old.connect(first, 3)
    hand_down(old, new)
    again = new[1].bind(first.getsockname(), event_loop=event_loop)
    let_go(old, new)
    old[1].leave()
    old.registry.close()
    for _ in clients:
        serve_one(again)
    assert [client.recv(6) for client in clients] == [b"served"] * 3


def test_with_slots_each_new_worker_takes_over_a_queue_and_new_ones_are_steered_to(floors) -> None:
    old, new = floors
    address = old[1].bind(free_address(), event_loop=True).getsockname()
    old[2].bind(address, event_loop=True)
    waiting = old.connect(address, 8)
    hand_down(old, new)
    taken = [new[n].bind(address, event_loop=True) for n in (1, 2, 3)]
    let_go(old, new)
    old[1].leave()
    old[2].leave()
    old.registry.close()
    clients = waiting + new.connect(address, 24)
    served = [0, 0, 0]
    for number, listener in enumerate(taken):
        listener.setblocking(False)
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                break
            connection.sendall(b"served")
            connection.close()
            served[number] += 1
    assert sum(served) == len(clients)
    assert all(served)


def test_with_slots_the_old_master_steers_until_it_lets_go(floors) -> None:
    old, new = floors
    one = old[1].bind(free_address(), event_loop=True)
    hand_down(old, new)
    new[1].bind(one.getsockname(), event_loop=True)
    more = new[2].bind(one.getsockname(), event_loop=True)  # a slot that the old one has not
    old.connect(one, 8)
    more.setblocking(False)
    with pytest.raises(BlockingIOError):
        more.accept()
    let_go(old, new)


def test_with_slots_a_queue_that_nobody_takes_over_is_ended_by_the_next_master_alone(
    floors,
) -> None:
    old, new = floors
    one = old[1].bind(free_address(), event_loop=True)
    old[2].bind(one.getsockname(), event_loop=True)
    old.connect(one, 8)
    hand_down(old, new)
    new[1].bind(one.getsockname(), event_loop=True)
    let_go(old, new)
    old[1].leave()
    old[2].leave()
    assert old.clock.pending == 0
    new.clock.wind(31)


def test_a_port_that_the_next_program_does_not_want_is_given_up_after_a_while(floors) -> None:
    old, new = floors
    address = old[1].bind(free_address()).getsockname()
    hand_down(old, new)
    let_go(old, new)
    old[1].leave()
    old.registry.close()
    assert not is_refused(address)
    new.clock.wind(31)
    assert is_refused(address)


def test_a_unix_path_becomes_the_next_masters_to_remove(floors, tmp_path: Path) -> None:
    old, new = floors
    path = str(tmp_path / "s")
    old[1].bind(path, **UNIX)
    hand_down(old, new)
    again = new[1].bind(path, **UNIX)
    let_go(old, new)
    old[1].leave()
    old.registry.close()
    client = new.connect(path, 1)[0]
    serve_one(again)
    assert client.recv(6) == b"served"
    new[1].leave()
    assert list(tmp_path.iterdir()) == []
