"""Leaving without losing a request: what a worker does when its parent asks it to go.

::

    listeners silent (sharing.parking) ──► the program's own "disconnect" handler, if any
                                      ├──► it handles SIGTERM: let requests end, then SIGTERM
                                      └──► else: let requests end, stop the servers, exit 0

A request ends when its connection is closed, or when the connection is idle: nothing under
way on it and silent for a second. Servers that are known (an :mod:`adapter` each) say
``Connection: close`` meanwhile and tell what is under way; of others the kernel tells who
spoke last. What only its client could bring to an end, half a request, an answer that it
does not read, is waited for until it was silent for ten seconds. Without servers and
connections there is nothing to wait for.

**The drain's thread** is started by :func:`begin`, in a worker, once; it looks at the
connections every 50 ms, less often where there are thousands, and ends when it has ended the
program, or told it to end. It holds no lock. The process may end while it runs, since it is a
daemon's; a forked child has none.
"""

from __future__ import annotations

import _thread
import logging
import sys
import time
from collections.abc import Callable

from mpcluster.sharing import connections, parking
from mpcluster.sharing.connections import Connection

from . import (
    aiohttp,
    asyncio_http,
    asyncio_servers,
    asyncio_streams,
    closing,
    hypercorn,
    signals,
    socketservers,
    state,
    uvicorn,
)
from .adapter import Adapter

__all__ = ["begin", "ended_cleanly", "install"]

_log = logging.getLogger("mpcluster")

_LOOK = 0.05  # seconds between two looks at the connections, at least

#: And at least so many times what a look has taken: with thousands of connections it takes
#: longer, and meanwhile holds up those that are to be answered.
_REST = 4

#: A server that drains on SIGTERM gets it after so many seconds at the latest: from there
#: on its own rules hold.
_SIGTERM_AFTER = 10.0

# Taken now: gevent replaces them by such as need its loop.
_start_new_thread = _thread.start_new_thread
_sleep = time.sleep

_socket_servers = socketservers.SocketServers()
_asyncio_streams = asyncio_streams.AsyncioStreams()
_asyncio_servers = asyncio_servers.AsyncioServers()
_uvicorn = uvicorn.Uvicorn()
_aiohttp = aiohttp.Aiohttp()
_hypercorn = hypercorn.Hypercorn()

#: Those that end by SIGTERM, once their connections are idle.
_ON_SIGTERM: tuple[Adapter, ...] = (_uvicorn, _aiohttp, _hypercorn)
_ADAPTERS: tuple[Adapter, ...] = (
    *_ON_SIGTERM,
    _socket_servers,
    _asyncio_streams,
    _asyncio_servers,
)

_installed = False


def install() -> None:
    """Get to know the servers of this process; each library when the program imports it.

    In a worker that shares its ports, before its program.
    """
    global _installed
    signals.note_inherited()
    if _installed:
        return
    _installed = True
    socketservers.install(_socket_servers)
    asyncio_streams.install(_asyncio_streams)
    asyncio_servers.install(_asyncio_servers)
    uvicorn.install(_uvicorn)
    aiohttp.install(_aiohttp)
    hypercorn.install(_hypercorn)
    closing.install()


def begin(
    *,
    parked: Callable[[], object],
    user_callback: Callable[[], None] | None,
    finished: Callable[[], None],
    main: int | None = None,
) -> None:
    """Take no new connection from now on, finish what is under way, then end the program.

    In the worker, in any thread; returns at once. A second call does nothing.

    Args:
        parked: Called here as soon as no new connection is taken.
        user_callback: The program's own way to leave; called here, replaces the rest.
        finished: Called in a thread of its own when nothing is left to do but to exit. Not
            called where the program is left to end by itself.
        main: The ident of the main thread, where this was not yet imported at the fork.
    """
    if not state.begin():
        return
    signals.note_main(main)
    parking.park()
    parked()
    asyncio_http.begin()
    if user_callback is not None:
        user_callback()
        return
    _start_new_thread(_drain, (finished,))


def ended_cleanly(error: BaseException) -> bool:
    """Is this exception, that ended the program, but the way in which a drain ends it?"""
    exceptions = sys.modules.get("asyncio.exceptions")  # not imported for this question
    if not _asyncio_servers.ended or exceptions is None:
        return False
    return isinstance(error, exceptions.CancelledError)


def _drain(finished: Callable[[], None]) -> None:
    try:
        if signals.program_handles_sigterm():
            if any(adapter.is_serving() for adapter in _ON_SIGTERM):
                _wait(limit=_SIGTERM_AFTER)
            signals.send_sigterm()
            return
        _wait(limit=None)
        ended = [adapter.end() for adapter in _ADAPTERS if adapter.is_serving()]
        if any(ended):
            return
    except Exception:  # noqa: BLE001 -- whatever an adapter met, the worker shall leave
        _log.exception("the drain failed; this worker leaves as it is")
    finished()


def _wait(*, limit: float | None) -> None:
    """Until nothing is under way, or ``limit`` seconds after the drain began."""
    while limit is None or state.seconds() < limit:
        begin = time.monotonic()
        adapters = [adapter for adapter in _ADAPTERS if adapter.is_serving()]
        busy = any(adapter.is_busy() for adapter in adapters)
        if not busy and all(_is_idle(one, adapters) for one in connections.in_hand()):
            return
        _sleep(max(_LOOK, _REST * (time.monotonic() - begin)))


def _is_idle(connection: Connection, adapters: list[Adapter]) -> bool:
    for adapter in adapters:
        patience = adapter.patience(connection)
        if patience is not None:
            silence = state.seconds() if connection.silence is None else connection.silence
            return silence >= patience
    if connection.silence is None:
        return False  # a unix socket: only its end shows that nothing is under way
    if connection.unanswered is None:
        return connection.silence >= state.UNSURE
    return not connection.unanswered and connection.silence >= state.IDLE
