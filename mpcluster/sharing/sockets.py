# ruff: noqa: D102 -- the methods keep the contract of the standard library's
"""The methods that differ for shared sockets, as a class of their own.

In a worker that shares its ports they are put into ``socket.socket`` itself
(:mod:`~mpcluster.sharing.patch`); ``cluster.listen()`` makes its sockets of this class
where nothing is patched. For a socket that is not shared each is one look into an
almost always empty table.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import sys
from types import CodeType
from typing import Any, Self

from mpcluster import tally

from . import beneath, binding, copies, eventloops, passed, paths, pollers, ports, real, waiting
from .binding import Office
from .copies import Accepted, Copy, Taken
from .mapped import MappedSocket, pair
from .readiness import take
from .standin import StandIn

__all__ = ["SharedSocket", "use"]

_office: Office | None = None

_REPR: CodeType = socket.socket.__repr__.__code__


def use(office: Office | None) -> None:
    """From now on, binds go to this registry (``None``: nowhere, they are real)."""
    global _office
    _office = office


os.register_at_fork(after_in_child=lambda: use(None))


class SharedSocket(StandIn):
    """A socket as the standard library has it, sharing where it is to be shared."""

    __slots__ = ()

    def bind(self, address: Any, /) -> None:
        office = _office
        if office is None or not binding.is_sharable(self) or not _is_new(self):
            return real.bind(self, address)
        if self.family == socket.AF_UNIX:
            if paths.is_private(address):
                beneath.exempt(self)
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
        copy = copies.find(real.fileno(self))
        if copy is None or copy.listener.line is None:
            real.listen(self, *backlog)
        else:
            copy.listener.line.listen(copy.fd, *backlog)
        if copy is not None:
            copy.listener.announce()

    def getsockname(self) -> Any:
        fd = real.fileno(self)
        if fd not in copies.table and fd not in ports.undecided:
            return real.getsockname(self)
        if sys._getframe(1).f_code is not _REPR:  # noqa: SLF001 -- to print a socket decides nothing
            binding.share_port_zero(self, _office)
        copy = copies.find(fd)
        # A drained listener is another socket beneath: what it was is what it is called.
        return real.getsockname(self) if copy is None else copy.listener.sockname

    def connect(self, address: Any, /) -> None:
        _becomes_client(self)
        real.connect(self, address)

    def connect_ex(self, address: Any, /) -> int:
        _becomes_client(self)
        return real.connect_ex(self, address)

    def accept(self) -> tuple[socket.socket, Any]:
        copy = copies.acceptor(real.fileno(self))
        if copy is None:
            return real.accept_object(self)
        fd, address = _next(copy)
        # As the standard library's, but for the look at the timeout, which is ours.
        family, kind = copy.listener.key[:2]
        made = socket.socket
        if copy.listener.family != family:
            family, made = copy.listener.family, MappedSocket
        connection = made(family, kind, self.proto, fileno=fd)
        if copy.timeout and socket.getdefaulttimeout() is None:
            connection.settimeout(None)
        return connection, address

    def _accept(self) -> Accepted:
        copy = copies.acceptor(real.fileno(self))
        if copy is not None:
            return _next(copy)
        accepted: Accepted = real.accept(self)
        return accepted

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
        _set_timeout(copy, value)
        return None

    def setblocking(self, flag: bool, /) -> None:  # noqa: FBT001
        fd = real.fileno(self)
        copy = copies.find(fd) if fd in copies.table else None
        if copy is None:
            return real.setblocking(self, flag)
        _set_timeout(copy, None if flag else 0.0)
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
        fd = real.fileno(self)
        copy = copies.find(fd) if fd in copies.table else None
        if copy is None or not copy.listener.listening or self.type == socket.SOCK_DGRAM:
            return real.shutdown(self, how)
        # The kernel would shut the listener for every worker. Here, only its acceptors end.
        waiting.end(copy)
        return None

    def _real_close(self, *args: Any) -> None:
        fd = real.fileno(self)
        copy = None
        if fd in copies.table or fd in ports.undecided:
            ports.forget(fd)
            copy = copies.take(fd)
        real.finish(self, *args)
        passed.closed(fd)
        if copy is not None:
            waiting.end(copy)
            copies.settle(copy.listener)


def _next(copy: Copy) -> Accepted:
    """The next connection; first those that the program was told of."""
    listener = copy.listener
    taken: Taken | OSError | None = None
    if listener.taken:
        with contextlib.suppress(IndexError):  # another thread was quicker
            taken = listener.taken.popleft()
    if taken is None:
        taken = take(copy) if copy.timeout == 0.0 else waiting.attempt(copy, lambda: take(copy))
    if isinstance(taken, OSError):
        raise taken
    fd, address, number = taken
    if number is not None:
        assert listener.line is not None
        listener.line.accept(fd, number)
    tally.accepted()
    if listener.family != listener.key[0]:
        return fd, pair(address)
    return fd, address


def _set_timeout(copy: Copy, timeout: float | None) -> None:
    blocks = copy.timeout == 0.0 and timeout != 0.0
    copy.timeout = timeout
    if blocks:
        pollers.reconsider()


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
