"""Bytes from the other side, cut into messages.

One buffer a channel is read into with calls as large as it is, and whole frames are cut
out of it where they lie: many small messages cost one call. The buffer grows with what has
really come, never with what a header promises. Descriptors come in lots, one with a call at
most, and wait for the frame that they belong to.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import socket
import sys
from collections import deque
from typing import Final

from mpcluster import descriptors, memfd, parts, pickling, wire
from mpcluster.errors import SerializationError
from mpcluster.wire import HEADER, Kind, MalformedFrame, Received, Shape

__all__ = ["Inbox", "LaneInbox"]

_log = logging.getLogger("mpcluster")

#: Bytes. One call takes hundreds of small messages; of large ones, a good part of one.
_BUFFER: Final = 1 << 18
#: Bytes of a new channel's buffer. Most channels of a program that only starts and joins
#: processes carry one short frame, and 256 KiB of fresh memory cost 0.3 ms to touch.
_FIRST_BUFFER: Final = 1 << 12
# As plain numbers: `&` on an IntFlag is Python code, and costs as much as the call itself.
_CTRUNC: Final = int(socket.MSG_CTRUNC)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_SYNC: Final = Kind.SYNC
#: In the place of a shape: one small pickle, as nearly all are.
_PLAIN: Final = Shape(in_memory=False, descriptors=0, buffers=0)
#: Makes a `Received` without the constructor's frame in Python.
_received: Final = tuple.__new__
#: Bytes for one lot of descriptors beside the data.
_RIGHTS: Final = socket.CMSG_SPACE(wire.DESCRIPTORS_A_CALL * 4)


class Inbox:
    """What has come and is not yet delivered. One thread at a time.

    Args:
        sock: A stream socket of the unix family that does not block. It stays the
            caller's.
        label: Who sends, for the log.
    """

    def __init__(self, sock: socket.socket, label: str) -> None:
        self.label = label
        #: The other side has closed, and everything that it sent is delivered.
        self.eof = False
        #: Something came that is no frame; nothing more is read.
        self.broken = False
        #: Either of them.
        self.over = False
        #: Bytes of memfd memory taken over, for the sender to know; reset by the channel.
        self.taken_over = 0
        #: Bytes that the other side says to have taken over; reset by the channel.
        self.acknowledged = 0
        self._sock = sock
        self._buffer = bytearray(_FIRST_BUFFER)
        self._begin = self._end = 0  # what is in the buffer and not yet cut
        self._needed = HEADER.size  # bytes of the first frame there, as far as is known
        # The position of the buffer's first byte in the stream, which counts from the LANE
        # frame on: what came before has not all come this way (the greeting).
        self._cut_before = 0
        self._lots: deque[list[int]] = deque()
        self._whole: list[Received] = []
        #: More was read than the other stream asked for: no descriptor tells of that.
        self.read_ahead = False
        #: The other stream of the same channel, if the other side has opened one.
        self.lane: LaneInbox | None = None

    def take(self, limit: int, *, by_lane: bool = False) -> list[Received]:
        """All messages that are there; reads on no longer than until ``limit`` bytes.

        An empty list means that nothing whole was there, or that it is over.

        Args:
            limit: For each of the two streams.
            by_lane: Only what has come by the lane, and what it follows.
        """
        try:
            if self.lane is not None:
                self.lane.drain(limit)
            if not by_lane:
                self.drain(limit)
                if self.eof and self.lane is not None:
                    self.lane.drain(sys.maxsize)  # what was written after the look into it
            while self.lane is not None and (self.read_ahead or self.lane.read_ahead):
                self.catch_up()
                self.lane.catch_up()
        except MalformedFrame as error:
            _log.warning("%s sends what is no message; nothing more is read: %s", self.label, error)
            self.broken = self.over = True
        if self.over:
            self.close()
        whole = self._whole[:]
        self._whole.clear()  # the lane has the same list
        return whole

    def drain(self, limit: int) -> None:
        """Cut what is there; read on no longer than until ``limit`` bytes.

        Raises:
            MalformedFrame: Something came that is no message.
        """
        # An exception of a signal handler may have left whole frames in the buffer.
        cut = self._cut() if self._begin < self._end else 0
        more = True
        while more and (cut < limit or not self._whole):
            more = self._read()
            cut += self._cut()

    def catch_up(self) -> None:
        """Cut what was read for the sake of the other stream, and went beyond that."""
        if self.read_ahead:
            self.read_ahead = False
            self._cut()

    def advance(self, position: int) -> None:
        """Cut what stands before ``position`` in this stream: it comes before the caller's.

        It has been written before the other stream said so, so it is there.

        Raises:
            MalformedFrame: It is not.
        """
        while self._cut_before + self._begin < position:
            come = self._cut_before + self._end
            self._cut_up_to(min(self._end, position - self._cut_before))
            if come < position:
                self._read()
                if self._cut_before + self._end == come:
                    raise MalformedFrame(f"{position} bytes are announced, {come} have come")
            elif self._cut_before + self._begin < position:
                raise MalformedFrame(f"no frame ends at {position} bytes")
        self.read_ahead = self._begin < self._end

    def close(self) -> None:
        """Drop what is not yet cut, and close the descriptors that came with it."""
        self._buffer = bytearray()
        self._begin = self._end = 0
        while self._lots:
            parts.close_all(self._lots.popleft())
        if self.lane is not None:
            self.lane.close()

    def _read(self) -> bool:
        """Read once; is there more to read?"""
        if self.over:
            return False
        self._make_room()
        room = memoryview(self._buffer)[self._end :]
        try:
            # No other thread may fork before the descriptors that come are in the table.
            with descriptors.opening():
                count, rights, flags, _ = self._sock.recvmsg_into([room], _RIGHTS, _CLOEXEC)
                if rights or flags & _CTRUNC:
                    self._lots.append(parts.owned(rights))
        except BlockingIOError:
            return False
        except OSError:  # ECONNRESET: it ended with something of ours unread
            count = 0
        if not count:
            self.eof = self.over = True
            return False
        self._end += count
        # The kernel gives less than there is room for only where it has no more, or where
        # descriptors came along: it ends a call with those.
        return count == len(room) or bool(rights)

    def _make_room(self) -> None:
        """Room for the next call, in front of it what is there of a frame."""
        have = self._end - self._begin
        size = len(self._buffer)
        if self._end == size:  # the last call filled it: more is coming
            size = max(size, _BUFFER)
        if not have:
            size = min(size, _BUFFER)
        elif self._needed > size:
            size = max(_BUFFER, min(self._needed, 2 * size))
        if size != len(self._buffer):
            # A new one, not a resized one: an error's traceback may hold a view of the old.
            fresh = bytearray(size)
            fresh[:have] = memoryview(self._buffer)[self._begin : self._end]
            self._buffer = fresh
        elif have and size - self._end >= size // 4:
            return
        elif self._begin:
            self._buffer[:have] = self._buffer[self._begin : self._end]
        self._cut_before += self._begin
        self._begin, self._end = 0, have

    def _cut(self) -> int:
        """Cut all whole frames out of the buffer; their size in bytes."""
        cut = self._cut_up_to(self._end)
        if self._lots and self._begin == self._end:
            raise MalformedFrame("descriptors came that belong to no frame")
        return cut

    def _cut_up_to(self, last: int) -> int:
        """Cut the whole frames in front of that place in the buffer; their size in bytes."""
        cut = 0
        shape: Shape | None
        data, whole = self._buffer, self._whole
        buffer = memoryview(data)
        # Nearly every frame is one small pickle, and this loop is what it costs to receive:
        # so what it needs is at hand, and the usual header is read without a call.
        loads, read_plain, plain_kind, size = (
            pickle.loads,
            wire.read_plain,
            wire.PLAIN_KINDS.get,
            HEADER.size,
        )
        while last - self._begin >= size:
            beginning, length = read_plain(data, self._begin)
            kind, shape = plain_kind(beginning), _PLAIN
            if kind is None or not length:
                kind, length, shape = wire.parse(data, self._begin)
            begin = self._begin + size
            end = begin + length
            if end > last:
                self._needed = end - self._begin
                return cut
            if shape is not _PLAIN:
                if kind is _SYNC:
                    # First this: if a signal's handler raises in it, it is asked once more.
                    self._follow(wire.amount(buffer[begin:end]))
                self._begin = end
                cut += self._take_in(kind, shape, buffer[begin:end])
                continue
            self._begin = end
            cut += length
            try:
                message = loads(buffer[begin:end])
            except (Exception, SystemExit) as error:  # noqa: BLE001  # a user's __setstate__
                self._failed(kind, length, error)
            else:
                whole.append(_received(Received, (kind, message, length, None)))
        self._needed = HEADER.size
        return cut

    def _take_in(self, kind: Kind, shape: Shape | None, body: memoryview) -> int:
        """All but the usual frames; a message's size in bytes."""
        if kind is Kind.ACK:
            self.acknowledged += wire.amount(body)
        elif kind is Kind.LANE:
            self._open_lane(self._carried(1))
        elif shape is not None:
            return self._deliver_parts(kind, shape, body)
        return 0

    def _follow(self, position: int) -> None:
        """What stands before that position in the other stream comes first."""
        if self.lane is None:
            raise MalformedFrame("a lane is named, and there is none")
        self.lane.advance(position)

    def _open_lane(self, carried: list[int]) -> None:
        """The other side goes on by a lane, and this is its reading end."""
        if not carried or self.lane is not None:
            parts.close_all(carried)
            raise MalformedFrame("a lane came without its descriptor, or a second one")
        self.lane = LaneInbox(carried[0], self, self._sock, self._whole)
        self._cut_before = -self._begin  # from here on positions count, on both sides

    def _deliver_parts(self, kind: Kind, shape: Shape, body: memoryview) -> int:
        """A message of several parts; its size in bytes."""
        carried = self._carried(shape.descriptors)
        try:
            sizes = wire.untable(shape, body)
            if shape.in_memory:
                self.taken_over += memfd.layout(sizes)[1]
            try:
                if len(carried) < shape.descriptors:
                    raise OSError(errno.EMFILE, "descriptors were lost on their way in")
                data, *buffers = parts.open_parts(shape, body, carried, sizes)
            except (OSError, ValueError, OverflowError, MemoryError) as error:
                self._failed(kind, sum(sizes), error)
            else:
                self._unpickle(kind, sum(sizes), data, buffers, carried)
            return sum(sizes)
        finally:
            parts.close_all(carried)

    def _unpickle(
        self,
        kind: Kind,
        size: int,
        data: memoryview,
        buffers: list[memoryview],
        carried: list[int],
    ) -> None:
        try:
            # A listener on its way to the registry, or from it, is nothing for a fork.
            message = pickling.load(data, buffers, carried, own=kind is Kind.CONTROL)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a user's __setstate__
            self._failed(kind, size, error)
        else:
            self._whole.append(Received(kind, message, size))

    def _failed(self, kind: Kind, size: int, error: BaseException) -> None:
        text = f"a message of {self.label} ({size} bytes) could not be unpickled here: {error!r}"
        serialization_error = SerializationError(text)
        serialization_error.__cause__ = error
        self._whole.append(Received(kind, None, size, serialization_error))

    def _carried(self, count: int) -> list[int]:
        """The frame's descriptors: fewer, where the kernel had none left to give us."""
        numbers: list[int] = []
        for begin in range(0, count, wire.DESCRIPTORS_A_CALL):
            if not self._lots:
                parts.close_all(numbers)
                raise MalformedFrame(f"{count} descriptors are announced and did not come")
            lot = self._lots.popleft()
            numbers += lot
            if len(lot) > min(count - begin, wire.DESCRIPTORS_A_CALL):
                parts.close_all(numbers)
                raise MalformedFrame("more descriptors came than are announced")
        return numbers


class LaneInbox(Inbox):
    """What has come by the lane (:mod:`mpcluster.lane`): small messages.

    Args:
        fd: The lane's reading end; owned, and whoever has the inbox closes it.
        first: What has come by the socket.
        whole: Where both put their messages.
    """

    def __init__(self, fd: int, first: Inbox, sock: socket.socket, whole: list[Received]) -> None:
        super().__init__(sock, first.label)
        self.fd = fd
        self._first = first
        self._whole = whole

    def _read(self) -> bool:
        if self.over:
            return False
        self._make_room()
        room = memoryview(self._buffer)[self._end :]
        try:
            count = os.readv(self.fd, [room])
        except BlockingIOError:
            return False
        self.over = not count
        self._end += count
        return count == len(room)

    def _follow(self, position: int) -> None:
        self._first.advance(position)

    def _take_in(self, kind: Kind, shape: Shape | None, body: memoryview) -> int:
        if kind is not _SYNC:
            raise MalformedFrame(f"{kind!r} came by a lane")
        return super()._take_in(kind, shape, body)
