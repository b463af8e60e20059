"""Draining hypercorn: ``Connection: close`` first, SIGTERM when only idle ones are left."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing.connections import Connection

from . import state

__all__ = ["Hypercorn", "install"]


class Hypercorn:
    """hypercorn on asyncio. The kernel's clocks say whether its connections are idle."""

    def __init__(self) -> None:
        self.imported = False

    def is_serving(self) -> bool:
        """Has the program imported its server?"""
        return self.imported

    def patience(self, connection: Connection) -> float | None:  # noqa: ARG002
        """It keeps no list of its connections."""
        return None

    def is_busy(self) -> bool:
        """Its own shutdown waits for the rest."""
        return False

    def end(self) -> bool:
        """It has a SIGTERM handler, unless the program told it otherwise."""
        return False


def install(hypercorn: Hypercorn) -> None:
    """Adapt hypercorn, if and when the program imports it."""

    def watch(module: ModuleType) -> None:
        hypercorn.imported = True
        protocol_class: Any = module.H11Protocol
        stream_send = protocol_class.stream_send

        async def closing_stream_send(self: Any, event: Any) -> None:
            if state.has_begun():
                # Its own way to say `Connection: close`: the limit of requests is reached.
                self.keep_alive_requests = max(
                    self.keep_alive_requests, self.config.keep_alive_max_requests
                )
            await stream_send(self, event)

        protocol_class.stream_send = closing_stream_send

    when_imported("hypercorn.protocol.h11", watch)
