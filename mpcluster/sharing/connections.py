"""The connections that this process has in hand, and what the kernel knows of their traffic.

Nothing is noted down when a connection is accepted: whoever wants to know (a drain) looks
through the process's descriptors for sockets with the local address of a shared listener.
That finds those that C code accepted too, and misses none that was accepted a moment ago.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from . import beneath, copies, real

__all__ = ["Connection", "has_unread", "in_hand", "look", "stop_reading"]

_LAST_DATA_SENT = 44  # offsets in struct tcp_info, include/uapi/linux/tcp.h; milliseconds
_LAST_DATA_RECEIVED = 52
_BYTES_RECEIVED = 128
_TCP_INFO_SIZE = 192


@dataclass(frozen=True, slots=True)
class Connection:
    """An accepted connection. What only TCP knows is ``None`` for unix sockets.

    Args:
        fd: Its descriptor.
        silence: Seconds since the last byte in either direction.
        received: Bytes that came so far.
        unanswered: Something came after the last byte that was sent. ``None`` also where
            both were within one tick of the kernel's clock (1 to 10 ms).
    """

    fd: int
    silence: float | None = None
    received: int | None = None
    unanswered: bool | None = None


def in_hand() -> list[Connection]:
    """Every open connection that was accepted from a shared listener of this process."""
    places = {_place(copy.listener.sockname) for copy in copies.known()}
    places |= {_place(one.sockname) for one in beneath.known()}
    return [connection for fd in _sockets() if (connection := _look(fd, places)) is not None]


def look(fd: int) -> Connection | None:
    """What the kernel knows of this one; ``None``: it is no connection, or not any more."""
    return _look(fd, None)


def stop_reading(connection: Connection) -> None:
    """Let the next read find the end, once all that has arrived is read."""
    try:
        with real.Socket(fileno=os.dup(connection.fd)) as sock:
            real.shutdown(sock, socket.SHUT_RD)
    except OSError:
        pass  # closed meanwhile


def has_unread(fd: int) -> bool:
    """Has something arrived that the program has not read? Its end does not count."""
    try:
        with real.Socket(fileno=os.dup(fd)) as sock:
            return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _place(address: object) -> object:
    """What accepted sockets and their listener have in common: the port, or the path.

    Not the family: a listener on IPv6 may take IPv4, too.
    """
    return address[1] if isinstance(address, tuple) else address


def _sockets() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except OSError:
            continue


def _look(fd: int, places: set[object] | None) -> Connection | None:
    try:
        sock = real.Socket(fileno=os.dup(fd))
    except OSError:
        return None
    with sock:
        try:
            if sock.type == socket.SOCK_DGRAM:
                return None
            if places is not None and _place(real.getsockname(sock)) not in places:
                return None
            sock.getpeername()  # a listener has no peer
            if sock.family == socket.AF_UNIX:
                return Connection(fd)
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except (OSError, AttributeError):
            return None
    return _read(fd, info)


def _read(fd: int, info: bytes) -> Connection:
    if len(info) < _BYTES_RECEIVED + 8:  # a kernel before 4.1
        return Connection(fd)
    (sent,) = struct.unpack_from("=I", info, _LAST_DATA_SENT)
    (came,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    unanswered = None if received and came == sent else bool(received) and came < sent
    return Connection(fd, min(sent, came) / 1000, received, unanswered)
