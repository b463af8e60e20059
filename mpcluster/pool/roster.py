"""Which call goes to which worker: a queue, and who has room. Decides, and does nothing."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mpcluster.pool.calls import Call
from mpcluster.pool.functions import TINY
from mpcluster.pool.link import Link
from mpcluster.pool.runs import Feed, Run

__all__ = ["Roster"]

#: Calls of a run that go to one worker, at least, if it may have so many.
_GRAIN: Final = 8
_CORES: Final = max(2, len(os.sched_getaffinity(0)))


class Roster:
    """The queue, and the workers by what they have to do.

    Args:
        on_end_of_feed: Called when the input of a map has come to its end.
        on_spent: Called with a worker that has done as much as it may, and does nothing.

    Attributes:
        links: All that have not been buried.
        idle: Those that have nothing; the last is taken first, for its caches are warm.
        hungry: Those that have something, and room for more.
        busy: Those that have something.
        deep: Those that have more than one call.
        timed: Those that have a call with a limit of time.
        stuck: Those whose present call takes longer than such calls did.
        deaths: Those of whose death the thread that drives has not taken note.
        on_quiet: Called, under the lock, when nothing is left to do.
    """

    # The lock guards the taking from the queue, the sets below, and the bookkeeping in each
    # link. Taken by any thread, for some microseconds; no call of a user's and no pickling is
    # made under it, and of the kernel nothing but to ring the bell. Re-entrant, for signal
    # handlers and finalizers. To append to the queue needs no lock. A forked child has no use
    # for it: the pool refuses every call there.

    def __init__(
        self,
        *,
        on_end_of_feed: Callable[[], object],
        on_spent: Callable[[Link], object],
    ) -> None:
        self.lock = threading.RLock()
        self.queue: deque[Any] = deque()
        self.links: list[Link] = []
        self.idle: list[Link] = []
        self.hungry: dict[Link, None] = {}
        self.busy: set[Link] = set()
        self.deep: set[Link] = set()
        self.timed: set[Link] = set()
        self.stuck: set[Link] = set()
        self.deaths: deque[Link] = deque()
        self.has_timeouts = False
        self.on_quiet: Callable[[], object] | None = None
        self._on_end_of_feed = on_end_of_feed
        self._on_spent = on_spent

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} queue={len(self.queue)} idle={len(self.idle)} "
            f"busy={len(self.busy)}>"
        )

    def add(self, link: Link) -> None:
        """A new worker: it may be given work from now on."""
        with self.lock:
            self.links.append(link)
            link.is_idle = True
            self.idle.append(link)

    def forget(self, link: Link) -> None:
        """Give a worker nothing more. Under the lock."""
        if link.is_idle:
            self.idle.remove(link)
            link.is_idle = False
        self.hungry.pop(link, None)

    def pick(self) -> tuple[Link, list[Call]] | None:
        """Decide which calls go where. Under the lock."""
        while self.queue:
            # The usual answer to the second question needs no call.
            if self.idle and (len(self.busy) < _CORES or not self._is_enough()):
                link = self.idle.pop()
                link.is_idle = False
            elif self.hungry:
                link, _ = self.hungry.popitem()
            else:
                return None
            if link.filling or not link.usable:
                continue
            under_way = link.under_way
            calls = self._take(link)
            if not calls:
                if not under_way:
                    link.is_idle = True
                    self.idle.append(link)
                    if self.queue and self.idle:
                        return None  # nothing in it may go now
                continue
            number = link.next_number
            for call in calls:
                call.link = link
                call.number = number
                under_way[number] = call
                number += call.count
            if link.quota is not None:
                link.quota -= number - link.next_number
            link.next_number = number
            known = calls[-1].known_as
            link.depth = known.depth
            link.quickest = known.mean
            link.filling = True
            self.busy.add(link)
            if len(under_way) > 1 or calls[0].count > 1:
                self.deep.add(link)
            if self.has_timeouts and any(c.options.timeout is not None for c in calls):
                self.timed.add(link)
            return link, calls
        return None

    def _is_enough(self) -> bool:
        """Would one more worker only be in the way of those that are busy?

        To wake it costs more than many a call takes, and there are no more processors. One of
        those has to have room, or more than one call: then it comes on, and has room soon, or
        it is found to be stuck and does not count.
        """
        return (
            0 < self.queue[0].known_as.mean < TINY
            and len(self.busy) - len(self.stuck) >= _CORES
            and bool(self.hungry or self.deep)
        )

    def _take(self, link: Link) -> list[Call]:
        """The next calls for a worker. Under the lock."""
        queue = self.queue
        entry = queue[0]
        if (
            len(queue) == 1
            and entry.left == entry.count == 1
            and not link.under_way
            and link.quota is None
            and not isinstance(entry, Feed)
        ):  # as each call that is waited for
            queue.popleft()
            return [] if entry.is_over() else [entry]
        return self._take_share(link.load, link.quota)

    def _take_share(self, have: int, quota: int | None) -> list[Call]:
        """The next calls for a worker that has so many. Under the lock."""
        queue, workers = self.queue, len(self.links) or 1
        calls: list[Any] = []
        share = -(-len(queue) // workers)
        if quota is not None:
            share = min(share, quota)
        while queue and len(calls) < share:
            entry = queue[0]
            room = entry.known_as.depth - have - len(calls)
            if room <= 0 and (have or calls):
                break
            room = max(1, room)
            if quota is not None:
                room = min(room, quota - len(calls))
            if 0 < entry.known_as.mean < TINY:
                workers = min(workers, _CORES)
            if entry.left > 1:  # the others have their share of it
                room = min(room, max(_GRAIN, -(-entry.left // workers)))
            if isinstance(entry, Feed):
                run = self._take_of_feed(entry, room)
                if run is not None:
                    calls.append(run)
                    break
                continue
            queue.popleft()
            if entry.is_over():
                continue
            if entry.count > 1:
                if room < entry.count:
                    queue.appendleft(entry.cut(room))
                calls.append(entry)
                break
            calls.append(entry)
        return calls

    def _take_of_feed(self, feed: Feed, room: int) -> Run | None:
        queue = self.queue
        run, is_over = feed.take(room)
        if is_over:
            queue.popleft()
            if run is not None or not queue:
                self._on_end_of_feed()  # the end of it may be what a consumer waits for
        elif len(queue) > 1:
            queue.rotate(-1)  # its turn comes again after the others
        return run

    def requeue(self, calls: list[Call]) -> None:
        """Put back at the front, in their order. Under the lock."""
        self.queue.extendleft(reversed(calls))

    def settle(self, link: Link) -> None:
        """What is under way there has changed. Under the lock."""
        left = link.load
        if left:
            if left == 1:
                self.deep.discard(link)
            if not link.usable or link.filling or link.quota == 0:
                return
            if 2 * left <= link.depth:
                self.hungry[link] = None
            return
        self.busy.discard(link)
        self.stuck.discard(link)
        self.deep.discard(link)
        self.timed.discard(link)
        if link.usable and not link.filling and not link.is_idle:
            if link.quota == 0:
                self._on_spent(link)
            else:
                self.hungry.pop(link, None)
                link.is_idle = True
                self.idle.append(link)
        if self.on_quiet is not None and not self.has_work():
            self.on_quiet()

    def has_work(self) -> bool:
        """Is something queued or under way?"""
        return bool(self.queue or self.busy or self.deaths)

    def unfinished(self) -> dict[int, Any]:
        """What is queued or under way."""
        with self.lock:
            calls = list(self.queue)
            for link in self.links:
                calls += list(link.under_way.values())
        return dict(enumerate(calls))

    def counts(self) -> dict[str, int]:
        """How many workers and calls are in which state."""
        with self.lock:
            return {
                "idle": len(self.idle),
                "busy": len(self.busy),
                "queued": sum(entry.count for entry in list(self.queue)),
                "under_way": sum(
                    call.count for link in self.links for call in list(link.under_way.values())
                ),
            }

    def take_queued(self) -> list[Any]:
        """Take all that no worker has."""
        with self.lock:
            calls = list(self.queue)
            self.queue.clear()
        return calls

    def take_all(self) -> list[Any]:
        """Take all that is queued or under way."""
        with self.lock:
            calls = self.take_queued()
            for link in self.links:
                calls += link.under_way.values()
                link.under_way.clear()
                self.settle(link)
        return calls

    def close(self) -> None:
        """Let go of all workers."""
        with self.lock:
            for link in [*self.links, *self.deaths]:
                link.close()
            # A result that a program keeps holds this, and must not hold dead workers by it.
            for kept in (self.links, self.deaths, self.idle, self.hungry):
                kept.clear()
            for links_in_use in (self.busy, self.deep, self.timed, self.stuck):
                links_in_use.clear()
