"""What a program asks a listener, where a line stands in its place.

The line is a connected socket of another family, and would say so. The methods here answer
for the listener that it stands for. They are put into ``socket.socket`` only when this
process gets its first line: in all others they would cost each connection something.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
from types import ModuleType
from typing import Any

from mpcluster.importing import when_imported

from . import copies, real

__all__ = ["StandIn", "install"]

_METHODS = ("getpeername", "getsockopt", "setsockopt")

_getpeername = _socket.socket.getpeername
_getsockopt = _socket.socket.getsockopt
_setsockopt = _socket.socket.setsockopt

_installed = False


class StandIn(real.Socket):
    """A socket that may be a line."""

    __slots__ = ()

    def getpeername(self) -> Any:
        """A listener has no peer; ``ssl`` asks whether it has."""
        if _line(self) is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return _getpeername(self)

    def getsockopt(self, level: int, option: int, *buffer: int) -> Any:
        """What the program has set, or what a new socket of the kind has."""
        its_line = _line(self)
        if its_line is None:
            return _getsockopt(self, level, option, *buffer)
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return 1
        with real.Socket(self.family, self.type, self.proto) as like:
            value = its_line.options.get((level, option))
            if value is not None:
                _setsockopt(like, level, option, *value)
            return _getsockopt(like, level, option, *buffer)

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """Remember it for the connections, which would inherit it."""
        its_line = _line(self)
        if its_line is None:
            return _setsockopt(self, level, option, *value)
        with real.Socket(self.family, self.type, self.proto) as like:
            _setsockopt(like, level, option, *value)  # an error is the kernel's
        its_line.options[level, option] = value
        return None


def _line(sock: _socket.socket) -> Any:
    copy = copies.find(real.fileno(sock))
    return None if copy is None else copy.listener.line


def install() -> None:
    """Let every socket of this process answer like that. Idempotent."""
    global _installed
    if not _installed:
        _installed = True
        _put_into(real.Socket)
        when_imported("gevent._socket3", _patch_gevent)
        when_imported("ssl", _patch_ssl)


def _put_into(socket_class: Any) -> None:
    for name in _METHODS:
        setattr(socket_class, name, StandIn.__dict__[name])


def _patch_ssl(module: ModuleType) -> None:
    """``ssl`` tries to read from a listener that it wraps: that would take a connection."""
    socket_class: Any = module.SSLSocket
    recv = socket_class.recv

    def recv_unless_line(self: Any, *args: Any) -> Any:
        if getattr(self, "_sslobj", None) is None and _line(self) is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return recv(self, *args)

    socket_class.recv = recv_unless_line


def _patch_gevent(module: ModuleType) -> None:
    _put_into(module._wrefsocket)  # noqa: SLF001
