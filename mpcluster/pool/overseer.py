"""Calls that take too long, and what waits behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from mpcluster.errors import TaskCancelledError
from mpcluster.pool.calls import Call, Doomed
from mpcluster.pool.failures import overran
from mpcluster.pool.link import Link
from mpcluster.pool.roster import Roster
from mpcluster.pool.turn import SLICE

__all__ = ["Overseer"]

#: Seconds after which a worker with more than one call is looked at.
TICK: Final = 0.002


class Overseer:
    """Takes back what lies behind a slow call, and ends what overruns or is cancelled.

    Args:
        collect: Takes in the answers of a worker.
        interrupt: Lets whoever drives look again.
    """

    def __init__(
        self,
        roster: Roster,
        collect: Callable[[Link], object],
        interrupt: Callable[[], object],
    ) -> None:
        self._roster = roster
        self._collect = collect
        self._interrupt = interrupt
        self._next_tick = 0.0

    def look_after(self) -> float:
        """Take back what lies behind a slow call, end what has overrun; seconds until the next.

        With the turn.
        """
        now = time.monotonic()
        wait = SLICE
        if self._roster.deep:
            if now >= self._next_tick:
                self._next_tick = now + TICK
                for link in list(self._roster.deep):
                    self._look_at(link)
            wait = TICK
        for link in list(self._roster.timed):
            wait = min(wait, self._time(link, now))
        return wait

    def _look_at(self, link: Link) -> None:
        begun = link.begun
        if begun != link.begun_at_tick:
            link.begun_at_tick = begun
            self._roster.stuck.discard(link)
            return
        self._collect(link)  # finished, and not told of
        with self._roster.lock:
            if link.load > 1 and not link.filling:
                self._roster.stuck.add(link)
                self._roster.requeue(link.take_back())
                self._roster.settle(link)
                self._roster.hungry.pop(link, None)  # not the same again

    def _time(self, link: Link, now: float) -> float:
        """Seconds until the call that a worker runs overruns its limit; ends it if it has."""
        begun = link.begun
        with self._roster.lock:
            call = link.find(begun)
        if call is None:
            limits = [c.options.timeout for c in list(link.under_way.values())]
            return min((limit for limit in limits if limit is not None), default=SLICE)
        limit = call.options.timeout
        if limit is None:
            return SLICE
        left = link.began_at + limit - now
        if left > 0:
            return left
        if link.execution is None and link.begun == begun:
            self._execute(link, begun, overran(link, limit))
        return SLICE

    def _execute(self, link: Link, number: int, error: BaseException) -> None:
        """End a worker for the sake of the order that it runs."""
        with self._roster.lock:
            link.usable = False
            link.execution = number, error
            self._roster.forget(link)
        link.process.kill()

    def cancel(self, call: Any) -> bool:
        """Do not run a call, or end the worker that does; False if it is finished."""
        for part in call.parts():
            self._cancel_part(part)
        self._interrupt()
        return True

    def _cancel_part(self, call: Call) -> None:
        with self._roster.lock:
            link = call.link
            if link is None:
                return  # in the queue: it is passed over there
            if link.under_way.get(call.number) is not call:
                return
            running = link.begun >= call.number and not link.is_closed
            if running:
                del link.under_way[call.number]
                link.usable = False
                link.execution = None, TaskCancelledError("cancelled")
                self._roster.forget(link)
            else:
                doomed = Doomed(call, link)
                link.under_way[call.number] = doomed
                self._roster.requeue(link.take_back())
                if call.number in link.under_way:  # it may be begun yet
                    self._roster.timed.add(link)
                self._roster.settle(link)
        if running:
            link.process.kill()

    def is_running(self, call: Any) -> bool:
        """Is a worker busy with it?"""
        return any(
            part.link is not None and part.link.begun >= part.number for part in call.parts()
        )
