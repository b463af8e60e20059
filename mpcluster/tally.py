"""What a worker counts for those who watch it: a page of memory that it shares with its parent.

The parent makes it before the fork and reads it when it likes; the worker counts. Nothing is
said about it between the two, and what was counted outlives the worker, however that ends.
"""

from __future__ import annotations

import mmap

from mpcluster import perprocess

__all__ = ["Tally", "accepted", "keep", "uncounted"]

_ACCEPTED, _UNCOUNTED = range(2)
_CELL = 8  # bytes, a machine word: it is written, and read by another process, in one piece


class Tally:
    """One worker's counts. Made in its parent."""

    __slots__ = ("cells",)

    def __init__(self) -> None:
        self.cells = memoryview(mmap.mmap(-1, 2 * _CELL)).cast("Q")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} accepted={self.accepted}>"

    @property
    def accepted(self) -> int | None:
        """Connections that its program has accepted from shared listeners.

        None where a loop accepts in C, unseen.
        """
        return None if self.cells[_UNCOUNTED] else self.cells[_ACCEPTED]


def keep(tally: Tally | None) -> None:
    """In a new worker: count in this one. What the worker forks itself counts nowhere."""
    if tally is not None:
        perprocess.mine()[__name__] = tally


def accepted() -> None:
    """One more connection. In a worker; elsewhere nothing."""
    tally: Tally | None = perprocess.mine().get(__name__)
    if tally is not None:
        # One of two threads that accept at one moment may be lost; a lock would cost all more
        # than the count is worth. CPython 3.11 to 3.13 does not change threads in this line.
        tally.cells[_ACCEPTED] += 1


def uncounted() -> None:
    """Connections are accepted here that nobody will tell of."""
    tally: Tally | None = perprocess.mine().get(__name__)
    if tally is not None:
        tally.cells[_UNCOUNTED] = 1
