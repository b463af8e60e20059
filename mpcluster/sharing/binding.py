"""Becoming shared: the conversation with the registry when a socket is bound.

The worker donates its own, still unbound socket with every option that the server set on
it. The master binds that very open file description and keeps it; whoever asks for the
same address later gets the kept one, laid over its own descriptor with ``dup2``.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from mpcluster import tally
from mpcluster.address import make_key
from mpcluster.messages import Bind, Bound, Key, Release

from . import beneath, copies, datagrams, eventloops, ports, real, standin
from .copies import Copy, Listener, Tell
from .passed import Line

__all__ = [
    "Ask",
    "Office",
    "allows_several",
    "go_private",
    "is_sharable",
    "mode_of_new_files",
    "share",
    "share_next",
    "share_port_zero",
]

Ask: TypeAlias = Callable[[object], object]

#: For loops that listen in C, where nobody sees with which backlog: uvicorn's default.
_BACKLOG = 2048

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)


@dataclass(frozen=True)
class Office:
    """How this process reaches the registry.

    ``ask(body)`` waits for the answer and raises the registry's error; ``tell(message)``
    does not wait.
    """

    ask: Ask
    tell: Tell


def is_sharable(sock: _socket.socket) -> bool:
    """Is this a kind of socket that the registry knows?"""
    return sock.family in _FAMILIES and sock.type in _TYPES


def share(
    sock: _socket.socket,
    address: object,
    office: Office,
    *,
    ordinal: int | None = None,
    listen: int | None = None,
    scheduling: object = None,
    max_connections: int | None = None,
    mode: int | None = None,
) -> Listener:
    """Make ``sock`` a copy of the cluster's listener at ``address``.

    Raises:
        OSError: The registry's, as ``bind`` would raise it; ``sock`` is what it was.
    """
    copies.sweep()  # what was closed in C must not count as still in use
    key = make_key(sock.family, sock.type, sock.proto, address, ordinal)
    options: dict[str, Any] = {
        "listen": listen,
        "scheduling": scheduling,
        "max_connections": max_connections,
        "mode": mode,
    }
    if ordinal is not None or not allows_several(sock):
        return _share(sock, key, office, **options)
    place = ports.claim_place(key)
    try:
        office = _telling(office, lambda: ports.give_back_place(key, place))
        return _share(sock, (*key[:4], place or None), office, **options)
    except BaseException:
        ports.give_back_place(key, place)
        raise


def _share(
    sock: _socket.socket,
    key: Key,
    office: Office,
    *,
    listen: int | None,
    scheduling: object,
    max_connections: int | None,
    mode: int | None,
) -> Listener:
    timeout = real.gettimeout(sock)
    is_stream = sock.type != socket.SOCK_DGRAM
    event_loop = timeout == 0.0 or eventloops.is_running()
    in_c = is_stream and eventloops.accepts_in_c()
    if listen is None and in_c:
        listen = _BACKLOG
    if mode is None and sock.family == socket.AF_UNIX:
        mode = mode_of_new_files()
    donation = sock if isinstance(sock, real.Socket) else _plain(sock)
    body = Bind(
        key=key,
        socket=donation,
        scheduling=scheduling,
        listen=listen,
        mode=mode,
        event_loop=event_loop,
        in_c=in_c,
        max_connections=max_connections,
    )
    try:
        bound = cast(Bound, office.ask(body))
    finally:
        if donation is not sock:
            donation.close()
    family = sock.family
    if bound.socket is not None:
        if bound.socket.family == socket.AF_INET6:
            family = socket.AF_INET6  # which takes IPv4, too, where that was asked for
        with bound.socket:
            lay_over(bound.socket.fileno(), real.fileno(sock))
    sockname = real.getsockname(sock) if bound.sockname is None else bound.sockname
    listener = Listener(bound.key, sockname, office.tell, donated=bound.socket is None)
    listener.family = family
    if bound.is_line:
        listener.line = Line(real.fileno(sock), counts=bound.counts)
        if not isinstance(sock, standin.StandIn):
            standin.install()
    if is_stream or datagrams.adopt(sock):
        real.settimeout(sock, 0.0)
    else:  # its class cannot wait in Python: the worker's own flag, as good as it gets
        real.settimeout(sock, timeout)
    copies.add(sock, listener, timeout)
    if in_c:
        tally.uncounted()
    if not is_stream or (listen is not None and eventloops.accepts_in_c()):
        listener.announce()
    return listener


def allows_several(sock: _socket.socket) -> bool:
    """Has the program said that it binds more than this one to its address?"""
    if sock.family == socket.AF_UNIX:
        return False
    options = [socket.SO_REUSEPORT]
    if sock.type == socket.SOCK_DGRAM:
        options.append(socket.SO_REUSEADDR)
    return any(sock.getsockopt(socket.SOL_SOCKET, option) for option in options)


def _telling(office: Office, on_release: Callable[[], object]) -> Office:
    """The office, with an ear on the release of what is bound through it."""

    def tell(message: object) -> None:
        if isinstance(message, Release):
            on_release()
        office.tell(message)

    return Office(office.ask, tell)


def _plain(sock: _socket.socket) -> socket.socket:
    """The same open socket as an object that can travel (gevent has a class of its own)."""
    return real.Socket(sock.family, sock.type, sock.proto, fileno=os.dup(real.fileno(sock)))


def lay_over(source: int, target: int) -> None:
    """Make descriptor ``target`` the same open socket as ``source``; its flags stay."""
    os.dup2(source, target, inheritable=os.get_inheritable(target))


def share_port_zero(sock: _socket.socket, office: Office | None) -> None:
    """If ``sock`` was bound to port 0 and is undecided: it is a server now."""
    address = ports.take(real.fileno(sock))
    if address is None or office is None:
        return
    share_next(sock, address, office)


def share_next(sock: _socket.socket, address: object, office: Office, **options: Any) -> None:
    """Make ``sock`` this worker's next listener on port 0 of that address."""
    kind = make_key(sock.family, sock.type, sock.proto, address, 0)[:4]
    ordinal = ports.claim(kind)
    several = allows_several(sock)
    place: tuple[Key, int] | None = None

    def give_back() -> None:
        ports.give_back(kind, ordinal)
        if place is not None:
            ports.give_back_place(*place)

    try:
        listener = share(sock, address, _telling(office, give_back), ordinal=ordinal, **options)
    except BaseException:
        give_back()
        raise
    if several:  # further ones may come, by the number of the port
        named = make_key(sock.family, sock.type, sock.proto, listener.sockname)
        place = named, ports.claim_place(named)


def go_private(sock: _socket.socket, copy: Copy) -> None:
    """A shared socket is about to connect: it was a client's all along.

    The one that was donated goes on as it is, and the registry lets go of it. One that
    was laid over is exchanged for a new socket, bound like it: to connect the shared one
    would connect the siblings.
    """
    listener = copy.listener
    datagrams.restore(sock)
    if listener.donated:
        # Now, not at its close: the master's copy would keep the connection from its end.
        copies.part(listener)
        if _listens(sock):  # for `slots` the master has done that; this undoes it
            real.shutdown(sock, socket.SHUT_RDWR)
    else:
        copies.take(copy.fd)
        with real.Socket(sock.family, sock.type, sock.proto) as fresh:
            _copy_options(sock, fresh)
            beneath.exempt(fresh)
            real.bind(fresh, _own_address(listener.key))
            lay_over(fresh.fileno(), copy.fd)
        copies.settle(listener)
    real.settimeout(sock, copy.timeout)


def _listens(sock: _socket.socket) -> bool:
    if sock.type == socket.SOCK_DGRAM:
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _own_address(key: Key) -> Any:
    return key[3]


def _copy_options(source: _socket.socket, target: _socket.socket) -> None:
    for level, option in (
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_BROADCAST),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    ):
        with contextlib.suppress(OSError):
            target.setsockopt(level, option, source.getsockopt(level, option))


def mode_of_new_files(pid: int | str = "self") -> int:
    """What ``bind`` would give a unix path in that process: its umask decides, not the master's."""
    # Not os.umask(): to read it one must set it, for all threads.
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return 0o777 & ~int(line.split()[1], 8)
    except (OSError, ValueError, IndexError):
        pass
    return 0o755
