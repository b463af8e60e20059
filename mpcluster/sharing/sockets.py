# ruff: noqa: D102 -- the methods keep the contract of the standard library's
"""The methods that differ for shared sockets, as a class of their own.

In a worker that shares its ports they are put into ``socket.socket`` itself
(:mod:`~mpcluster.sharing.patch`); ``cluster.listen()`` makes its sockets of this class
where nothing is patched. For a socket that is not shared each is one look into an
almost always empty table.
"""

from __future__ import annotations

import _socket
import os
import socket
import sys
from types import CodeType, FrameType
from typing import Any, Self

from . import binding, copies, eventloops, paths, ports, real, waiting
from .binding import Office

__all__ = ["SharedSocket", "use"]

_office: Office | None = None

_REPR: CodeType = socket.socket.__repr__.__code__

#: In the code that asks for a descriptor, one of these names says what it is for.
_POLLING_NAMES = frozenset({"select", "poll", "epoll", "register", "modify"})


def use(office: Office | None) -> None:
    """From now on, binds go to this registry (``None``: nowhere, they are real)."""
    global _office
    _office = office


os.register_at_fork(after_in_child=lambda: use(None))


class SharedSocket(real.Socket):
    """A socket as the standard library has it, sharing where it is to be shared."""

    __slots__ = ()

    def bind(self, address: Any, /) -> None:
        office = _office
        if office is None or not binding.is_sharable(self) or not _is_new(self):
            return real.bind(self, address)
        if self.family == socket.AF_UNIX:
            if paths.is_private(address):
                return real.bind(self, address)
        elif not (isinstance(address, tuple) and len(address) >= 2 and address[1] != 0):
            real.bind(self, address)
            if self.type == socket.SOCK_STREAM:
                ports.remember(real.fileno(self), address)
                if eventloops.accepts_in_c() and _may_reuse(self):
                    binding.share_port_zero(self, office)
            return None
        binding.share(self, address, office)
        return None

    def listen(self, *backlog: int) -> None:
        binding.share_port_zero(self, _office)
        real.listen(self, *backlog)
        copy = copies.find(real.fileno(self))
        if copy is not None:
            copy.listener.announce()

    def getsockname(self) -> Any:
        if sys._getframe(1).f_code is not _REPR:  # noqa: SLF001 -- to print a socket decides nothing
            binding.share_port_zero(self, _office)
        copy = copies.find(real.fileno(self))
        # A drained listener is another socket beneath: what it was is what it is called.
        return real.getsockname(self) if copy is None else copy.listener.sockname

    def connect(self, address: Any, /) -> None:
        _becomes_client(self)
        real.connect(self, address)

    def connect_ex(self, address: Any, /) -> int:
        _becomes_client(self)
        return real.connect_ex(self, address)

    def _accept(self) -> tuple[int, Any]:
        copy = copies.find(real.fileno(self))
        accepted: tuple[int, Any]
        if copy is None:
            accepted = real.accept(self)
        else:
            accepted = waiting.attempt(copy, lambda: real.accept(self))
        return accepted

    def fileno(self) -> int:
        fd = real.fileno(self)
        copy = copies.find(fd)
        if copy is not None and not copy.polled:
            copy.polled = _wants_to_poll(sys._getframe(1))  # noqa: SLF001
        return fd

    def gettimeout(self) -> float | None:
        copy = copies.find(real.fileno(self))
        return real.gettimeout(self) if copy is None else copy.timeout

    def settimeout(self, value: float | None, /) -> None:
        copy = copies.find(real.fileno(self))
        if copy is None:
            return real.settimeout(self, value)
        if value is not None:
            value = float(value)
            if value < 0:
                raise ValueError("Timeout value out of range")
        copy.timeout = value
        return None

    def setblocking(self, flag: bool, /) -> None:  # noqa: FBT001
        copy = copies.find(real.fileno(self))
        if copy is None:
            return real.setblocking(self, flag)
        copy.timeout = None if flag else 0.0
        return None

    def getblocking(self) -> bool:
        return self.gettimeout() != 0.0

    @property
    def timeout(self) -> float | None:
        return self.gettimeout()

    def dup(self) -> Self:
        copy = copies.find(real.fileno(self))
        if copy is None:
            return real.dup(self)
        fd = os.dup(copy.fd)
        copies.duplicate(fd, copy, copy.timeout)  # first: settimeout() must not unblock it
        return self.__class__(self.family, self.type, self.proto, fileno=fd)

    def shutdown(self, how: int, /) -> None:
        copy = copies.find(real.fileno(self))
        if copy is None or not copy.listener.listening or self.type == socket.SOCK_DGRAM:
            return real.shutdown(self, how)
        # The kernel would shut the listener for every worker. Here, only its acceptors end.
        waiting.end(copy)
        return None

    def _real_close(self, *args: Any) -> None:
        fd = real.fileno(self)
        ports.forget(fd)
        copy = copies.take(fd)
        real.finish(self, *args)
        if copy is not None:
            waiting.end(copy)
            copies.settle(copy.listener)


def _is_new(sock: _socket.socket) -> bool:
    """Not bound yet by us: to bind again is the kernel's to refuse."""
    return copies.find(real.fileno(sock)) is None


def _may_reuse(sock: _socket.socket) -> bool:
    """A server sets SO_REUSEADDR, a client hardly: the only sign where C code listens."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))


def _becomes_client(sock: _socket.socket) -> None:
    fd = real.fileno(sock)
    ports.forget(fd)
    copy = copies.find(fd)
    if copy is not None and not (copy.listener.listening and sock.type != socket.SOCK_DGRAM):
        binding.go_private(sock, copy)


def _wants_to_poll(frame: FrameType | None) -> bool:
    """Does the code that asks for the descriptor give it to a selector?

    ``select.select([sock], ...)`` and ``epoll.register(sock)`` ask in C, in the name of the
    frame that calls them; ``selectors`` asks in its own. Servers hand the question on
    through a ``fileno()`` of their own. Who prints the number does not poll.
    """
    while frame is not None and frame.f_code.co_name == "fileno":
        frame = frame.f_back
    if frame is None:
        return False
    if frame.f_globals.get("__name__") == "selectors":
        return True
    return not _POLLING_NAMES.isdisjoint(frame.f_code.co_names)
