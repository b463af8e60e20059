"""Frames on their way into the kernel.

An :class:`Outgoing` is one frame and how far it has got; an :class:`Outbox` is the queue of
those that the kernel had no room for. Neither has a lock: a channel's send lock is held
around both.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from mpcluster import descriptors
from mpcluster.pickling import Carried, Segment
from mpcluster.wire import DESCRIPTORS_A_CALL

__all__ = ["NO_ROOM", "NO_SIGNAL", "Outbox", "Outgoing"]

#: The kernel takes nothing now, for want of room, memory, or (ETOOMANYREFS) because a user may
#: not have more descriptors under way than a process may have open.
NO_ROOM: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})

#: For every call that sends: a program may have given SIGPIPE back its default, to die of it.
NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)

#: Bytes and pieces that one call hands to the kernel: enough to fill its buffer (208 KiB by
#: default), few enough that a call which it refuses has cost little.
_MOST_BYTES: Final = 1 << 18
_MOST_PIECES: Final = 256


class Outgoing:
    """One frame: its pieces, the descriptors that go with it, and how far it has got.

    Args:
        pieces: Its bytes. They may be views of a user's memory, until :meth:`keep`.
        carried: Sockets and Connections whose descriptors travel; kept alive until then.
        fds: Owned descriptors that travel before those, and are closed when sent.
        lent: Bytes of memfd memory among them, which the sender answers for.
    """

    __slots__ = ("_carried", "_fds", "_kept", "lent", "mark", "pieces", "sent", "size")

    def __init__(
        self,
        pieces: list[Segment],
        size: int,
        carried: Sequence[Carried] = (),
        fds: Sequence[int] = (),
        *,
        lent: int = 0,
    ) -> None:
        self.pieces = pieces
        self.size = size
        self.sent = 0
        self.lent = lent
        self.mark = 0  # where the outbox's count is when this is through
        self._carried = carried
        self._fds = list(fds)
        self._kept = False
        if len(carried) + len(fds) > DESCRIPTORS_A_CALL:
            self._duplicate()  # they go with several calls, between which the user goes on

    @property
    def plain(self) -> bool:
        """Has it no descriptor that still has to go?"""
        return not (self._fds or self._carried)

    def keep(self) -> None:
        """Make it independent of the user's memory and descriptors: it has to wait.

        Raises:
            OSError: There is no descriptor left to duplicate one into.
        """
        if self._kept:
            return
        self._duplicate()
        self.pieces = [p if type(p) is bytes else bytes(p) for p in self.pieces]
        self._kept = True

    def write(self, sock: socket.socket) -> None:
        """Hand over what the kernel takes at once; :attr:`sent` says how much that was.

        Raises:
            BlockingIOError: It takes nothing.
        """
        while not self.plain:
            self._write_descriptors(sock)
        if self.pieces:
            pieces = self.pieces[:_MOST_PIECES]
            self.advance(sock.sendmsg(pieces, (), NO_SIGNAL))

    def advance(self, count: int) -> None:
        """Take note that the kernel has taken so many bytes of it."""
        self.sent += count
        for done, piece in enumerate(self.pieces):
            size = len(piece)
            if count < size:
                del self.pieces[:done]
                if count:
                    self.pieces[0] = memoryview(piece)[count:]
                return
            count -= size
        self.pieces.clear()

    def drop(self) -> None:
        """Close what has not been sent."""
        for fd in self._fds:
            descriptors.close(fd)
        self._fds.clear()
        self._carried = ()
        self.pieces.clear()

    def _write_descriptors(self, sock: socket.socket) -> None:
        """Send the next lot of them with the next byte, the last lot with all the rest."""
        numbers = self._fds + [thing.fileno() for thing in self._carried]
        lot, last = numbers[:DESCRIPTORS_A_CALL], len(numbers) <= DESCRIPTORS_A_CALL
        pieces = self.pieces[:_MOST_PIECES] if last else [memoryview(self.pieces[0])[:1]]
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", lot))
        count = sock.sendmsg(pieces, (rights,), NO_SIGNAL)
        self.advance(count)
        for fd in self._fds[:DESCRIPTORS_A_CALL]:
            descriptors.close(fd)
        del self._fds[:DESCRIPTORS_A_CALL]
        if last:
            self._carried = ()

    def _duplicate(self) -> None:
        try:
            with descriptors.opening():
                for thing in self._carried:
                    fd = os.dup(thing.fileno())
                    descriptors.own(fd)
                    self._fds.append(fd)
        except OSError:
            self.drop()
            raise
        self._carried = ()


class Outbox:
    """The frames that wait, oldest first."""

    def __init__(self) -> None:
        self._frames: deque[Outgoing] = deque()
        #: Bytes that wait.
        self.size = 0
        #: Bytes ever put in, and ever taken out or given up: both only grow, so a sender
        #: sees by them whether its frame is through and whether anything moves.
        self.entered = 0
        self.left = 0
        #: Bytes ever handed over.
        self.written = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Outgoing) -> int:
        """Queue the rest of a frame.

        Returns:
            The mark that :attr:`left` has reached when the frame is through.

        Raises:
            OSError: There is no descriptor left to duplicate one into.
        """
        frame.keep()
        rest = frame.size - frame.sent
        self._frames.append(frame)
        self.size += rest
        self.entered += rest
        frame.mark = self.entered
        return self.entered

    def withdraw(self, mark: int) -> Outgoing | None:
        """Take a frame out again; not if it has begun, or is through."""
        for frame in self._frames:
            if frame.mark == mark and not frame.sent:
                self._frames.remove(frame)
                self._gone(frame.size)
                frame.drop()
                return frame
        return None

    def write(self, sock: socket.socket) -> None:
        """Hand over what the kernel takes now.

        Raises:
            OSError: The channel is closed at the other end.
        """
        try:
            while self._frames:
                if self._frames[0].plain:
                    self._write_together(sock)
                else:
                    self._write_alone(self._frames[0], sock)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    def clear(self) -> None:
        """Drop everything: nobody will read it."""
        for frame in self._frames:
            frame.drop()
        self._frames.clear()
        self._gone(self.size)

    def _write_alone(self, frame: Outgoing, sock: socket.socket) -> None:
        before = frame.sent
        try:
            frame.write(sock)
        finally:  # it may have taken a part, and then no more
            self._handed_over(frame.sent - before)
            self._forget_sent()

    def _write_together(self, sock: socket.socket) -> None:
        """As many frames as fit, in one call, up to the next with descriptors."""
        pieces: list[Segment] = []
        size = 0
        for frame in self._frames:
            room = _MOST_PIECES - len(pieces)
            if size >= _MOST_BYTES or room <= 0 or not frame.plain:
                break
            pieces += islice(frame.pieces, room)
            size += frame.size - frame.sent
            if len(frame.pieces) > room:
                break
        count = sock.sendmsg(pieces, (), NO_SIGNAL)
        self._handed_over(count)
        while count:
            frame = self._frames[0]
            taken = min(count, frame.size - frame.sent)
            frame.advance(taken)
            count -= taken
            self._forget_sent()

    def _forget_sent(self) -> None:
        if self._frames and self._frames[0].sent == self._frames[0].size:
            self._frames.popleft()

    def _handed_over(self, count: int) -> None:
        self.written += count
        self._gone(count)

    def _gone(self, count: int) -> None:
        self.size -= count
        self.left += count
