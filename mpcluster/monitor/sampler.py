"""Looks at a supervisor every two seconds, and keeps the last look and ten minutes of figures.

However many people watch, the looks are as many. They are fewer, down to one in twenty seconds,
where each takes long (workers with very much memory, or tens of thousands of connections): so
that a fiftieth of the time of one processor is enough for them.

**Thread.** One, started and ended by the :class:`Sampler`'s owner; a clock wakes it. It is a
daemon: it keeps no program alive. It takes the condition below and no other lock, logs and
prints nothing, and a look has its descriptors owned. So a fork at any moment finds nothing
half-way that a child would use: in the child there is no such thread, and nobody uses the
object.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mpcluster import forking
from mpcluster.events import report
from mpcluster.supervision import Supervisor

from .rates import Rates, between
from .snapshot import count_serving, take
from .views import Snapshot

__all__ = ["INTERVAL", "KEPT", "THREAD_NAME", "Sampler"]

#: Seconds between two looks.
INTERVAL: Final = 2.0
#: Looks whose figures are kept: ten minutes.
KEPT: Final = 300
#: This part of a processor's time may be spent looking.
PART: Final = 1 / 50

#: Seconds that somebody who asks for health waits for the watcher.
HURRY: Final = 0.5

#: Seconds between two looks at most.
LONGEST: Final = 20.0

THREAD_NAME: Final = "mpcluster-monitor"


class Sampler:
    """Looks from time to time.

    Args:
        supervisor: At whom.
        look: What a look is.

    Raises:
        TimeoutError: The first look: the watcher's thread has been in one callback for too long.
    """

    def __init__(
        self, supervisor: Supervisor, *, look: Callable[[Supervisor], Snapshot] = take
    ) -> None:
        self._supervisor = supervisor
        self._look = look
        self._history: deque[dict[str, Any]] = deque(maxlen=KEPT)
        # Guards what follows, the history and its end; held for a few assignments, by this thread
        # and by those that ask. A fork may find it taken: a child has no use for it.
        self._taken = threading.Condition()
        self._ends = False
        self._stalled = False  # written by the thread alone
        self._last = look(supervisor)
        self._rates = between(self._last, self._last)
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        forking.allow_beside(self._thread)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._history)} looks kept>"

    # -- any thread --------------------------------------------------------------------------

    def last(self) -> tuple[Snapshot, Rates]:
        """Return the last look, and what happened between the one before it and that."""
        with self._taken:
            return self._last, self._rates

    @property
    def stalled(self) -> bool:
        """Was there nobody to answer at the latest look?"""
        return self._stalled

    def history(self) -> list[dict[str, Any]]:
        """Return the figures of the last ten minutes, the oldest first."""
        with self._taken:
            return list(self._history)

    def health(self) -> tuple[int, int, float]:
        """Return how many workers serve, of how many slots, and how many seconds ago that was.

        Asked anew each time: who acts on it wants to know at once.
        """
        try:
            return *count_serving(self._supervisor, patience=HURRY), 0.0
        except TimeoutError:
            last, _ = self.last()
            return last.serving, len(last.slots), time.monotonic() - last.clock

    def wait_for(
        self, found: Callable[[Snapshot, Rates], bool], timeout: float | None = None
    ) -> bool:
        """Wait for a look at which this is so; False if there was none in ``timeout`` seconds."""
        with self._taken:
            return self._taken.wait_for(lambda: found(self._last, self._rates), timeout)

    def stop(self) -> None:
        """Look no more. Returns when the thread has ended."""
        with self._taken:
            self._ends = True
            self._taken.notify_all()
        self._thread.join()

    # -- its own -----------------------------------------------------------------------------

    def _run(self) -> None:
        pause = INTERVAL
        while self._wait(pause):
            began = time.thread_time()
            try:
                self._keep(self._look(self._supervisor))
                self._stalled = False
            except TimeoutError:
                self._stalled = True  # and the last look grows old
            except Exception as error:  # noqa: BLE001  # ours to mend; the next may succeed
                report("the monitor's look at the workers", error, self)
            pause = min(max(INTERVAL, (time.thread_time() - began) / PART), LONGEST)

    def _wait(self, seconds: float) -> bool:
        """Wait; False if that was ended."""
        with self._taken:
            return not self._taken.wait_for(lambda: self._ends, seconds)

    def _keep(self, snapshot: Snapshot) -> None:
        rates = between(self._last, snapshot)
        with self._taken:
            self._last, self._rates = snapshot, rates
            self._history.append(_figures(snapshot, rates))
            self._taken.notify_all()


def _figures(snapshot: Snapshot, rates: Rates) -> dict[str, Any]:
    """What is drawn of one look."""
    workers = snapshot.workers
    return {
        "time": snapshot.time,
        "serving": snapshot.serving,
        "cpu": rates.total.cpu,
        "accepted": rates.total.accepted,
        "messages": rates.total.messages,
        "memory": _sum([worker.usage.proportional for worker in workers]),
        "connections": _sum([worker.connections for worker in workers]),
        "workers": {one.id: rates.workers[one.id].cpu for one in workers},
    }


def _sum(parts: list[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
