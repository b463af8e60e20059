"""Draining uvicorn, on asyncio and on uvloop.

At SIGTERM it closes idle connections at once, and a client that is just using one loses
its request. So before the signal its responses say ``Connection: close``, and it gets the
signal when nothing but idle connections is left.
"""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing.connections import Connection

from . import state

__all__ = ["Uvicorn", "install"]


class Uvicorn:
    """The ``uvicorn.Server`` objects of this process."""

    def __init__(self) -> None:
        self.servers: weakref.WeakSet[Any] = weakref.WeakSet()

    def is_serving(self) -> bool:
        """Has one started?"""
        return any(server.started for server in list(self.servers))

    def patience(self, connection: Connection) -> float | None:
        """By the protocol object that has this connection."""
        for server in list(self.servers):
            for protocol in list(server.server_state.connections):
                if _descriptor(protocol) == connection.fd:
                    cycle = getattr(protocol, "cycle", None)  # a WebSocket has none
                    complete = cycle is None or bool(cycle.response_complete)
                    return state.patience(between_requests=complete)
        return None

    def is_busy(self) -> bool:
        """Its own shutdown waits for background tasks."""
        return False

    def end(self) -> bool:
        """One that runs outside the main thread has no SIGTERM handler: as that would do."""
        for server in list(self.servers):
            server.should_exit = True
        return True


def _descriptor(protocol: Any) -> int:
    transport = getattr(protocol, "transport", None)
    sock = None if transport is None else transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


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
