"""Memory of large parcels, used again.

Fresh shared memory costs several times as much as the copy into it: the kernel finds, clears and
accounts for each of its pages. So who sends keeps the memfds of what he has sent. The receiver says
when the last array in one is gone, by a number in the ring's memory that only he writes; from then
on the next parcel is laid into the same pages.

The receiver's mapping is private (:mod:`mpcluster.memfd`), but for pages to which he has not
written it shows what the sender writes. That matters for nobody but a child that he forks: it has a
mapping of its own, of whose end nobody hears. So what is mapped at a fork is never given back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

from mpcluster import descriptors, memfd

__all__ = ["SEGMENTS", "Parts", "Stock", "give_back_at_the_end", "lay_once", "share"]

#: Most segments that are kept: as many numbers of the ring's are for them.
SEGMENTS: Final = 8
#: Bytes that one side keeps for the other at most, and that all workers of a pool keep together.
_MOST: Final = 1 << 26
_MOST_OF_ALL: Final = 1 << 28

#: Turns the number of one that was given back into that of one that never will be.
_LOST: Final = 1 << 63

Parts = Sequence[Sequence[bytes | bytearray | memoryview]]


def share(processes: int) -> int:
    """Bytes that each of so many workers may keep, and the pool for each."""
    return min(_MOST, _MOST_OF_ALL // max(1, processes))


class _Segment:
    """One memfd that is kept. The sender's."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.mapping: mmap.mmap | None = None

    def fill(self, parts: Parts, offsets: Sequence[int]) -> None:
        """Lay a message into it.

        Raises:
            OSError, ValueError: There is no room to map it.
        """
        if self.mapping is None:
            # From the second time on: to map it costs as much as to write it once.
            tracked = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            self.mapping = mmap.mmap(self.fd, self.size, **tracked)
            self.mapping.madvise(mmap.MADV_DONTFORK)
        with memoryview(self.mapping) as memory:
            for at, pieces in zip(offsets, parts, strict=True):
                for piece in pieces:
                    with memoryview(piece) as whole, whole.cast("B") as flat:
                        memory[at : at + len(flat)] = flat
                        at += len(flat)  # noqa: PLW2901

    def close(self) -> None:
        descriptors.close(self.fd)
        if self.mapping is not None:
            self.mapping.close()


def lay_once(parts: Parts) -> tuple[int, int] | None:
    """As :meth:`Stock.lay`, into memory that is not kept."""
    fd = memfd.create(parts)
    return None if fd is None else (fd, 0)


class Stock:
    """The sender's segments.

    Args:
        cells: The numbers of the ring.
        first: The first of :data:`SEGMENTS` that the receiver writes.
        limit: Bytes to keep.
    """

    def __init__(self, cells: memoryview, first: int, limit: int) -> None:
        # Held while a message is laid in, which takes as long as the copy, and to close. Taken by
        # whoever sends, one thread at a time, and by who closes the link. Re-entrant, as a signal
        # handler may end the pool. A child has no use for it.
        self._lock = threading.RLock()
        self._is_busy = self._is_closed = False
        self._cells = cells
        self._first = first
        self._limit = limit
        self._segments: dict[int, _Segment] = {}
        # By place: how many messages were ever sent from there, the last number given out.
        self._turns = [0] * SEGMENTS

    @property
    def mapped(self) -> int:
        """Bytes of it that count as this process's memory."""
        return sum(one.size for one in self._segments.values() if one.mapping is not None)

    def lay(self, parts: Parts) -> tuple[int, int] | None:
        """Lay a message into memory that can travel.

        Args:
            parts: As of :func:`mpcluster.memfd.create`.

        Returns:
            A descriptor, owned, and the ticket by which it is given back (0: it is not); None where
            there is no memory or no descriptor for it.
        """
        with self._lock:
            if self._is_closed:
                return lay_once(parts)
            self._is_busy = True
            try:
                return self._lay(parts)
            finally:
                self._is_busy = False
                self._empty_if_closed()

    def close(self) -> None:
        """Keep nothing from now on."""
        with self._lock:
            self._is_closed = True
            self._empty_if_closed()

    def _lay(self, parts: Parts) -> tuple[int, int] | None:
        offsets, size = memfd.layout([memfd.size(pieces) for pieces in parts])
        free = self._free()
        place = next((at for at in free if self._segments[at].size >= size), None)
        if place is not None:
            segment = self._segments[place]
            try:
                segment.fill(parts, offsets)
            except (OSError, ValueError):
                return lay_once(parts)
        else:
            place = self._make_room(size, free)
            if place is None:
                return lay_once(parts)
            fd = memfd.create(parts, kept=True)
            if fd is None:
                return None
            segment = self._segments[place] = _Segment(fd, size)
        try:
            with descriptors.opening():
                travelling = os.dup(segment.fd)
                descriptors.own(travelling)
        except OSError:
            return None
        self._turns[place] += 1
        return travelling, self._turns[place] * SEGMENTS + place

    def _empty_if_closed(self) -> None:
        # Not while a message is laid in: it is a signal's handler then that has closed it.
        while self._is_closed and not self._is_busy and self._segments:
            self._segments.popitem()[1].close()

    def _free(self) -> list[int]:
        """The places of those that were given back, the smallest first."""
        free = []
        for place in list(self._segments):
            said, turn = self._cells[self._first + place], self._turns[place]
            if said == turn:
                free.append(place)
            elif said == turn ^ _LOST:
                self._segments.pop(place).close()
        return sorted(free, key=lambda place: self._segments[place].size)

    def _make_room(self, size: int, free: list[int]) -> int | None:
        """A place for a new one, for which free ones go; None where it is not to be kept."""
        if size > self._limit:
            return None
        kept = sum(one.size for one in self._segments.values())
        while kept + size > self._limit or len(self._segments) == SEGMENTS:
            if not free:
                return None
            place = free.pop(0)
            kept -= self._segments[place].size
            self._segments.pop(place).close()
        return next(at for at in range(SEGMENTS) if at not in self._segments)


# -- the receiver ----------------------------------------------------------------------------

#: What is mapped and will be given back: where that is said, and what. Any thread puts in and takes
#: out, one entry in one step.
_mapped: Final[dict[weakref.ref[Any], tuple[memoryview, int, int]]] = {}


def _lose_all() -> None:
    """Before a fork: of what is mapped now, a child has a mapping, too. It is not given back."""
    while _mapped:
        _, (cells, cell, turn) = _mapped.popitem()
        _say(cells, cell, turn ^ _LOST)


os.register_at_fork(before=_lose_all)


def give_back_at_the_end(mapping: Any, cells: memoryview, first: int, ticket: int) -> None:
    """When nobody has the memory any more, say so.

    Args:
        mapping: Of the memory, an ``mmap``.
        cells: The numbers of the ring.
        first: The first of those that this side writes.
        ticket: That came with it.
    """
    turn, place = divmod(ticket, SEGMENTS)

    def gone(reference: weakref.ref[Any]) -> None:
        if _mapped.pop(reference, None) is not None:
            _say(cells, first + place, turn)

    _mapped[weakref.ref(mapping, gone)] = cells, first + place, turn


def _say(cells: memoryview, cell: int, turn: int) -> None:
    with contextlib.suppress(ValueError):  # the ring is closed, and with it the stock
        cells[cell] = turn
