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
from typing import Final

from mpcluster import descriptors
from mpcluster.pool.records import HEADER

__all__ = ["BEGUN", "FROM", "HEAD", "READY", "SINCE", "SIZE", "TAIL", "TO", "Ring", "new_fence"]

#: Bytes of the answers. An answer that finds no room goes by the socket.
SIZE: Final = 1 << 16
_DATA: Final = 4096
# Indexes of 8-byte numbers; the two sides write to different cache lines.
BEGUN, SINCE, TAIL, READY = 0, 1, 2, 3
HEAD, FROM, TO = 16, 17, 18

_PAD: Final = 0xFFFF  # a kind: nothing more until the end of the ring
_HEADER: Final = HEADER.size


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
        self._head = 0
        self._tail = 0
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
        size = _HEADER + len(payload)
        taken = (size + 7) & ~7
        tail = self._tail
        at = tail % SIZE
        pad = SIZE - at if at + taken > SIZE else 0
        if tail + pad + taken - self._head > SIZE:
            self._head = self.cells[HEAD]
            if tail + pad + taken - self._head > SIZE:
                return False
        data = self._data
        if pad:
            if pad >= _HEADER:
                HEADER.pack_into(data, at, _PAD, 0, 0, 0)
            tail += pad
            at = 0
        HEADER.pack_into(data, at, kind, extra, number, len(payload))
        data[at + _HEADER : at + size] = payload
        self._tail = tail = tail + taken
        if not _ORDERED:
            self.fence()
        self.cells[TAIL] = tail
        return True

    # -- the pool --------------------------------------------------------------------------

    def wait(self, seconds: float) -> bool:
        """Look for an answer again and again, for so long; has one come?"""
        cells, head, clock = self.cells, self._head, time.perf_counter
        until = clock() + seconds
        while cells[TAIL] == head:
            if clock() > until:
                return False
        return True

    def take(self) -> Iterator[tuple[int, int, int, memoryview]]:
        """All answers that are there, as (kind, extra, number, payload).

        The memory of those handed out is the worker's again when all are through.
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
            head += (_HEADER + size + 7) & ~7
            self._head = head  # taken, whatever becomes of it
            yield kind, extra, number, data[at + _HEADER : at + _HEADER + size]
        self._head = head
        cells[HEAD] = head
