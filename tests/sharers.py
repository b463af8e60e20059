"""Stand-ins for the registry's surroundings: a clock that tests wind, and workers.

A :class:`Sharer` does in this process what a worker's side does in its own: it donates a
copy of its socket and lays over its own what comes back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpcluster.address import make_key
from mpcluster.messages import Bind, Bound, Key, Release, Route
from mpcluster.registry import Registry

#: A loopback address of this test process alone (Linux has 2 ** 24 of them), so that a port
#: which a test lets go and takes again is taken by no other that runs beside it.
HOST = "127.0.0.1"
if sys.platform == "linux":
    HOST = "127.{}.{}.{}".format(*(os.getpid() // 250**n % 250 + 3 for n in (2, 1, 0)))
LOCAL = (HOST, 0)


def free_address(kind: int = socket.SOCK_STREAM) -> tuple[str, int]:
    """One that nobody has, and whose port the kernel does not give to clients of other tests."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        # Not by the seed that all test workers share.
        address = HOST, lowest - 1 - secrets.randbelow(10_000)
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.bind(address)
            return address


@contextlib.contextmanager
def modes_before_chmod() -> Iterator[list[int]]:
    """In the body, with an open umask: the mode that each file has when its own is set."""
    seen: list[int] = []
    chmod = os.chmod

    def look_first(changed: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.stat(changed).st_mode))
        chmod(changed, mode)

    before = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "chmod", look_first)
            yield seen
    finally:
        os.umask(before)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")


class Timer:
    def __init__(self, at: float, function: Callable[[], None]) -> None:
        self.at, self.function, self.cancelled = at, function, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """``call_later`` in a time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, function)
        self.timers.append(timer)
        return timer

    def wind(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            if not timer.cancelled:
                timer.function()

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)


class Sharer:
    """A worker as the registry sees it."""

    def __init__(self, registry: Registry, route: Route) -> None:
        self.registry, self.route = registry, route
        self.sockets: dict[Key, socket.socket] = {}
        self.last: Bound | None = None

    def bind(
        self,
        address: object,
        *,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        ordinal: int | None = None,
        own: socket.socket | None = None,
        scheduling: object = None,
        listen: int | None = 16,
        mode: int | None = None,
        event_loop: bool = False,
        sockname: object = None,
    ) -> socket.socket:
        """Ask for an address; the answer is this worker's socket, shared or not.

        It is told to be at ``sockname``, where that is not what the kernel says.
        """
        own = own or socket.socket(family, kind)
        key = make_key(own.family, own.type, own.proto, address, ordinal)
        if kind == socket.SOCK_DGRAM:
            listen = None
        bind = Bind(key, own.dup(), scheduling, listen, mode, event_loop)
        try:
            bound = self.registry.handle(self.route, bind)
        except BaseException:
            own.close()
            raise
        assert isinstance(bound, Bound)
        self.last = bound
        if bound.socket is not None:
            os.dup2(bound.socket.fileno(), own.fileno(), inheritable=False)
        assert (sockname or own.getsockname()) == bound.sockname
        self.sockets[key] = own
        return own

    def release(self) -> None:
        """Close and release everything, as a server that stops."""
        for key, own in self.sockets.items():
            own.close()
            self.registry.handle(self.route, Release(key))
        self.sockets.clear()

    def end(self) -> None:
        """The process is gone with its descriptors; the registry does not know yet."""
        for own in self.sockets.values():
            own.close()
        self.sockets.clear()

    def crash(self) -> None:
        self.end()
        self.registry.left(self.route, crashed=True)

    def leave(self) -> None:
        self.end()
        self.registry.left(self.route, crashed=False)


class Floor:
    """A registry, its clock, and as many workers as are asked for."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = Registry(call_later=self.clock.call_later, grace=30.0)
        self._sharers: dict[Route, Sharer] = {}
        self._clients: list[socket.socket] = []

    def __getitem__(self, route: int | Route) -> Sharer:
        route = (route,) if isinstance(route, int) else route
        return self._sharers.setdefault(route, Sharer(self.registry, route))

    def connect(self, to: socket.socket | object, times: int = 1) -> list[socket.socket]:
        """Connect clients; they are closed with the floor."""
        address = to.getsockname() if isinstance(to, socket.socket) else to
        family = (
            socket.AF_INET6
            if isinstance(address, tuple) and len(address) == 4
            else (socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        )
        clients = []
        for _ in range(times):
            client = socket.socket(family)
            client.settimeout(20)  # a full queue would hold it: fail, do not hang
            self._clients.append(client)
            client.connect(address)
            clients.append(client)
        return clients

    def close(self) -> None:
        for sharer in self._sharers.values():
            sharer.end()
        for client in self._clients:
            client.close()
        self.registry.close()


def serve_one(listener: socket.socket) -> None:
    """Accept one connection and answer it; a test that never gets one fails by the timeout."""
    listener.settimeout(10)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"served")


def is_refused(address: object) -> bool:
    """Does nobody listen there?"""
    with socket.socket() as client:
        try:
            client.connect(address)  # type: ignore[arg-type]
        except ConnectionRefusedError:
            return True
    return False
