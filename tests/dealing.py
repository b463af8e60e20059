"""A policy that accepts, with a watch and a clock that tests drive, and workers that are fakes.

The sockets are real: what the kernel does with a line, a queue and a descriptor is what most of
the tests are about.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable

from mpcluster import descriptors
from mpcluster.messages import Route
from mpcluster.scheduling import Kept, line
from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.base import adopt
from mpcluster.scheduling.line import Line
from tests.sharers import LOCAL, Clock


class Watch:
    """Calls what is readable, and counts the calls."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[int], object]] = {}
        self.calls = 0

    def add(self, fd: int, callback: Callable[[int], object], /) -> None:
        assert fd not in self.callbacks
        self.callbacks[fd] = callback

    def remove(self, fd: int, /) -> None:
        self.callbacks.pop(fd, None)

    def settle(self) -> int:
        """Call until nothing is readable; how many calls that took. What spins, fails."""
        before = self.calls
        while ready := self._ready():
            for fd in ready:
                callback = self.callbacks.get(fd)
                if callback is not None:
                    self.calls += 1
                    callback(select.POLLIN)
            assert self.calls - before < 1000, "it spins"
        return self.calls - before

    def _ready(self) -> list[int]:
        poll = select.poll()
        for fd in self.callbacks:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)]


class Worker:
    """A worker's program, as far as the line can tell."""

    def __init__(self, table: Table, route: Route, *, counts: bool) -> None:
        self.table, self.route, self.counts = table, route, counts
        given = table.policy.add(route, table.listener, None)
        assert isinstance(given, Line)
        self.end: socket.socket = given.dup()
        self.connections: list[socket.socket] = []
        self.taken: list[line.Passed] = []

    def say(self, word: bytes, number: int = 0) -> None:
        line.say(self.end, word, number)
        self.table.watch.settle()

    def take(self) -> int:
        """Take a connection out of the line and say nothing of it; its number."""
        passed = line.take(self.end)
        assert passed is not None
        self.taken.append(passed)
        return passed.number

    def accept(self) -> socket.socket:
        """As the program does: take it, and say so."""
        number = self.take()
        self.connections.append(socket.socket(fileno=self.taken.pop().fd))
        self.say(line.COUNTED if self.counts else line.ACCEPTED, number)
        return self.connections[-1]

    @property
    def has_one(self) -> bool:
        """Does a connection lie in its line?"""
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        return bool(poll.poll(0))

    def close_one(self) -> None:
        self.connections.pop(0).close()
        self.say(line.ENDED, 1)

    def end_process(self) -> None:
        """Its descriptors are gone; the master does not know yet."""
        for connection in self.connections:
            connection.close()
        for passed in self.taken:
            line.close(passed.fd)
        self.taken.clear()
        self.end.close()

    def die(self) -> bool:
        self.end_process()
        return self._remove(crashed=True)

    def leave(self) -> bool:
        self.end_process()
        return self._remove(crashed=False)

    def _remove(self, *, crashed: bool) -> bool:
        last = self.table.policy.remove(self.route, crashed=crashed)
        self.table.watch.settle()
        return last


class Table:
    """One listener, its policy, and whoever takes part."""

    def __init__(
        self, policy: type[Accepting], *, limit: int | None = None, path: str | None = None
    ) -> None:
        self.watch, self.clock = Watch(), Clock()
        self.listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        self.listener.bind(LOCAL if path is None else path)
        self.address = self.listener.getsockname()
        self.policy = policy(
            Kept(adopt(self.listener), self.clock.call_later, 30.0, self.watch, limit)
        )
        self.workers: list[Worker] = []
        self.clients: list[socket.socket] = []

    def worker(self, *, listens: bool = True) -> Worker:
        worker = Worker(self, (len(self.workers) + 1,), counts=self.policy.counts)
        self.workers.append(worker)
        if listens:
            worker.say(line.LISTEN, 128)
        return worker

    def connect(self, times: int = 1, *, source: str | None = None) -> list[socket.socket]:
        """Connect clients, and let the master deal with them."""
        new = []
        for _ in range(times):
            client = socket.socket(self.listener_family)
            client.settimeout(20)
            self.clients.append(client)
            new.append(client)
            if source is not None:
                client.bind((source, 0))
            client.connect(self.address)
        self.watch.settle()
        return new

    @property
    def listener_family(self) -> int:
        return socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET

    @property
    def watches_listener(self) -> bool:
        return self.listener.fileno() in self.watch.callbacks

    def wind(self, seconds: float) -> None:
        self.clock.wind(seconds)
        self.watch.settle()

    def close(self) -> None:
        self.policy.close()
        for worker in self.workers:
            worker.end_process()
        for client in self.clients:
            client.close()


def served_by(client: socket.socket, server: socket.socket) -> bool:
    """Is this accepted socket the other end of that client?"""
    token = os.urandom(8)
    server.sendall(token)
    return client.recv(8) == token


def owned() -> int:
    """How many descriptors the master keeps for itself."""
    return len(descriptors.owned())
