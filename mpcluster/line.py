"""The descriptor of a channel: whose it is, who uses it, and when it is closed.

A thread may be in a call on it, without a lock, while another one closes the channel. So its
users are counted, and the last one inside closes the number: no call can ever land on a
descriptor that means something else by then.
"""

from __future__ import annotations

import contextlib
import socket
from multiprocessing.connection import Connection
from typing import Any, Final

from mpcluster import descriptors

__all__ = ["Line"]

#: Bytes that the kernel may hold for the other side; it doubles the number, and takes no more
#: than the system allows (`net.core.wmem_max`). Its default is full with 278 small messages,
#: for it counts 768 bytes for each: sender and reader then wake each other all the time.
#: Two bare sockets, a small dict, a reader that polls: 146,000 messages/s without it, 296,000
#: with it on CPython 3.11; 270,000 either way on 3.13.
_KERNEL_ROOM: Final = 1 << 20


class Line:
    """One end of a duplex ``Pipe()``, taken over. Calls are under the channel's lock.

    Args:
        connection: It is closed; the line has an owned descriptor of its own that never
            blocks. Or the number of an owned descriptor, which is that one from now on.
    """

    def __init__(self, connection: Connection[Any, Any] | int) -> None:
        with descriptors.opening():
            if isinstance(connection, int):
                self.socket = socket.socket(socket.AF_UNIX, fileno=connection)
                descriptors.own(self.socket)
            else:
                number = connection.fileno()
                self.socket = socket.fromfd(number, socket.AF_UNIX, socket.SOCK_STREAM)
                descriptors.own(self.socket)
                descriptors.close(connection)
        self.socket.setblocking(False)  # noqa: FBT003
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_ROOM)
        #: :meth:`shut` was called.
        self.closed = False
        self._users = 0

    def enter(self) -> None:
        """The caller is about to use the descriptor outside the lock."""
        self._users += 1

    def leave(self) -> bool:
        """The caller has done with it; is he the last one, who has to :meth:`close` it?"""
        self._users -= 1
        return self.closed and not self._users

    def shut(self) -> None:
        """End both directions; whoever waits on the descriptor is woken. Once."""
        self.closed = True
        with contextlib.suppress(OSError):  # the other side was quicker
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the number. Without the lock: a fork may be under way, and is waited for."""
        descriptors.close(self.socket)
