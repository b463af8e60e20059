"""Connections that the master has accepted, and that no worker has been passed yet."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Final

from mpcluster import descriptors
from mpcluster.scheduling.taker import Connection, Taker
from mpcluster.scheduling.takers import Takers

__all__ = ["MOST_WAITING", "Waiting"]

#: That may wait for busy workers of a sticky policy; each costs the master a descriptor.
MOST_WAITING: Final = 128


class Waiting:
    """A queue, oldest first. What belongs to one worker waits in :attr:`Taker.queue` (sticky).

    Args:
        takers: Of the policy.
    """

    def __init__(self, takers: Takers) -> None:
        self._takers = takers
        self._nobodys: deque[Connection] = deque()

    def __len__(self) -> int:
        return len(self._nobodys)

    @property
    def held(self) -> int:
        """How many the master holds, whomever they belong to."""
        return len(self) + sum(len(taker.queue) for taker in self._takers)

    @property
    def has_room(self) -> bool:
        """May a sticky policy accept one more?"""
        return self.held < MOST_WAITING

    def add(self, connection: Connection) -> None:
        """A new one: the last."""
        self._nobodys.append(connection)

    @property
    def first(self) -> Connection:
        """The oldest."""
        return self._nobodys[0]

    def take(self) -> Connection:
        """The oldest, which does not wait here any more."""
        return self._nobodys.popleft()

    def put_back(self, connections: Iterable[Connection]) -> None:
        """These were somebody's, and come first; oldest first among them."""
        self._nobodys.extendleft(reversed(list(connections)))

    def requeue(self, taker: Taker) -> None:
        """Whom those belong to that wait for ``taker`` is to be decided anew."""
        self.put_back(taker.queue)
        taker.queue.clear()

    def reset(self) -> None:
        """End all as closing the listener would have ended them."""
        while self._nobodys:
            _reset(self.take())


def _reset(connection: Connection) -> None:
    descriptors.disown(connection.fd)
    with contextlib.suppress(OSError), socket.socket(fileno=connection.fd) as client:
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
