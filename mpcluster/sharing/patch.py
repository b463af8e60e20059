"""Putting the shared socket's methods into the socket classes of this process.

Done in a worker that shares its ports, before the program runs; never in a master. The
patch stays in processes that such a worker forks, where it binds for real again: an
inherited listener still has to be accepted from in our way.
"""

from __future__ import annotations

import _socket
import operator
import os
import socket
from types import ModuleType
from typing import Any, SupportsIndex

from mpcluster.importing import when_imported

from . import copies, eventloops, passed, paths, polling, ports, real, waiting
from .binding import Office
from .sockets import SharedSocket, use

__all__ = ["apply"]

_METHODS = (
    "bind",
    "listen",
    "getsockname",
    "connect",
    "connect_ex",
    "accept",
    "_accept",
    "gettimeout",
    "settimeout",
    "setblocking",
    "getblocking",
    "timeout",
    "dup",
    "shutdown",
    "_real_close",
)

#: gevent's own class keeps a C socket, non-blocking for ever, and waits around it.
_GEVENT_METHODS = (
    "bind",
    "listen",
    "getsockname",
    "connect",
    "connect_ex",
    "_accept",
    "shutdown",
)

_applied = False


def apply(office: Office) -> None:
    """Route the binds of this process to ``office``.

    A second call, in a worker's worker, changes the office only.
    """
    global _applied
    use(office)
    os.unlink = paths.unlinker(office.ask, real.unlink)
    os.remove = paths.unlinker(office.ask, real.remove)
    if real.unlink in os.supports_dir_fd:  # shutil.rmtree asks for it when it is imported
        os.supports_dir_fd.add(os.unlink)
    if _applied:
        return
    _applied = True
    for name in _METHODS:
        setattr(socket.socket, name, SharedSocket.__dict__[name])
    socket.fromfd = _fromfd
    polling.install()
    eventloops.accept_few()
    when_imported("gevent._socket3", _patch_gevent)


def _fromfd(fd: SupportsIndex, family: int, type: int, proto: int = 0) -> socket.socket:  # noqa: A002
    sock = real.fromfd(fd, family, type, proto)
    copy = copies.find(operator.index(fd))
    if copy is not None:
        copies.duplicate(real.fileno(sock), copy, None)
    return sock


def _patch_gevent(module: ModuleType) -> None:
    wrapped: Any = module._wrefsocket  # noqa: SLF001
    for name in _GEVENT_METHODS:
        setattr(wrapped, name, SharedSocket.__dict__[name])

    def close(self: _socket.socket) -> None:
        fd = real.fileno(self)
        ports.forget(fd)
        copy = copies.take(fd)
        real.close(self)
        passed.closed(fd)
        if copy is not None:
            waiting.end(copy)
            copies.settle(copy.listener)

    wrapped.close = close
    # It takes up to 100 connections a wake-up, as greedy as asyncio (see eventloops).
    when_imported("gevent.baseserver", _accept_few)


def _accept_few(module: ModuleType) -> None:
    module.BaseServer.max_accept = 1
