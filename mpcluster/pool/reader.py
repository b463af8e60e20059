"""The thread that reads an input of ``imap`` that is a user's code."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mpcluster.pool.runs import Supply

if TYPE_CHECKING:
    from mpcluster.pool.arrivals import Arrivals
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.imap import IMapIterator

__all__ = ["Reader"]

#: Results that an endless map keeps ahead of its consumer, when the calls are short.
_MOST_AHEAD: Final = 1 << 14
#: Seconds of work for each worker that it keeps ahead of its consumer.
_TIME_AHEAD: Final = 0.05
#: Items that are read before it is looked whether anybody wants more.
_SLICE: Final = 1024


def _look() -> None:
    """Nothing: the engine's own thread looks around when it has called it."""


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
        consumer: IMapIterator,
        arrivals: Arrivals,
        iterable: Iterable[Any],
        engine: Engine,
        limit: int | None,
    ) -> None:
        self._consumer = weakref.ref(consumer, self._consumer_is_gone)
        # Work that is done for its effect alone, whose results nobody ever takes, goes on.
        self._untouched: IMapIterator | None = consumer
        self._arrivals = arrivals
        self._iterable = iterable
        self._engine = engine
        self._limit = limit
        self._room = threading.Event()
        self._stopped = self._is_done = False
        arrivals.on_taken = self._taken
        arrivals.on_dropped = self.stop
        thread = threading.Thread(target=self._run, name="mpcluster-imap", daemon=True)
        thread.start()

    def _consumer_is_gone(self, _reference: object) -> None:
        self._stopped = True
        self._room.set()

    def _taken(self) -> None:
        self._untouched = None
        if not self._room.is_set():
            consumer = self._consumer()
            if consumer is not None and consumer.ahead <= self._bound() // 2:
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

    def _bound(self) -> int:
        if self._limit is not None:
            return self._limit
        mean = self._arrivals.known_as.mean
        slots = self._engine.slots
        if not mean:
            return 4 * slots
        return min(_MOST_AHEAD, max(4 * slots, int(slots * _TIME_AHEAD / mean)))

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001  # the iterable's own
            self._arrivals.end_with(error)
        finally:
            self._is_done = True
            self._untouched = None
            self._arrivals.on_taken = self._arrivals.on_dropped = None
            self._engine.interrupt()
            self._engine.call_later(_look)  # a pool that was closed may have waited for this

    def _read(self) -> None:
        items = iter(self._iterable)
        del self._iterable
        arrivals, engine = self._arrivals, self._engine
        supply = Supply(arrivals)
        while not (self._stopped or arrivals.stopped):
            room = self._find_room()
            if room <= 0:
                continue
            count, item = 0, None
            try:
                # What is read can be taken at once: the next may be a long time in coming, or
                # come of a result of these.
                for item in itertools.islice(items, min(room, _SLICE)):
                    count += 1
                    if supply.add(item) and supply.has_to_be_submitted():
                        engine.submit(supply)
                        engine.attend()
                if count < min(room, _SLICE):
                    arrivals.end_after(arrivals.given_out + count)
                    return
            finally:
                item = None
                arrivals.given_out += count

    def _find_room(self) -> int:
        """Wait until there is room, for a while at least; how much?"""
        consumer = self._consumer()
        if consumer is None:
            return 0
        bound = self._bound()
        consumer.bound(max(1, bound // 4))
        room = bound - consumer.ahead
        if room <= 0:
            self._room.clear()
            if consumer.ahead > bound // 2 and not self._stopped:
                del consumer
                self._room.wait()
        return room
