"""``cluster.listen()``: a listener shared with whoever asks for the same address."""

from __future__ import annotations

import socket

from mpcluster.address import parse

from . import binding, real
from .binding import Ask, Office
from .copies import Tell
from .datagrams import SharedDatagram
from .sockets import SharedSocket

__all__ = ["shared_listen"]

#: As asyncio and uvicorn have it, roughly; the kernel cuts it to net.core.somaxconn.
_BACKLOG = 2048


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
        mode: Permission bits of a unix path.

    Raises:
        OSError: As from ``bind``; with ``.address``.
    """
    family, where = parse(address, family=family, kind=type)
    backlog = _BACKLOG if backlog is None else backlog
    sock = _class_for(type, exclusive=exclusive)(family, type)
    try:
        if type == socket.SOCK_STREAM and family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if exclusive:
            real.bind(sock, where)
            if type != socket.SOCK_DGRAM:
                real.listen(sock, backlog)
            return sock
        office = Office(ask, tell)
        listen = None if type == socket.SOCK_DGRAM else backlog
        if isinstance(where, tuple) and where[1] == 0:
            binding.share_next(sock, where, office, listen=listen, scheduling=scheduling)
        else:
            binding.share(sock, where, office, listen=listen, scheduling=scheduling, mode=mode)
        if listen is not None:
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


class _ListenedDatagram(SharedDatagram, SharedSocket):
    """Waits in Python, in a process whose ``socket.socket`` may be unpatched."""

    __slots__ = ()


def _class_for(kind: int, *, exclusive: bool) -> type[socket.socket]:
    if exclusive:
        return real.Socket
    return _ListenedDatagram if kind == socket.SOCK_DGRAM else SharedSocket
