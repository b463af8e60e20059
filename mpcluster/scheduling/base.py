"""The interface between a listener and the policy that spreads its connections.

A *policy* is anything that can be called with :class:`Kept`, once a listener, and returns
an object with the verbs of :class:`Policy`; a subclass of it is one. Node's cluster has
the same two verbs, ``add`` and ``remove``.

Everything here runs in the master, in its watcher thread, one call at a time: no policy
needs a lock, and none may block.
"""

from __future__ import annotations

import abc
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mpcluster import descriptors
from mpcluster.messages import Route

__all__ = ["MASTER", "CallLater", "Kept", "Policy", "PolicyFactory", "Timer", "Watch", "adopt"]

#: The master's own route. It may hold a listener as a worker does.
MASTER: Route = ()


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> object:
        """Do not call any more; harmless after the call."""


CallLater: TypeAlias = Callable[[float, Callable[[], None]], Timer]


class Watch(Protocol):
    """Who calls when a descriptor is readable: the master's watcher."""

    def add(self, fd: int, callback: Callable[[int], object], /) -> None:
        """Call ``callback(events)`` for as long as ``fd`` is readable."""

    def remove(self, fd: int, /) -> None:
        """Do not call any more; to be called before the descriptor is closed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a policy is given to begin with.

    Args:
        socket: The master's bound socket, already adopted (:func:`adopt`). It belongs to
            the policy from now on, which closes it in :meth:`Policy.close`.
        call_later: ``call_later(seconds, function)``, in the thread that calls the policy.
        grace: How long what a crash left behind waits for a replacement, in seconds.
        watch: Calls when a descriptor is readable, in the same thread.
        max_connections: Connections that one user may have open at once; ``None``: as many
            as come. A policy that cannot see to it ignores it.
    """

    socket: socket.socket
    call_later: CallLater
    grace: float
    watch: Watch
    max_connections: int | None = None


class Policy(abc.ABC):
    """How the connections of one listener reach its users.

    ``counts``: users that get a line (:class:`mpcluster.scheduling.line.Line`) shall tell of
    the end of each connection.
    """

    counts: bool = False

    @abc.abstractmethod
    def add(self, route: Route, offered: socket.socket, backlog: int | None) -> socket.socket:
        """Give ``route`` a socket to accept from.

        Called once for each user, for the first with ``offered`` being ``Kept.socket``.

        Args:
            route: The new user; :data:`MASTER` when the master itself wants it open.
            offered: The user's own socket, usually unbound, with the options that it has
                set. To use it, bind it, :func:`adopt` it and return it. The caller closes
                it if it is not what is returned.
            backlog: Call ``listen`` with it; ``None``: the user will.

        Returns:
            One of the sockets that the policy keeps.

        Raises:
            OSError: The kernel's verdict. The user is not added.
        """

    def add_direct(self, route: Route, backlog: int | None) -> socket.socket | None:  # noqa: ARG002
        """Give ``route`` a socket that listens, for a loop that accepts in C.

        Only asked for where :meth:`add` would not; ``None``: it would.
        """
        return None

    @abc.abstractmethod
    def remove(self, route: Route, *, crashed: bool) -> bool:
        """Forget a user that has left, or died. Returns: was it the last?"""

    def drain(self, route: Route) -> list[socket.socket]:  # noqa: ARG002
        """Spread no new connection to ``route``, if the policy can do that.

        Returns:
            Kept sockets whose queue nobody but ``route`` takes from: it should not be asked
            to leave before they are empty (:func:`mpcluster.scheduling.slots.queued`).
        """
        return []

    # -- from one master to the next (:mod:`mpcluster.bequest`); the defaults suit a policy that
    # -- keeps one socket, from which the workers accept -----------------------------------------

    def bequeath(self) -> list[socket.socket]:
        """The kept sockets beside the first, in their order, for the next master."""
        return []

    def succeed(self, further: list[socket.socket]) -> None:
        """Go on with what the last master's policy has bequeathed, beside ``Kept.socket``.

        Until :meth:`settle` that one is still at work.
        """
        for one in further:
            descriptors.close(one)

    def settle(self) -> None:  # noqa: B027  # most have nothing to do
        """The last master has let go."""

    def let_go(self) -> None:  # noqa: B027
        """The next master has taken over: accept, steer and end nothing any more."""

    @property
    def in_hand(self) -> int:
        """Connections that the master has accepted, and no worker's program has yet."""
        return 0

    @abc.abstractmethod
    def close(self) -> None:
        """Close every kept socket and cancel every timer. Idempotent."""


PolicyFactory: TypeAlias = Callable[[Kept], Policy]


def adopt(kept: socket.socket) -> socket.socket:
    """Make this socket one of the master's: no child inherits it, accepted ones do not wait.

    ``TCP_NODELAY`` is inherited by accepted connections; without it Nagle's algorithm meets
    the delayed acknowledgement, and an unmodified ``http.server`` with keep-alive answers
    359 requests a second instead of 6,014.
    """
    descriptors.own(kept)
    kept.set_inheritable(False)
    if kept.family in (socket.AF_INET, socket.AF_INET6) and kept.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):  # not TCP: SCTP, SMC
            kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return kept
