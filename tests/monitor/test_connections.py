"""Connections as the kernel has them: whose they are, and how many wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mpcluster.address import Address
from mpcluster.monitor import connections

KINDS = ["IPv4", "IPv6", "path", "abstract"]


@pytest.fixture(name="listener")
def listener_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    kind = getattr(request, "param", "IPv4")
    kinds: dict[str, tuple[int, Any]] = {
        "IPv4": (socket.AF_INET, ("127.0.0.1", 0)),
        "IPv6": (socket.AF_INET6, ("::1", 0)),
        "path": (socket.AF_UNIX, str(tmp_path / "a path with spaces")),
        "abstract": (socket.AF_UNIX, f"\0mpcluster-test-{os.getpid()}"),
    }
    family, where = kinds[kind]
    with socket.socket(family) as listener:
        listener.bind(where)
        listener.listen()
        yield listener


def address_of(listener: socket.socket) -> Address:
    return Address.of(listener.family, listener.getsockname())


def connect(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family)
    client.connect(listener.getsockname())
    return client


@pytest.mark.parametrize("listener", KINDS, indirect=True)
def test_accepted_connections_are_counted_and_their_clients_are_not(
    listener: socket.socket,
) -> None:
    with ExitStack() as open_ones:
        for _ in range(3):
            open_ones.enter_context(connect(listener))
        for _ in range(2):
            open_ones.enter_context(listener.accept()[0])
        assert connections.look([address_of(listener)]).held_by(os.getpid()) == 2


@pytest.mark.parametrize("listener", ["IPv4", "IPv6"], indirect=True)
def test_those_that_wait_are_counted_apart(listener: socket.socket) -> None:
    with ExitStack() as open_ones:
        for _ in range(3):
            open_ones.enter_context(connect(listener))
        open_ones.enter_context(listener.accept()[0])
        seen = connections.look([address_of(listener)])
    assert seen.waiting == {address_of(listener): 2}


def test_the_queues_of_an_address_with_several_sockets_are_added_up() -> None:
    with ExitStack() as open_ones:
        first = open_ones.enter_context(socket.socket())
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        second = open_ones.enter_context(socket.socket())
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second.bind(first.getsockname())
        second.listen()
        for _ in range(20):
            open_ones.enter_context(connect(first))
        seen = connections.look([address_of(first)])
        assert seen.waiting == {address_of(first): 20}


def test_a_closed_connection_is_counted_no_more(listener: socket.socket) -> None:
    with connect(listener):
        listener.accept()[0].close()
        assert connections.look([address_of(listener)]).held_by(os.getpid()) == 0


def test_one_that_its_client_has_closed_is_still_the_servers_to_close(
    listener: socket.socket,
) -> None:
    connect(listener).close()
    connection = listener.accept()[0]
    assert connection.recv(1) == b""
    assert connections.look([address_of(listener)]).held_by(os.getpid()) == 1
    connection.close()


def test_connections_to_another_port_do_not_count(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, connect(other), other.accept()[0]:
        assert connections.look([address_of(listener)]).held_by(os.getpid()) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_of_several_listeners_each_has_its_own(count: int) -> None:
    with ExitStack() as open_ones:
        listeners = [
            open_ones.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count + 1)
        ]
        for listener in listeners:
            for _ in range(2):
                open_ones.enter_context(connect(listener))
            open_ones.enter_context(listener.accept()[0])
        wanted = [address_of(listener) for listener in listeners[:count]]
        seen = connections.look(wanted)
        assert seen.waiting == dict.fromkeys(wanted, 1)
        assert seen.held_by(os.getpid()) == count


def test_without_listeners_there_is_nothing() -> None:
    seen = connections.look([])
    assert (seen.waiting, seen.held_by(os.getpid())) == ({}, 0)


def test_of_a_process_that_is_gone_nothing_is_known(listener: socket.socket) -> None:
    with connect(listener), listener.accept()[0]:
        assert connections.look([address_of(listener)]).held_by(2**22 + 1) is None


def test_where_the_kernel_does_not_tell_there_is_no_number(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_NETLINK_SOCK_DIAG", 31)  # a protocol that nobody speaks
    seen = connections.look([address_of(listener)])
    assert (seen.waiting, seen.held_by(os.getpid())) == ({}, None)


def test_a_request_that_the_kernel_refuses_is_no_number_either(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SOCK_DIAG_BY_FAMILY", 99)
    assert connections.look([address_of(listener)]).held_by(os.getpid()) is None


def test_many_connections_come_in_several_parts_and_none_is_lost(listener: socket.socket) -> None:
    listener.listen(400)
    with ExitStack() as open_ones:
        for _ in range(400):
            open_ones.enter_context(connect(listener))
            open_ones.enter_context(listener.accept()[0])
        assert connections.look([address_of(listener)]).held_by(os.getpid()) == 400
