"""``imap``: results one after the other, of inputs that may never end.

An :class:`IMapIterator` is what the consumer holds. The calls come from a *feed*: a list, a
range and the like are read by the engine itself, as far as workers have room
(:mod:`mpcluster.pool.runs`). Any other iterable is the user's code and may block, or wait for
a result of this very map: it is read by a thread of its own, so far ahead as the consumer
follows (:mod:`mpcluster.pool.reader`).
"""

from __future__ import annotations

import itertools
import threading
import time
from _thread import get_ident
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Self

from mpcluster.errors import ResultTimeoutError
from mpcluster.pool.arrivals import Arrivals, Failure, Piece

__all__ = ["IMapIterator", "is_inert"]

#: Iterating over these runs no code of a user's.
_INERT: Final = (list, tuple, range, set, frozenset, dict, str, bytes, bytearray, deque)


def is_inert(iterable: object) -> bool:
    """Can it be read anywhere, without running a user's code?"""
    return type(iterable) in _INERT


class IMapIterator(itertools.chain[Any]):
    """The results of ``imap`` or ``imap_unordered``.

    As many as have come together are iterated over in C, without a line of Python for each.
    To drop it is to want no more of an input that may be endless.
    """

    _pieces: _Pieces

    def __new__(cls, arrivals: Arrivals) -> Self:
        """Make the iterator over what arrives there."""
        pieces = _Pieces(arrivals)
        made: Self = cls.from_iterable(pieces)  # type: ignore[assignment]
        made._pieces = pieces
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._pieces.arrivals!r}>"

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result; raise what its call has raised.

        Raises:
            StopIteration: That was all.
            multiprocessing.TimeoutError, TimeoutError: There is none after ``timeout`` seconds.
        """
        if timeout is None:
            return next(self)
        limits = self._pieces.limits
        limits[get_ident()] = timeout
        try:
            return next(self)
        finally:
            limits.pop(get_ident(), None)

    def abandon(self) -> None:
        """No more is read of an input that may be endless; what was read is still done."""
        arrivals = self._pieces.arrivals
        if arrivals.on_dropped is not None:
            arrivals.on_dropped()

    def bound(self, most: int) -> None:
        """Hand out at most so many at once: who reads the input hears of each lot."""
        self._pieces.most = most

    @property
    def ahead(self) -> int:
        """Results that are given out and not taken."""
        pieces = self._pieces
        arrivals, left = pieces.arrivals, len(pieces.left)
        if left and left == pieces.size:  # who was given it takes the first at once
            left -= 1
        return arrivals.given_out - arrivals.handed_out + left


class _Pieces:
    """What the iterator goes through: iterators over the pieces, one after the other.

    The error that a call has raised comes out of such a piece, not out of here: `chain` takes
    that for an end, and would go no further.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.most = 1 << 62
        #: Seconds that a thread waits, by its ident.
        self.limits: dict[int, float] = {}
        self.current: Iterator[Any] = iter(())
        self.left: Piece = []  # of the current piece
        self.size = 0  # of it, when it was new
        # Held while a piece is taken, by the threads that iterate. `chain` keeps one piece:
        # while that is not used up, another thread that comes here gets the same.
        self._taking = threading.RLock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterator[Any]:
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:  # noqa: BLE001  # Ctrl-C, or the limit of time
            return Failure(error)

    def _next(self) -> Iterator[Any]:
        arrivals = self.arrivals
        deadline: float | None = None
        while (found := self._find()) is None:
            if arrivals.on_taken is not None:
                arrivals.on_taken()
            if arrivals.is_over():
                arrivals.end()
                raise StopIteration
            limit = self.limits.get(get_ident())
            if limit is not None:
                now = time.monotonic()
                deadline = now + limit if deadline is None else deadline
                if now >= deadline and not arrivals.ready():
                    raise ResultTimeoutError(f"no result within {limit} s")
            arrivals.engine.wait(arrivals, deadline)
        if arrivals.on_taken is not None:
            arrivals.on_taken()
        return found

    def _find(self) -> Iterator[Any] | None:
        with self._taking:
            if not self.left:
                try:
                    piece = self.arrivals.next_piece(self.most)
                except IndexError:
                    return None
                self.size = len(piece)
                self.left = piece
                self.current = iter(piece)
                if isinstance(piece, list):  # what was taken is kept here no longer
                    piece.reverse()
                    self.current = map(list.pop, itertools.repeat(piece, len(piece)))
            return self.current
