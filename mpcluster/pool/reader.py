"""The thread that reads an input of ``imap`` that is a user's code."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mpcluster.pool.imap import IMapIterator, Item

if TYPE_CHECKING:
    from mpcluster.pool.engine import Engine

__all__ = ["Reader"]

#: Results that an endless map keeps ahead of its consumer, when the calls are short.
_MOST_AHEAD: Final = 1 << 14
#: Seconds of work for each worker that it keeps ahead of its consumer.
_TIME_AHEAD: Final = 0.05
#: Items that are read at once.
_SLICE: Final = 256


class Reader:
    """Reads an input that is a user's code, in a thread of its own.

    The thread is started with the map. It sleeps while the consumer is behind; taking a
    result wakes it, and so does the end of the pool. It ends with the input, or soon after
    the consumer has dropped the iterator; an input that blocks for ever keeps it, as a
    daemon. A forked child has no such thread.

    Args:
        limit: Results ahead of the consumer, or None for as many as keep workers busy.
    """

    def __init__(
        self,
        owner: IMapIterator,
        iterable: Iterable[Any],
        engine: Engine,
        limit: int | None,
    ) -> None:
        self._owner = weakref.ref(owner, self._consumer_is_gone)
        # Work that is done for its effect alone, whose results nobody ever takes, goes on.
        self._untouched: IMapIterator | None = owner
        self._iterable = iterable
        self._engine = engine
        self._limit = limit
        self._room = threading.Event()
        self._stopped = self._is_done = False
        owner.on_taken = self._taken
        owner.on_dropped = self.stop
        thread = threading.Thread(target=self._run, name="mpcluster-imap", daemon=True)
        thread.start()

    def _consumer_is_gone(self, _reference: object) -> None:
        self._stopped = True
        self._room.set()

    def _taken(self) -> None:
        self._untouched = None
        if not self._room.is_set():
            owner = self._owner()
            if owner is not None and owner.ahead <= self._bound(owner) // 2:
                self._room.set()

    def stop(self) -> None:
        """The pool has ended, or nobody wants more of it."""
        self._untouched = None
        self._consumer_is_gone(None)

    def unbound(self) -> None:
        """Nobody will take more results before all have come: read on to the end."""
        self._limit = 1 << 62
        self._room.set()

    def is_reading(self) -> bool:
        """Is there more of the input, and somebody who wants it?"""
        return not (self._is_done or self._stopped)

    def _bound(self, owner: IMapIterator) -> int:
        if self._limit is not None:
            return self._limit
        mean = owner.known_as.mean
        slots = self._engine.slots
        if not mean:
            return 4 * slots
        return min(_MOST_AHEAD, max(4 * slots, int(slots * _TIME_AHEAD / mean)))

    def _run(self) -> None:
        try:
            self._read()
        finally:
            self._is_done = True
            self._untouched = None
            self._engine.interrupt()

    def _read(self) -> None:
        try:
            items = iter(self._iterable)
        except BaseException as error:  # noqa: BLE001
            self._end(error)
            return
        del self._iterable
        while not self._stopped:
            owner = self._owner()
            if owner is None or owner.stopped:
                return
            room = self._bound(owner) - owner.ahead
            if room <= 0:
                self._room.clear()
                if owner.ahead > self._bound(owner) // 2:
                    del owner
                    self._room.wait()
                continue
            calls: list[Item] = []
            more = True
            try:
                for _ in range(min(room, _SLICE)):
                    try:
                        given = next(items)
                    except StopIteration:
                        more = False
                        break
                    calls.append(Item(owner, owner.given_out, given))
                    owner.given_out += 1
                    if len(calls) == 1 and self._engine.is_hungry():
                        break  # the first of a slow input need not wait for the next
            except BaseException as error:  # noqa: BLE001
                self._engine.submit_all(calls)
                owner.end_with(error)
                self._engine.interrupt()
                return
            if not more:
                owner.end_after(owner.given_out)
            self._engine.submit_all(calls)
            if not more:
                self._engine.interrupt()
                return
            del calls, owner

    def _end(self, error: BaseException) -> None:
        owner = self._owner()
        if owner is not None:
            owner.end_with(error)
            self._engine.interrupt()
