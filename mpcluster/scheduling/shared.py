"""``shared``: every user accepts from the one descriptor.

The kernel wakes blocked acceptors first in, first out, so threads share nearly evenly, and
one queue for all never lets a connection wait behind a busy worker while another is idle.
Event loops that poll the descriptor do worse where the load is light: of a burst of 100
connections on 4 asyncio workers the busiest took 80.
"""

from __future__ import annotations

import socket

from mpcluster import descriptors
from mpcluster.messages import Route
from mpcluster.scheduling.base import Kept, Policy

__all__ = ["Shared"]


class Shared(Policy):
    """One socket, used by all. A drain is the worker's own business: it stops accepting."""

    def __init__(self, kept: Kept) -> None:
        self._socket = kept.socket
        self._users: set[Route] = set()

    def __repr__(self) -> str:
        return f"<Shared users={sorted(self._users)}>"

    def add(self, route: Route, offered: socket.socket, backlog: int | None) -> socket.socket:  # noqa: ARG002
        """Give out the one socket; as in Node, the last ``listen`` sets the backlog."""
        if backlog is not None:
            self._socket.listen(backlog)
        self._users.add(route)
        return self._socket

    def remove(self, route: Route, *, crashed: bool) -> bool:  # noqa: ARG002
        """Forget a user; the queue is everybody's, so nothing is left behind."""
        self._users.discard(route)
        return not self._users

    def close(self) -> None:
        """Close the master's copy. Connections in its queue end when the last copy does."""
        descriptors.close(self._socket)
