"""Draining uvicorn, on asyncio and on uvloop.

At SIGTERM it closes idle connections at once, and a client that is just using one loses
its request. So before the signal its responses say ``Connection: close``, and it gets the
signal when nothing but idle connections is left.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing.connections import Connection

from . import state
from .bydescriptor import ByDescriptor

__all__ = ["Uvicorn", "install"]


class Uvicorn:
    """The ``uvicorn.Server`` objects of this process."""

    def __init__(self) -> None:
        self.servers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._protocols = ByDescriptor(self._walk)

    def _walk(self) -> Iterator[tuple[Any, Any]]:
        for server in list(self.servers):
            for protocol in list(server.server_state.connections):
                yield protocol, getattr(protocol, "transport", None)

    def is_serving(self) -> bool:
        """Has one started?"""
        return any(server.started for server in list(self.servers))

    def patience(self, connection: Connection) -> float | None:
        """By the protocol object that has this connection."""
        protocol = self._protocols.get(connection.fd)
        if protocol is None:
            return None
        cycle = getattr(protocol, "cycle", None)  # a WebSocket has none
        return state.patience(between_requests=cycle is None or bool(cycle.response_complete))

    def is_busy(self) -> bool:
        """Its own shutdown waits for background tasks."""
        return False

    def end(self) -> bool:
        """One that runs outside the main thread has no SIGTERM handler: as that would do."""
        for server in list(self.servers):
            server.should_exit = True
        return True


def install(uvicorn: Uvicorn) -> None:
    """Adapt uvicorn, if and when the program imports it."""
    when_imported("uvicorn.server", lambda module: _watch(module, uvicorn))
    for name in ("h11_impl", "httptools_impl"):
        when_imported(f"uvicorn.protocols.http.{name}", _say_close)


def _watch(module: ModuleType, uvicorn: Uvicorn) -> None:
    server_class: Any = module.Server
    startup, shutdown = server_class.startup, server_class.shutdown

    async def noted_startup(self: Any, *args: Any, **kwargs: Any) -> None:
        uvicorn.servers.add(self)
        await startup(self, *args, **kwargs)

    async def clean_shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
        await shutdown(self, *args, **kwargs)
        # It would raise the signal once more, with the default action: the worker was
        # asked to leave, and is not to look killed.
        if state.has_begun():
            getattr(self, "_captured_signals", []).clear()

    server_class.startup = noted_startup
    server_class.shutdown = clean_shutdown


def _say_close(module: ModuleType) -> None:
    cycle_class: Any = module.RequestResponseCycle
    send = cycle_class.send

    async def closing_send(self: Any, message: Any) -> None:
        if state.has_begun() and not self.response_started:
            self.keep_alive = False
        await send(self, message)

    cycle_class.send = closing_send
