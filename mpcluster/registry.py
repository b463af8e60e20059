"""The table of shared listeners: from what was asked for to the one that is kept.

The root master has one. Workers ask it through their channels (:class:`Bind`,
:class:`Release`, :class:`Holds`), those of nested masters by way of their parents; the
master itself by :meth:`Registry.hold`.

Runs in the master's watcher thread only: one request is answered whole before the next,
so nothing here is locked. Nothing here blocks, forks or calls a user's code, but for a
scheduling policy of the user's own.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterable, MutableMapping

from mpcluster import descriptors
from mpcluster.bequest import Bequest
from mpcluster.listeners import Listener, inherited
from mpcluster.messages import Bind, Bound, Holds, Key, Release, Route
from mpcluster.scheduling import MASTER
from mpcluster.scheduling.base import CallLater, Watch

__all__ = ["Registry"]


class Registry:
    """Every listener that the workers of this program share.

    Args:
        call_later: ``call_later(seconds, function)`` → an object with ``cancel()``; calls in
            the thread that calls the registry.
        grace: How long a listener stays open after its last user crashed, in seconds. May
            be changed; counts for listeners opened later.
        watch: Calls in that thread when a descriptor is readable; this process's watcher,
            without one.
    """

    def __init__(
        self, *, call_later: CallLater, grace: float = 30.0, watch: Watch | None = None
    ) -> None:
        self.grace = grace
        self._call_later = call_later
        self._watch = watch
        self._table: dict[Key, Listener] = {}
        self._leaving: set[Route] = set()  # who was drained, until it is gone

    def __repr__(self) -> str:
        return f"<Registry {self.listeners!r}>"

    @property
    def listeners(self) -> list[Listener]:
        """The open ones, oldest first; each once, however many keys lead to it."""
        return list(dict.fromkeys(self._table.values()))

    def handle(self, route: Route, body: object) -> object:
        """Answer a worker's request: the value for its ``Reply``.

        Args:
            route: Who asks.
            body: ``Bind`` → ``Bound``: the socket to lay over the asker's own, or ``None``
                if the one that it has sent is the listener now. The socket in it is
                the registry's own; send a copy and leave it open. ``bind.socket`` is kept or
                closed. ``Release`` → ``None``. ``Holds`` → ``bool``.

        Raises:
            OSError: The kernel's verdict on the address, with ``.address``. Nothing is kept
                and the address can be asked for again.
            ValueError, TypeError: ``scheduling`` is no policy; or the request is none.
        """
        match body:
            case Bind():
                return self._bind(route, body)
            case Release(key=key):
                listener, user = self._find(route, key)
                if listener is not None:
                    listener.remove(user, crashed=False)
                return None
            case Holds(path=path):
                return any(listener.holds(path) for listener in self.listeners)
        raise TypeError(f"the registry of shared listeners is asked {body!r}")

    def hold(self, bind: Bind) -> Bound:
        """The master's own ``listen``: as a worker's, and the listener stays while it holds.

        ``bind.socket`` stays the caller's, the registry keeps a copy; and a socket in the
        answer is a copy for the caller to close. Ended by
        ``handle((), Release(key))``. With ``slots``, workers' connections are not steered to
        the master.
        """
        bound = self._bind(MASTER, dataclasses.replace(bind, socket=_copy(bind.socket)))
        if bound.socket is None:
            return bound
        return dataclasses.replace(bound, socket=_copy(bound.socket))

    def left(self, route: Route, *, crashed: bool) -> None:
        """The process of that route is gone, and those below it with it.

        Args:
            route: Of the process.
            crashed: It did not leave by its own will, nor was it asked to.
        """
        self._leaving = {one for one in self._leaving if not _below(one, route)}
        for listener in self.listeners:
            for user in listener.users:
                if _below(user, route):
                    listener.remove(user, crashed=crashed)

    def drain(self, route: Route) -> list[socket.socket]:
        """Steer new connections away from a worker, and those below it, where that can be.

        From what it asks for later, too.

        Returns:
            Kept sockets that only this worker accepts from. Before it is asked to leave
            their queues should have run empty (:func:`mpcluster.scheduling.queued`).
        """
        self._leaving.add(route)
        return [
            its_own
            for listener in self.listeners
            for user in listener.users
            if _below(user, route)
            for its_own in listener.drain(user)
        ]

    def inherit(
        self,
        environ: MutableMapping[str, str] = os.environ,
        *,
        scheduling: object = None,
        max_connections: int | None = None,
    ) -> list[Listener]:
        """Take over the sockets of ``LISTEN_FDS``; whoever asks for their addresses gets them.

        The master holds them, and no path of theirs is removed. Call it once, in the first
        master, before it forks. How their connections are spread is said here, for nobody
        has asked yet.
        """
        taken = []
        for sock in inherited(environ):
            listener = Listener.inherit(
                sock,
                call_later=self._call_later,
                grace=self.grace,
                watch=self._watch,
                scheduling=scheduling,
                max_connections=max_connections,
                on_end=self._forget,
            )
            self._table.setdefault(listener.key, listener)
            taken.append(listener)
        return taken

    def bequeath(self) -> list[Bequest]:
        """What the next master has to know. Nothing changes here until :meth:`let_go`."""
        return [
            listener.bequeath(key for key, one in self._table.items() if one is listener)
            for listener in self.listeners
        ]

    def succeed(self, left: Iterable[Bequest]) -> None:
        """Go on with what the last master has left. Once, in a master, before it forks.

        Raises:
            OSError: A socket was not handed down.
        """
        for one in left:
            listener = Listener.succeed(
                one,
                call_later=self._call_later,
                grace=self.grace,
                watch=self._watch,
                on_end=self._forget,
            )
            self._table.update(dict.fromkeys(one.keys, listener))

    def settle(self) -> None:
        """The last master has let go."""
        for listener in self.listeners:
            listener.settle()

    def let_go(self) -> None:
        """The next master has taken over; what is :attr:`in_hand` is still dealt from here."""
        for listener in self.listeners:
            listener.let_go()

    @property
    def in_hand(self) -> int:
        """Connections that this master has accepted, and no worker's program has yet."""
        return sum(listener.in_hand for listener in self.listeners)

    def close(self) -> None:
        """Close every listener, used or not, and remove the unix paths. Idempotent."""
        for listener in self.listeners:
            listener.close()
        self._table.clear()

    def _bind(self, route: Route, bind: Bind) -> Bound:
        bound = self._bind_for(route, bind)
        if any(_below(route, leaving) for leaving in self._leaving):
            self.drain(route)
        return bound

    def _bind_for(self, route: Route, bind: Bind) -> Bound:
        listener, user = self._find(route, bind.key)
        if listener is not None:
            return listener.add(user, bind)
        listener = Listener.open(
            bind,
            call_later=self._call_later,
            grace=self.grace,
            watch=self._watch,
            on_end=self._forget,
        )
        try:
            bound = listener.add(user, bind)
        except BaseException:
            listener.close()
            raise
        # By its real port, too: a worker that names the port shares it.
        self._table[_filed(bind.key)] = listener
        self._table.setdefault(listener.key, listener)
        return bound

    def _find(self, route: Route, key: Key) -> tuple[Listener | None, Route]:
        """The listener for what a worker asks, and as whom the worker uses it.

        A worker that uses one in several ways does so as several users, all below its own
        route: they leave with it. Workers' numbers begin at 1, these end in 0 and less.
        """
        place = key[4]
        if _is_further(key):
            assert place is not None
            route = (*route, -place)
        listener = self._table.get(_filed(key))
        if listener is None:
            family, kind, proto, where, _ = key
            if family == socket.AF_INET and isinstance(where, tuple) and where[0] == "0.0.0.0":
                both = (int(socket.AF_INET6), kind, proto, ("::", where[1], 0, 0), None)
                listener = self._table.get(both)
                if listener is not None and listener.takes_ipv4:
                    return listener, (*route, 0)
                listener = None
        return listener, route

    def _forget(self, listener: Listener) -> None:
        self._table = {key: one for key, one in self._table.items() if one is not listener}


def _is_further(key: Key) -> bool:
    """Is it a further stream socket of a worker at one address (``SO_REUSEPORT``)?"""
    _, kind, _, where, place = key
    return place is not None and kind != socket.SOCK_DGRAM and where[1] != 0


def _filed(key: Key) -> Key:
    """What a listener is filed by.

    Further stream sockets of one address take their connections from the same listener: a
    queue of their own would be served by nobody, when the one worker that has so many dies.
    Datagrams may be for each of several sockets (multicast), so those are listeners of
    their own, if the kernel allows it.
    """
    return (*key[:4], None) if _is_further(key) else key


def _copy(sock: socket.socket) -> socket.socket:
    with descriptors.opening():
        copy = sock.dup()
        descriptors.own(copy)
    return copy


def _below(user: Route, route: Route) -> bool:
    """Is it the route itself, or one of a worker below it?"""
    return user[: len(route)] == route
