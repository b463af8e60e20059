"""``imap``: results one after the other, of inputs that may never end.

An :class:`IMapIterator` is what the consumer holds; a *feed* is where the engine gets the
calls from. There are two kinds of feed. A list, a range and the like are read by the engine
itself, as far as workers have room. Any other iterable is the user's code and may block, or
wait for a result of this very map: it is read by a thread of its own, so far ahead as the
consumer follows (:mod:`mpcluster.pool.reader`).
"""

from __future__ import annotations

import itertools
import threading
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from mpcluster.errors import ResultTimeoutError, TaskCancelledError
from mpcluster.pool.results import Options

if TYPE_CHECKING:
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.functions import Function

__all__ = ["Feed", "IMapIterator", "IMapUnorderedIterator", "Item", "is_inert"]

#: Iterating over these runs no code of a user's.
_INERT: Final = (list, tuple, range, set, frozenset, dict, str, bytes, bytearray, deque)


def is_inert(iterable: object) -> bool:
    """Can it be read anywhere, without running a user's code?"""
    return type(iterable) in _INERT


class Item:
    """One call of a map; a :class:`~mpcluster.pool.results.Call`."""

    __slots__ = ("deaths", "given", "index", "kind", "known_as", "link", "number", "owner")

    def __init__(self, owner: IMapIterator, index: int, given: Any) -> None:
        self.owner = owner
        self.index = index
        self.given = given
        self.kind = owner.kind
        self.known_as = owner.known_as
        self.link: Any = None
        self.deaths = 0

    @property
    def options(self) -> Options:
        """Those of the map."""
        return self.owner.options

    @property
    def function(self) -> Any:
        """That of the map."""
        return self.owner.function

    def finish(self, value: Any) -> None:
        """It has returned ``value``."""
        self.owner.put(self.index, (True, value))

    def fail(self, error: BaseException) -> None:
        """It has raised ``error``."""
        self.owner.put(self.index, (False, error))

    def cancel_unsent(self) -> None:
        """Cancel the map."""
        self.drop(TaskCancelledError("this call was cancelled"))

    def drop(self, error: BaseException) -> None:
        """The pool has ended."""
        self.owner.fail(error)

    def is_over(self) -> bool:
        """Was the map stopped?"""
        return self.owner.stopped


class Feed:
    """Where the calls of one map come from, as the engine sees it.

    Args:
        owner: Whose calls these are. Held by its calls too.
        iterable: An inert one.
    """

    def __init__(self, owner: IMapIterator, iterable: Iterable[Any]) -> None:
        self._owner = owner
        self._items = enumerate(iterable)
        self.known_as = owner.known_as

    def cancel_unsent(self) -> None:
        """Cancel the map."""
        self.drop(TaskCancelledError("this call was cancelled"))

    def drop(self, error: BaseException) -> None:
        """The pool has ended."""
        self._owner.fail(error)

    def take(self, count: int) -> list[Item]:
        """The next calls, at most ``count``; an empty list when there are no more.

        One thread at a time, under the engine's lock.
        """
        owner = self._owner
        try:
            items = [Item(owner, i, given) for i, given in itertools.islice(self._items, count)]
        except RuntimeError as error:  # a dict that has changed size
            owner.end_with(error)
            return []
        if owner.stopped:
            return []
        owner.given_out += len(items)
        if len(items) < count:
            owner.end_after(owner.given_out)
        return items


class IMapIterator:
    """The results of ``imap``, in the order of the inputs."""

    def __init__(  # noqa: PLR0917
        self,
        engine: Engine,
        pool: object,
        kind: int,
        function: Any,
        known_as: Function,
        options: Options,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self.kind = kind
        self.function = function
        self.known_as = known_as
        self.options = options
        self.given_out = 0
        self.stopped = False
        self.progress: Any = None
        #: Called when the consumer has taken a result.
        self.on_taken: Callable[[], object] | None = None
        #: Called when the consumer wants no more of it.
        self.on_dropped: Callable[[], object] | None = None
        self._items: deque[tuple[bool, Any]] = deque()
        self._index = 0  # results that have come in order
        self._taken = 0
        self._length: int | None = None
        self._unsorted: dict[int, tuple[bool, Any]] = {}
        # Guards the order of what has come; taken by whoever brings a result. Nothing is
        # called under it.
        self._lock = threading.RLock()
        self._sleepers: deque[LockType] = deque()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._taken} taken, {len(self._items)} there>"

    # -- for the engine ----------------------------------------------------------------------

    def put(self, index: int, result: tuple[bool, Any]) -> None:
        """Result ``index`` has come. Any thread."""
        with self._lock:
            if index == self._index:
                self._items.append(result)
                self._index = index = index + 1
                unsorted = self._unsorted
                while unsorted and index in unsorted:
                    self._items.append(unsorted.pop(index))
                    self._index = index = index + 1
            else:
                self._unsorted[index] = result
        self._arrived()

    def put_all(self, results: list[tuple[int, tuple[bool, Any]]]) -> None:
        """These have come. One thread at a time, beside :meth:`put`."""
        with self._lock:
            items, unsorted = self._items, self._unsorted
            expected = self._index
            for index, result in results:
                if index == expected:
                    items.append(result)
                    expected += 1
                    while unsorted and expected in unsorted:
                        items.append(unsorted.pop(expected))
                        expected += 1
                else:
                    unsorted[index] = result
            self._index = expected
        self._arrived(len(results))

    def _arrived(self, count: int = 1) -> None:
        if self.progress is not None:
            self.progress(count)
        if self._index == self._length:
            self._pool = None
        if self._sleepers:
            self.poke()

    def end_after(self, length: int) -> None:
        """There will be so many results, and no more."""
        self._length = length
        if self._index == length:
            self._pool = None
        self.poke()

    def end_with(self, error: BaseException) -> None:
        """The input has raised: that is the last result."""
        length = self.given_out
        self._length = length + 1
        self.put(length, (False, error))

    def ready(self) -> bool:
        """Is there something for the consumer, if only the end?"""
        return bool(self._items) or self._index == self._length

    def fail(self, error: BaseException) -> None:
        """The pool has ended: nothing more will come."""
        with self._lock:
            if self.stopped or self._index == self._length:
                return
            self.stopped = True
            self._unsorted.clear()
            self._items.append((False, error))
            self._length = self._index
        self._pool = None
        self.poke()

    def abandon(self) -> None:
        """No more is read of an input that may be endless; what was read is still done."""
        if self.on_dropped is not None:
            self.on_dropped()

    def poke(self) -> None:
        """Let those that wait look again."""
        while self._sleepers:
            try:
                self._sleepers.popleft().release()
            except IndexError:
                break

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

    @property
    def ahead(self) -> int:
        """Results that are given out and not taken."""
        return self.given_out - self._taken

    # -- the consumer ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result; raise what its call has raised.

        Raises:
            StopIteration: That was all.
            multiprocessing.TimeoutError, TimeoutError: There is none after ``timeout`` seconds.
        """
        try:
            good, value = self._items.popleft()
        except IndexError:
            good, value = self._wait_for_next(timeout)
        self._taken += 1
        if self.on_taken is not None:
            self.on_taken()
        if good:
            return value
        try:
            raise value
        finally:
            del self, value  # the traceback holds this frame

    __next__ = next  # noqa: A003  # as multiprocessing names it

    def _wait_for_next(self, timeout: float | None) -> tuple[bool, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._index == self._length and not self._items:
                self._pool = None
                if self.progress is not None:
                    self.progress.close()
                    self.progress = None
                raise StopIteration
            self._engine.wait(self, deadline)
            try:
                return self._items.popleft()
            except IndexError:
                if self._index == self._length:
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    raise ResultTimeoutError(f"no result within {timeout} s") from None


class IMapUnorderedIterator(IMapIterator):
    """The results of ``imap_unordered``, as they come."""

    def put(self, _index: int, result: tuple[bool, Any]) -> None:
        """A result has come. Any thread."""
        with self._lock:
            self._items.append(result)
            self._index += 1
        self._arrived()

    def put_all(self, results: list[tuple[int, tuple[bool, Any]]]) -> None:
        """These have come."""
        with self._lock:
            self._items.extend([result for _, result in results])
            self._index += len(results)
        self._arrived(len(results))
