"""``cluster.listen()``: a listener shared with whoever asks for the same address."""

from __future__ import annotations

import os
import socket
from typing import Any

from mpcluster.address import Address, SockAddr, failure, parse
from mpcluster.scheduling import check

from . import beneath, binding, polling, real
from .binding import Ask, Office
from .copies import Tell
from .datagrams import SharedDatagram
from .sockets import SharedSocket

__all__ = ["shared_listen"]

#: As asyncio and uvicorn have it, roughly; the kernel cuts it to net.core.somaxconn.
_BACKLOG = 2048

#: What listen(2) takes.
_MOST = 2**31 - 1


def shared_listen(
    ask: Ask,
    tell: Tell,
    address: object,
    *,
    type: int = socket.SOCK_STREAM,  # noqa: A002 -- as socket.socket names it
    family: int | None = None,
    backlog: int | None = None,
    exclusive: bool = False,
    scheduling: object = None,
    max_connections: int | None = None,
    mode: int | None = None,
) -> socket.socket:
    """A bound, listening socket at ``address``, in a worker or in the master.

    Args:
        ask: Asks the registry and waits for the answer.
        tell: Tells the registry something.
        address: ``(host, port)``, a bare port (all IPv4 interfaces), a path, ``unix:/path``.
        type: ``SOCK_STREAM`` or ``SOCK_DGRAM`` (which is bound, and does not listen).
        family: Where ``address`` leaves it open.
        backlog: Connections that may wait; the system's limit applies.
        exclusive: Do not share: bind here and now, in this process.
        scheduling: The policy, by name or as an object; ``None`` is the cluster's.
        max_connections: That each worker may have open; ``None`` is the cluster's.
        mode: Permission bits of a unix path.

    Raises:
        OSError: As from ``bind``; with ``.address``.
        TypeError, ValueError: An argument is none; the text says which, and what would be.
    """
    family, where = parse(address, family=family, kind=type)
    _check_number("max_connections", max_connections, 1, _MOST, "connections of one worker")
    check(scheduling, max_connections)
    _check_number("backlog", backlog, 0, _MOST, "connections that may wait")
    _check_number("mode", mode, 0, 0o777, "permission bits, as 0o660")
    backlog = _BACKLOG if backlog is None else backlog
    sock = _class_for(type, exclusive=exclusive)(family, type)
    try:
        if type == socket.SOCK_STREAM and family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if exclusive:
            _bind_here(sock, where, mode)
            if type != socket.SOCK_DGRAM:
                real.listen(sock, backlog)
            return sock
        polling.install()
        office = Office(ask, tell)
        listen = None if type == socket.SOCK_DGRAM else backlog
        how: dict[str, Any] = {"scheduling": scheduling, "max_connections": max_connections}
        if isinstance(where, tuple) and where[1] == 0:
            binding.share_next(sock, where, office, listen=listen, **how)
        else:
            binding.share(sock, where, office, listen=listen, mode=mode, **how)
        if listen is not None:
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_here(sock: socket.socket, where: SockAddr, mode: int | None) -> None:
    """Bind an exclusive socket; a unix path has its mode from its first moment."""
    try:
        beneath.exempt(sock)
        if mode is not None and isinstance(where, str):
            os.fchmod(real.fileno(sock), mode)  # the path's, once it is bound, less the umask
        real.bind(sock, where)
        if mode is not None and isinstance(where, str):
            os.chmod(where, mode)
    except OSError as error:
        raise failure(error, Address.of(sock.family, where)) from None


def _check_number(name: str, value: object, least: int, most: int, what: str) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is no int: give {what}")
    if not least <= value <= most:
        raise ValueError(f"{name}={value!r} is not in {least}..{most}: give {what}")


class _ListenedDatagram(SharedDatagram, SharedSocket):
    """Waits in Python, in a process whose ``socket.socket`` may be unpatched."""

    __slots__ = ()


def _class_for(kind: int, *, exclusive: bool) -> type[socket.socket]:
    if exclusive:
        return real.Socket
    return _ListenedDatagram if kind == socket.SOCK_DGRAM else SharedSocket
