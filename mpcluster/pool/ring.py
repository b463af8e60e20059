"""Memory that a pool and one of its workers share: three numbers, and a ring of answers.

The worker writes, the pool reads; no lock and no system call is between them. So the pool
knows, at any moment and after any death, which order the worker has begun, and has every
answer that the worker had finished, also those of which it had not been told yet.

The numbers, each written by one side alone::

    BEGUN   worker   number of the order that it has begun last
    SINCE   worker   when that was, ``time.monotonic_ns()``
    TAIL    worker   bytes of answers ever written
    HEAD    pool     bytes of answers ever taken out
    FROM    pool     orders from this number on, and before TO, are taken back:
    TO      pool     the worker answers SKIPPED instead of beginning them

*Runs.* The values of a run of orders stand in one answer, whose size is :data:`records.OPEN`
as long as more may come. Each is whole, and told of by TAIL, before the next order is begun:
what a worker has finished is never lost with it. HEAD stays before an open one.

*Taking back.* The worker writes BEGUN and then looks at FROM and TO; the pool writes those
and then looks at BEGUN. With a full fence between on either side, at least one of the two
sees the other. So an order past the BEGUN that the pool has read is surely not begun, nor
will it be. One that both have seen is answered SKIPPED, and then known.
"""

from __future__ import annotations

import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from mpcluster import descriptors
from mpcluster.pool import records
from mpcluster.pool.records import HEADER, OPEN, VALUES

__all__ = [
    "ANSWERS_BACK",
    "BEGUN",
    "FROM",
    "HEAD",
    "ORDERS_BACK",
    "READY",
    "SINCE",
    "SIZE",
    "TAIL",
    "TO",
    "Ring",
    "new_fence",
]

#: Bytes of the answers. An answer that finds no room goes by the socket.
SIZE: Final = 1 << 16
_DATA: Final = 4096
# Indexes of 8-byte numbers; the two sides write to different cache lines.
BEGUN, SINCE, TAIL, READY = 0, 1, 2, 3
HEAD, FROM, TO = 16, 17, 18
#: The first of those by which the worker, and the pool, give memory back (:mod:`.stock`).
ORDERS_BACK, ANSWERS_BACK = 32, 48

#: Bytes of a run of values, at most: so much of the ring it keeps taken until it is ended.
_LONGEST_RUN: Final = SIZE // 4
_MOST_TIME: Final = 0xFFFFFFFF

_PAD: Final = 0xFFFF  # a kind: nothing more until the end of the ring
_HEADER: Final = HEADER.size
_EXTRA: Final = 1  # where in a header that number is, in 4 bytes each
_SIZE: Final = 2  # and its last, in 8 bytes each


def new_fence() -> tuple[Callable[[], object], Callable[[], object]]:
    """Make a full memory fence: call the first, then the second. For one thread at a time.

    Giving a lock back and taking it again is one: its atomic operations have release and
    acquire order, and these two may not pass one another. Nobody ever waits for it.
    """
    lock = threading.Lock()
    lock.acquire()
    return lock.release, lock.acquire


#: Between the bytes of an answer and the TAIL that tells of them. x86 keeps the order of
#: writes by itself.
_ORDERED: Final = platform.machine() in ("x86_64", "AMD64", "i686")


class Ring:
    """One worker's shared memory; made by the pool, mapped by the worker too.

    Args:
        fd: A memfd of :meth:`create`. It stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _DATA + SIZE)
        self.bytes = memoryview(self._map)
        self.cells = self.bytes[:_DATA].cast("Q")
        self._data = self.bytes[_DATA:]
        # What changes in a header that has been told of is written and read in one piece, which
        # `struct` does not do.
        self._words = self._data.cast("Q")
        self._halves = self._data.cast("I")
        self._head = 0
        self._tail = 0
        # Of an open run. The worker's: where it began, where it must end, its first number and
        # the one that follows, and the nanoseconds that its orders took.
        self._begin = self._end = self._first = 0
        self._next = -1
        self._took = 0
        # The pool's: bytes and values taken out of it, and the TAIL that was seen last.
        self._eaten = self._count = 0
        self._seen = 0
        self._fence = new_fence()

    @staticmethod
    def create() -> int:
        """Make the memory; its descriptor, owned (see :mod:`mpcluster.descriptors`)."""
        with descriptors.opening():
            fd = os.memfd_create("mpcluster-pool", os.MFD_CLOEXEC)
            descriptors.own(fd)
        os.ftruncate(fd, _DATA + SIZE)
        return fd

    def close(self) -> None:
        """Unmap it; when somebody still holds a view of it, as soon as he lets go."""
        try:
            self._words.release()
            self._halves.release()
            self._data.release()
            self.cells.release()
            self.bytes.release()
            self._map.close()
        except BufferError:
            pass  # the traceback of an error does, maybe

    def fence(self) -> None:
        """Let everything written before be seen before anything after this is read."""
        release, acquire = self._fence
        release()
        acquire()

    # -- the worker ------------------------------------------------------------------------

    def put(self, kind: int, extra: int, number: int, payload: bytes) -> bool:
        """Write an answer; False when there is no room for it."""
        if self._next >= 0:
            self.end_run()
        size = _HEADER + len(payload)
        taken = (size + 7) & ~7
        at = self._make_room(taken)
        if at < 0:
            return False
        data = self._data
        HEADER.pack_into(data, at, kind, extra, number, len(payload))
        data[at + _HEADER : at + size] = payload
        self._tail += taken
        if not _ORDERED:
            self.fence()
        self.cells[TAIL] = self._tail
        return True

    def _make_room(self, taken: int) -> int:
        """Where so many bytes can be written in one piece, or -1."""
        tail = self._tail
        at = tail % SIZE
        pad = SIZE - at if at + taken > SIZE else 0
        if tail + pad + taken - self._head > SIZE:
            self._head = self.cells[HEAD]
            if tail + pad + taken - self._head > SIZE:
                return -1
        if pad:
            if pad >= _HEADER:
                HEADER.pack_into(self._data, at, _PAD, 0, 0, 0)
            self._tail = tail + pad
            return 0
        return at

    def add(self, number: int, took: int, body: bytes) -> bool:
        """Write the value of an order of a run; False when there is no room for it.

        Args:
            number: That of the order.
            took: Nanoseconds that it took.
            body: See :func:`mpcluster.pool.records.body`.
        """
        begin = self._tail
        end = begin + len(body)
        if number != self._next or end > self._end:
            if self._next >= 0:
                self.end_run()
            if not self._begin_run(number, len(body)):
                return False
            begin = self._tail
            end = begin + len(body)
        at = begin % SIZE
        self._data[at : at + end - begin] = body
        self._tail = end
        self._next = number + 1
        self._took += took
        if not _ORDERED:
            self.fence()
        self.cells[TAIL] = end
        return True

    def _begin_run(self, number: int, size: int) -> bool:
        # What is not used of this room is free again at the end of the run.
        for room in (_LONGEST_RUN, _LONGEST_RUN // 8):
            if _HEADER + size <= room - 8:  # its end is rounded up
                at = self._make_room(room)
                if at >= 0:
                    break
        else:
            return False
        self._first, self._took = number, 0
        self._begin = self._tail
        self._end = self._begin + room - 8
        HEADER.pack_into(self._data, at, VALUES, 0, number, OPEN)
        self._tail += _HEADER
        return True

    def end_run(self, most: int = 1 << 62) -> None:
        """No more is added to the open run.

        Args:
            most: Nanoseconds that its orders took, at most.
        """
        if self._next < 0:
            return
        self._next = -1
        begin, tail = self._begin, self._tail
        at = begin % SIZE
        self._halves[at // 4 + _EXTRA] = min(self._took // 100, most // 100, _MOST_TIME)
        if not _ORDERED:
            self.fence()
        self._words[at // 8 + _SIZE] = tail - begin - _HEADER
        if not _ORDERED:
            self.fence()
        self._tail = (tail + 7) & ~7
        self.cells[TAIL] = self._tail

    # -- the pool --------------------------------------------------------------------------

    def wait(self, seconds: float) -> bool:
        """Look for an answer again and again, for so long; has one come?"""
        cells, seen, clock = self.cells, self._seen, time.perf_counter
        until = clock() + seconds
        while cells[TAIL] == seen:
            if clock() > until:
                return False
        return True

    def take(self) -> Iterator[tuple[int, int, int, Any]]:
        """All answers that are there, as (kind, extra, number, payload).

        The memory of those handed out is the worker's again when all are through. The payload
        of a run is (values, for how many the time is told).
        """
        cells = self.cells
        data = self._data
        unpack = HEADER.unpack_from
        head, tail = self._head, cells[TAIL]
        while head < tail:
            at = head % SIZE
            if SIZE - at < _HEADER:
                head += SIZE - at
                continue
            kind, extra, number, size = unpack(data, at)
            if kind == _PAD:
                head += SIZE - at
                continue
            if kind == VALUES:
                # TAIL was read first: as long as it is open, all until there is of this run.
                size = self._words[at // 8 + _SIZE]
                extra = self._halves[at // 4 + _EXTRA]
                is_open = size == OPEN
                if is_open:
                    size = tail - head - _HEADER
                    if size == self._eaten:
                        break
                begin = at + _HEADER + self._eaten
                values = records.values(data[begin : at + _HEADER + size])
                number += self._count
                self._eaten, self._count = size, self._count + len(values)
                if is_open:
                    self._head = head
                    yield kind, 0, number, (values, 0)
                    break
                told = self._count
                self._eaten = self._count = 0
                self._head = head = head + ((_HEADER + size + 7) & ~7)
                yield kind, extra, number, (values, told)
                continue
            head += (_HEADER + size + 7) & ~7
            self._head = head  # taken, whatever becomes of it
            yield kind, extra, number, data[at + _HEADER : at + _HEADER + size]
        self._head = head
        self._seen = tail
        cells[HEAD] = head
