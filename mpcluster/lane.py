"""A pipe beside a channel's socket, for the many small messages of one direction.

The kernel makes a packet of its own of every write to a socket: 1.6 µs for 90 bytes, and
another 1 µs to read them. A pipe takes the same bytes up in 0.5 µs, and gives thousands of
them with one read. So a side that has sent a number of small messages makes one, sends its
reading end to the other (a LANE frame), and writes small messages there for as long as
nothing waits for room in the socket. All else goes by the socket as before, and what finds
the pipe full does, too: nobody ever waits for a pipe.

The order of the two streams is kept by SYNC frames: whenever a side goes over to the other
stream, it writes there first how far the one that it leaves goes. The reader takes up
everything before that position first; it has been written, so it is there.
"""

from __future__ import annotations

import fcntl
import os
import select
from typing import Final

from mpcluster import descriptors, wire

__all__ = ["Lane"]

#: Bytes of the pipe: what an unprivileged user may have for 256 of them before the kernel
#: gives him smaller ones.
_SIZE: Final = 1 << 18
#: Bytes up to which the kernel takes a write whole or not at all, so that a reader finds no
#: half of a frame when the writer is killed.
_WHOLE: Final = select.PIPE_BUF
_write: Final = os.write


class Lane:
    """The writing side. Calls are under the channel's lock.

    It keeps the reading end open, too: a write after the end of the other side fills the pipe
    instead of raising SIGPIPE, which a program may have given back its default, to die of it.

    Raises:
        OSError: There are no descriptors left for it.
    """

    def __init__(self) -> None:
        with descriptors.opening():
            self._reading_end, self._fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._given = os.dup(self._reading_end)
            except OSError:
                os.close(self._reading_end)
                os.close(self._fd)
                raise
            for fd in (self._reading_end, self._given, self._fd):
                descriptors.own(fd)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _SIZE)
        except OSError:
            pass  # the user has had his share: it is of the usual size
        self._written = 0
        self._told = 0  # of it, what the socket's reader knows of
        self._follows = -1  # the position in the socket after which its reader goes on here

    def give_reading_end(self) -> int:
        """The other side's end, once: an owned descriptor, the caller's from now on."""
        given, self._given = self._given, -1
        return given

    def write(self, frame: bytes, position: int) -> bool:
        """Write a frame whole, if there is room.

        Args:
            frame: A small message's.
            position: Bytes that were ever written to the socket; nothing waits for it.
        """
        if position != self._follows:
            frame = wire.sync(position) + frame
        if len(frame) > _WHOLE:
            return False
        try:
            self._written += _write(self._fd, frame)
        except BlockingIOError:
            return False
        self._follows = position
        return True

    def leave(self) -> bytes:
        """What has to stand in the socket before anything else goes there: maybe nothing."""
        if self._written == self._told:
            return b""
        self._told = self._written
        return wire.sync(self._written)

    def close(self) -> None:
        """Close both ends. Without the channel's lock."""
        descriptors.close(self._fd)
        descriptors.close(self._reading_end)
