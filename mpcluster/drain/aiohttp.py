"""Draining aiohttp's server: ``Connection: close`` first, SIGTERM when only idle ones are left.

Its own handler of SIGTERM closes idle connections at once.
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

__all__ = ["Aiohttp", "install"]


class Aiohttp:
    """The ``aiohttp.web`` servers of this process."""

    def __init__(self) -> None:
        self.servers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handlers = ByDescriptor(self._walk)

    def _walk(self) -> Iterator[tuple[Any, Any]]:
        for server in list(self.servers):
            for handler in list(server.connections):
                yield handler, getattr(handler, "transport", None)

    def is_serving(self) -> bool:
        """Is there one?"""
        return len(self.servers) > 0

    def patience(self, connection: Connection) -> float | None:
        """By the handler that has this connection."""
        handler = self._handlers.get(connection.fd)
        if handler is None:
            return None
        return state.patience(between_requests=not getattr(handler, "_request_in_progress", True))

    def is_busy(self) -> bool:
        """Its own shutdown waits for the rest."""
        return False

    def end(self) -> bool:
        """With ``run_app`` it has a SIGTERM handler and ends by that; else, who knows."""
        return False


def install(aiohttp: Aiohttp) -> None:
    """Adapt aiohttp, if and when the program imports its server."""
    when_imported("aiohttp.web_server", lambda module: _watch(module, aiohttp))
    when_imported("aiohttp.web_response", _say_close)


def _watch(module: ModuleType, aiohttp: Aiohttp) -> None:
    server_class: Any = module.Server
    initialize = server_class.__init__

    def noted_init(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        aiohttp.servers.add(self)

    server_class.__init__ = noted_init


def _say_close(module: ModuleType) -> None:
    response_class: Any = module.StreamResponse
    prepare_headers = response_class._prepare_headers  # noqa: SLF001

    async def closing_prepare_headers(self: Any) -> None:
        # A WebSocket's handshake (101) must keep its own Connection header.
        if state.has_begun() and self.status >= 200:
            self._keep_alive = False
        await prepare_headers(self)

    response_class._prepare_headers = closing_prepare_headers  # noqa: SLF001
