"""Draining asyncio's own servers.

Their listeners are silent already. When their connections are closed or idle, the servers
are closed, which ends ``serve_forever()`` with a ``CancelledError``; where the program lets
that end it, it is a clean end (:func:`AsyncioServers.ended`).
"""

from __future__ import annotations

import contextlib
import weakref
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing.connections import Connection

__all__ = ["AsyncioServers", "install"]


class AsyncioServers:
    """The servers of asyncio's own loops. uvloop's are out of reach: written in C."""

    def __init__(self) -> None:
        self.started: weakref.WeakSet[Any] = weakref.WeakSet()
        self.ended = False

    def _open(self) -> list[Any]:
        return [server for server in list(self.started) if server.is_serving()]

    def is_serving(self) -> bool:
        """Is any server up?"""
        return bool(self._open())

    def is_between_requests(self, connection: Connection) -> bool | None:  # noqa: ARG002
        """A stream of bytes shows no requests; the kernel's clocks must do."""
        return None

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
    for transport in list(getattr(loop, "_transports", {}).values()):
        if getattr(transport, "_server", None) is server:
            transport.close()
    server.close()


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
