"""Whom to pass nothing for a while, and how long a connection may lie that another could have.

A worker that is stopped, or busy with a long request in the thread that accepts, would delay
those that it was passed. So as long as somebody might, the master looks every :data:`TICK`
seconds; a connection that lay there at two looks makes its worker *slow*. From one that is slow
it is taken back as soon as another is free, and it is passed nothing more while others are,
until after a few looks it is tried again.

One that is *short* of descriptors is passed nothing at all for :data:`RECOVERY` seconds.

Decides only; who takes back is :mod:`~mpcluster.scheduling.accepting`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sized
from typing import Final

from mpcluster.scheduling.taker import Taker
from mpcluster.scheduling.takers import Takers
from mpcluster.scheduling.timers import Timers

__all__ = ["AVOIDED", "RECOVERY", "TICK", "Patience"]

#: Seconds between two looks at who lets a connection lie; it has, if it lay there twice.
TICK: Final = 0.1

#: Looks until one that did is tried again, at most: at first it is 1, and twice as many each time
#: that it fails. Where all processors are busy, any worker may be late once.
AVOIDED: Final = 10

#: Seconds until a worker that had no descriptor left is passed a connection again.
RECOVERY: Final = 0.5


class Patience:
    """Knows who is slow, or short. In the thread of the policy.

    Args:
        takers: Of the policy.
        timers: Of the policy.
        on_change: Called when somebody may have become slow, or worth a trial.
    """

    def __init__(self, takers: Takers, timers: Timers, on_change: Callable[[], object]) -> None:
        self._takers, self._timers, self._on_change = takers, timers, on_change

    def look_soon(self) -> None:
        """Somebody was passed something, or has to be tried again one day."""
        self._timers.start(self, TICK, self._look)

    def overdue(self, waiting: Sized) -> Iterator[Taker]:
        """Those from which to take back now, one after the other; each must have been, then.

        Args:
            waiting: Connections that wait in the master, and go first.
        """
        for taker in self._takers:
            if taker.slow and taker.passed:
                others = sum(one.is_free and not one.slow for one in self._takers)
                if others <= len(waiting):
                    return  # to whom could it go?
                yield taker
                taker.avoided = min(AVOIDED, 2**taker.failed)
                taker.failed += 1
                self.look_soon()

    def let_be(self, taker: Taker) -> None:
        """It, or the kernel, has no room for one more."""
        taker.short = True
        self._timers.start(taker, RECOVERY, functools.partial(self._recover, taker))

    def forget(self, taker: Taker) -> None:
        """It is none any more."""
        self._timers.cancel(taker)

    def _recover(self, taker: Taker) -> None:
        taker.short = False
        self._on_change()

    def _look(self) -> None:
        again = False
        for taker in self._takers:
            oldest = next(iter(taker.passed), None)
            if oldest is not None and oldest == taker.seen:
                taker.slow = True  # no need to look again: an end of that is told
            elif oldest is not None:
                again = True
            elif taker.slow:
                taker.avoided -= 1
                taker.slow = taker.avoided > 0
                again = again or taker.slow
            taker.seen = oldest
        self._on_change()
        if again:
            self.look_soon()
