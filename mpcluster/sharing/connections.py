"""The connections that this worker has accepted from shared listeners.

A drain waits for them. They are kept as descriptor and socket identity, since a server
may wrap, detach or pass on the object; an entry whose descriptor has become something
else is a closed connection.
"""

from __future__ import annotations

import os
import socket
import struct
from enum import Enum

from . import real
from .copies import Identity, identify

__all__ = ["Quietness", "accepted", "living", "quietness"]

_open: dict[int, Identity] = {}

_TCP_INFO_SIZE = 192
_LAST_DATA_SENT = 44  # offsets in struct tcp_info, include/uapi/linux/tcp.h
_LAST_DATA_RECEIVED = 52
_BYTES_RECEIVED = 128


class Quietness(Enum):
    """What the kernel knows of the traffic on a connection."""

    CLOSED = "closed"
    BUSY = "busy"  # a request came and has not been answered, or it is too early to say
    UNSURE = "unsure"  # last heard and last answered in the same tick of the kernel's clock
    IDLE = "idle"  # nothing came since the last answer, for the time asked
    UNKNOWN = "unknown"  # not TCP: the kernel keeps no times


def accepted(fd: int) -> None:
    """Remember a connection. An entry of the same number is overwritten: that one is closed."""
    _open[fd] = identify(fd)


def living() -> list[int]:
    """The descriptors of the connections that are open still."""
    closed = [fd for fd, identity in list(_open.items()) if identify(fd) != identity]
    for fd in closed:
        _open.pop(fd, None)
    return list(_open)


def quietness(fd: int, seconds: float) -> Quietness:
    """Has this connection had no traffic for ``seconds``, and nothing unanswered?"""
    try:
        with real.Socket(fileno=os.dup(fd)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return Quietness.UNKNOWN
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return Quietness.CLOSED
    if len(info) < _BYTES_RECEIVED + 8:
        return Quietness.UNKNOWN
    (sent_ago,) = struct.unpack_from("=I", info, _LAST_DATA_SENT)
    (received_ago,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    if min(sent_ago, received_ago) < seconds * 1000:
        return Quietness.BUSY
    if not received or sent_ago < received_ago:
        return Quietness.IDLE
    return Quietness.UNSURE if sent_ago == received_ago else Quietness.BUSY


os.register_at_fork(after_in_child=_open.clear)
