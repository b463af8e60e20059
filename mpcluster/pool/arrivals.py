"""What has come of a map's results, and is not yet taken by its consumer."""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeAlias

if TYPE_CHECKING:
    from mpcluster.pool.calls import Options
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.functions import Function

__all__ = ["Arrivals", "Failure", "Piece", "UnorderedArrivals"]


class Failure:
    """A result that is an error: raised once, by who iterates over it.

    Args:
        error: What is raised.
    """

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error: BaseException | None = error

    def __len__(self) -> int:
        """1 until it is raised."""
        return self._error is not None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        error, self._error = self._error, None
        if error is None:
            raise StopIteration
        try:
            if isinstance(error, StopIteration):  # it would end the loop without a word
                raise RuntimeError("a task raised StopIteration") from error  # noqa: TRY004
            raise error
        finally:
            del self, error  # the traceback holds this frame


#: Results that have come together: values, or one error.
Piece: TypeAlias = "list[Any] | Failure"


class Arrivals:
    """The results of a map, in the order of its inputs.

    Attributes:
        given_out: How many calls there are so far.
        handed_out: How many results the consumer has got.
        stopped: The pool has ended: nobody wants any more.
        progress: Told of each result, or None.
        on_taken: Called when the consumer has got some.
        on_dropped: Called when the consumer wants no more of it.
    """

    def __init__(  # noqa: PLR0917
        self,
        engine: Engine,
        pool: object,
        kind: int,
        function: Any,
        known_as: Function,
        options: Options,
    ) -> None:
        self.engine = engine
        self._pool = pool  # it is not dropped before its work is done
        self.kind = kind
        self.function = function
        self.known_as = known_as
        self.options = options
        self.given_out = self.handed_out = 0
        self.stopped = False
        self.progress: Any = None
        self.on_taken: Callable[[], object] | None = None
        self.on_dropped: Callable[[], object] | None = None
        self._pieces: deque[Piece] = deque()
        self._came = 0  # results that have come, in order
        self._length: int | None = None
        self._unsorted: dict[int, Piece] = {}
        # Guards the order of what has come; taken by whoever brings a result. Nothing is
        # called under it.
        self._lock = threading.RLock()
        self._sleepers: deque[LockType] = deque()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._came} came, {self.handed_out} handed out>"

    # -- for the engine ----------------------------------------------------------------------

    def put(self, index: int, values: list[Any]) -> None:
        """The results from ``index`` on have come. Any thread."""
        self._put(index, values)

    def put_error(self, index: int, error: BaseException) -> None:
        """Call ``index`` has raised, or cannot be run. Any thread."""
        self._put(index, Failure(error))

    def _put(self, index: int, piece: Piece) -> None:
        with self._lock:
            if self.stopped:
                return
            self._sort(index, piece)
        if self.progress is not None:
            self.progress(len(piece))
        if self._came == self._length:
            self._pool = None
        if self._sleepers:
            self.poke()

    def _sort(self, index: int, piece: Piece) -> None:
        """Put it where it belongs. Under the lock."""
        if index != self._came:
            self._unsorted[index] = piece
            return
        pieces, unsorted = self._pieces, self._unsorted
        pieces.append(piece)
        index += len(piece)
        while unsorted and index in unsorted:
            piece = unsorted.pop(index)
            pieces.append(piece)
            index += len(piece)
        self._came = index

    def end_after(self, length: int) -> None:
        """There will be so many results, and no more."""
        self._length = length
        if self._came == length:
            self._pool = None
        self.poke()

    def end_with(self, error: BaseException) -> None:
        """The input has raised: that is the last result."""
        length = self.given_out
        self._length = length + 1
        self.put_error(length, error)

    def fail(self, error: BaseException) -> None:
        """The pool has ended: nothing more will come."""
        with self._lock:
            if self.stopped or self._came == self._length:
                return
            self.stopped = True
            self._unsorted.clear()
            self._pieces.append(Failure(error))
            self._length = self._came
        self._pool = None
        self.poke()

    # -- for who waits -------------------------------------------------------------------------

    def ready(self) -> bool:
        """Is there something for the consumer, if only the end?"""
        return bool(self._pieces) or self._came == self._length

    def is_over(self) -> bool:
        """Has everything come, and been handed out?"""
        return self._came == self._length and not self._pieces

    def enlist(self) -> LockType:
        """Return a lock that is released when something has come; see ``ApplyResult``."""
        lock = allocate_lock()
        lock.acquire()
        self._sleepers.append(lock)
        return lock

    def delist(self, lock: LockType) -> None:
        """Release that lock no more."""
        try:
            self._sleepers.remove(lock)
        except ValueError:
            pass

    def poke(self) -> None:
        """Let those that wait look again."""
        while self._sleepers:
            try:
                self._sleepers.popleft().release()
            except IndexError:
                break

    # -- for the consumer ----------------------------------------------------------------------

    def next_piece(self, most: int) -> Piece:
        """The next results, at most so many.

        Raises:
            IndexError: There are none yet.
        """
        piece = self._pieces.popleft()
        if len(piece) > most:
            assert isinstance(piece, list)
            self._pieces.appendleft(piece[most:])
            piece = piece[:most]
        self.handed_out += len(piece)
        return piece

    def end(self) -> None:
        """The consumer has come to the end."""
        self._pool = None
        if self.progress is not None:
            self.progress.close()
            self.progress = None


class UnorderedArrivals(Arrivals):
    """The results of a map, as they come."""

    def _sort(self, _index: int, piece: Piece) -> None:
        self._pieces.append(piece)
        self._came += len(piece)
