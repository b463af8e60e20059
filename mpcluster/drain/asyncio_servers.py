"""Draining asyncio's own servers.

Their listeners are silent already. When their connections are closed or idle, the servers
are closed, which ends ``serve_forever()`` with a ``CancelledError``; where the program lets
that end it, it is a clean end (:func:`AsyncioServers.ended`).

A plain protocol shows no requests. The kernel's clocks say who spoke last; that a response
goes on after a pause is seen by who has the connection at hand (:mod:`.holders`).
"""

from __future__ import annotations

import contextlib
import time
import weakref
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing import connections
from mpcluster.sharing.connections import Connection

from . import holders, state
from .holders import Holders

__all__ = ["AsyncioServers", "install"]

_FRESH = 0.02  # seconds: less than between two looks of the drain

_AGAIN = 0.05  # seconds until a server that got a request at the last moment is closed


class AsyncioServers:
    """The servers of asyncio's own loops. uvloop's are out of reach: written in C."""

    def __init__(self) -> None:
        self.started: weakref.WeakSet[Any] = weakref.WeakSet()
        self.ended = False
        self._looks: weakref.WeakKeyDictionary[Any, tuple[float, Holders | None]]
        self._looks = weakref.WeakKeyDictionary()

    def _open(self) -> list[Any]:
        return [server for server in list(self.started) if server.is_serving()]

    def is_serving(self) -> bool:
        """Is any server up?"""
        return bool(self._open())

    def patience(self, connection: Connection) -> float | None:
        """By what a plain protocol has to do; streams show more, and are asked first."""
        for loop in {server.get_loop() for server in self._open()}:
            transport = getattr(loop, "_transports", {}).get(connection.fd)
            if transport is not None and getattr(transport, "_server", None) in self.started:
                return self._patience(connection, loop, transport)
        return None

    def _patience(self, connection: Connection, loop: Any, transport: Any) -> float | None:
        protocol = transport.get_protocol()
        inner = getattr(protocol, "_app_protocol", None)  # TLS stands in between
        mine = {id(transport), id(protocol), id(getattr(protocol, "_app_transport", None))}
        mine.discard(id(None))
        if inner is not None:
            mine.add(id(inner))
        if transport.get_write_buffer_size():
            return state.STALLED
        if connection.silence is None:
            return None  # a unix socket: the kernel has no clocks for it
        if connection.silence < state.IDLE:
            return state.IDLE  # no need to look further
        found = self._look(loop)
        if found is None:  # it is at work
            return state.NEVER
        held = bool(mine & found.tasks)
        if connection.unanswered:
            return state.NEVER if held or found.threads else state.STALLED
        if held or mine & found.timers:
            return state.STALLED
        return state.IDLE if connection.unanswered is False else state.UNSURE

    def _look(self, loop: Any) -> Holders | None:
        """One look serves all connections of a moment."""
        seen = self._looks.get(loop)
        if seen is None or time.monotonic() - seen[0] > _FRESH:
            seen = time.monotonic(), holders.look(loop)
            self._looks[loop] = seen
        return seen[1]

    def is_busy(self) -> bool:
        """What is under way shows in the connections."""
        return False

    def end(self) -> bool:
        """Close the servers, each in its loop, and the idle connections with them."""
        servers = self._open()
        ended = any(getattr(one, "_serving_forever_fut", None) is not None for one in servers)
        self.ended = self.ended or ended  # first: from here on the program may end
        for server in servers:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                server.get_loop().call_soon_threadsafe(_close, server)
        return ended


def _close(server: Any) -> None:
    """In the server's loop. Since 3.12 ``serve_forever()`` waits for its connections."""
    loop = server.get_loop()
    transports = [
        transport
        for transport in list(getattr(loop, "_transports", {}).values())
        if getattr(transport, "_server", None) is server
    ]
    if any(_has_news(transport) for transport in transports):
        loop.call_later(_AGAIN, _close, server)
        return
    for transport in transports:
        transport.close()
    server.close()


def _has_news(transport: Any) -> bool:
    """Did something come since the drain found all idle?"""
    if transport.is_closing():
        return False
    return connections.has_unread(transport.get_extra_info("socket").fileno())


def install(servers: AsyncioServers) -> None:
    """Have the servers of this process noted, from when asyncio is imported."""

    def watch(module: ModuleType) -> None:
        server_class: Any = module.Server
        start_serving = server_class._start_serving  # noqa: SLF001

        def noted_start_serving(self: Any) -> None:
            servers.started.add(self)
            start_serving(self)

        server_class._start_serving = noted_start_serving  # noqa: SLF001

    when_imported("asyncio.base_events", watch)
