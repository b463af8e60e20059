"""Draining what stands on asyncio's streams (``asyncio.start_server``), on whatever loop.

A handler that waits for input has no request in hand, if it has read all that came. One
that waits for anything else, or runs, has one, however long it pauses. So a response that
sleeps between its parts is finished, and a client between two requests is let go.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported
from mpcluster.sharing.connections import Connection

from . import state
from .bydescriptor import ByDescriptor

__all__ = ["AsyncioStreams", "install"]


class AsyncioStreams:
    """The connections that came in through ``start_server`` and ``start_unix_server``.

    Looked at by the drain's thread while the loop's goes on. All are single reads; a look
    between two of them at worst takes an idle connection for a busy one, until the next.
    """

    def __init__(self) -> None:
        self.protocols: weakref.WeakSet[Any] = weakref.WeakSet()
        self._by_descriptor = ByDescriptor(self._walk)
        self._waits: weakref.WeakKeyDictionary[Any, tuple[Any, float]]
        self._waits = weakref.WeakKeyDictionary()

    def is_serving(self) -> bool:
        """Is there any?"""
        return len(self.protocols) > 0

    def patience(self, connection: Connection) -> float | None:
        """As :class:`~.adapter.Adapter` has it."""
        protocol = self._by_descriptor.get(connection.fd)
        task = None if protocol is None else protocol._task  # noqa: SLF001
        if task is None:  # no stream's, or its callback is no coroutine
            return None
        transport, reader = protocol._transport, protocol._stream_reader  # noqa: SLF001
        if transport is None or transport.get_write_buffer_size():
            return state.STALLED
        if task.done() or transport.is_closing():
            return state.IDLE
        waiter = None if reader is None else reader._waiter  # noqa: SLF001
        if waiter is None or waiter.done():
            return state.NEVER
        if reader._buffer or connection.unanswered:  # noqa: SLF001 -- a request that is not whole
            return state.STALLED
        if connection.silence is None and self._waits_for(protocol, waiter) < state.IDLE:
            return state.NEVER  # a unix socket, where the kernel has no clocks
        return state.IDLE

    def is_busy(self) -> bool:
        """What is under way shows in the connections."""
        return False

    def end(self) -> bool:
        """Their servers are ended by :mod:`.asyncio_servers`; uvloop's end with the program."""
        return False

    def _walk(self) -> Iterator[tuple[Any, Any]]:
        for protocol in list(self.protocols):
            yield protocol, protocol._transport  # noqa: SLF001

    def _waits_for(self, protocol: Any, waiter: object) -> float:
        """Seconds since it was first seen to wait so."""
        seen, since = self._waits.get(protocol, (None, 0.0))
        now = time.monotonic()
        if seen is not waiter:
            self._waits[protocol] = waiter, now
            return 0.0
        return now - since


def install(streams: AsyncioStreams) -> None:
    """Have the streams' connections noted, from when asyncio is imported."""

    def watch(module: ModuleType) -> None:
        protocol_class: Any = module.StreamReaderProtocol
        connection_made = protocol_class.connection_made

        def noted_connection_made(self: Any, transport: Any) -> None:
            if self._client_connected_cb is not None:  # a server's
                streams.protocols.add(self)
            connection_made(self, transport)

        protocol_class.connection_made = noted_connection_made

    when_imported("asyncio.streams", watch)
