"""Looks at workers from time to time: is one too old or too large, does each still get on?

Its two timers are the watcher's, and everything happens in that thread.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable
from typing import Final

from mpcluster import watcher
from mpcluster.logs import logger
from mpcluster.process import ClusterProcess

from . import usage
from .fleet import Fleet
from .orders import Order
from .pulse import Pulse
from .rules import Rules

__all__ = ["Checkup"]

#: Seconds between two looks at age and memory.
LOOK: Final = 5.0
#: Seconds until a worker that could not be replaced is tried to be replaced again.
AGAIN: Final = 60.0
#: Seconds that a hung worker has to write down where it hangs.
LAST_WORDS: Final = 1.0


class Checkup:
    """The limits and the heartbeat of one supervisor's workers.

    Args:
        rules: The supervisor's.
        fleet: Whose workers.
        processes: They themselves, by id.
        act: Called with what is to be done.
    """

    def __init__(
        self,
        rules: Rules,
        fleet: Fleet,
        processes: dict[int, ClusterProcess],
        act: Callable[[list[Order]], object],
    ) -> None:
        self._rules = rules
        self._fleet = fleet
        self._processes = processes
        self._act = act
        self._pulse = None if rules.heartbeat is None else Pulse(rules.heartbeat)
        self._limits: dict[int, tuple[float, float]] = {}  # worker id → seconds, bytes
        self._timers: dict[Callable[[], list[Order]], watcher.Timer] = {}

    def begin(self) -> None:
        """Look from now on."""
        if self._rules.max_age is not None or self._rules.max_memory is not None:
            self._every(min(LOOK, self._rules.max_age or LOOK), self._look)
        if self._pulse is not None:
            self._every(self._pulse.interval, self._beat)

    def end(self) -> None:
        """Look no more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _every(self, seconds: float, look: Callable[[], list[Order]]) -> None:
        def again() -> None:
            self._timers[look] = watcher.current().call_later(seconds, again)
            self._act(look())

        self._timers[look] = watcher.current().call_later(seconds, again)

    # -- limits ------------------------------------------------------------------------------

    def differing(self, limit: float | None) -> float | None:
        """A limit that is one worker's own, so that not all reach theirs at once."""
        if limit is None:
            return None
        spread = self._rules.jitter
        return limit * random.uniform(1 - spread, 1 + spread)  # noqa: S311  # no secret

    def add(self, key: int) -> None:
        """A worker that was just started."""
        age, size = self.differing(self._rules.max_age), self.differing(self._rules.max_memory)
        self._limits[key] = math.inf if age is None else age, math.inf if size is None else size

    def forget(self, key: int) -> None:
        """One that is gone."""
        self._limits.pop(key, None)

    def recycle(self, key: int, reason: str) -> list[Order]:
        """Have a worker replaced, a new one ready first."""
        found = self._fleet.recycle(key, reason)
        if found is None:
            return []
        logger().info("worker %d %s and is replaced", key, reason)
        # Where no replacement gets ready, not at each look.
        later = time.monotonic() - self._fleet.members[key].started + AGAIN
        self._limits[key] = max(self._limits[key][0], later), self._limits[key][1]
        return found[1]

    def _look(self) -> list[Order]:
        orders: list[Order] = []
        now = time.monotonic()
        for key, member in list(self._fleet.members.items()):
            age, size = self._limits[key]
            if now - member.started >= age:
                orders += self.recycle(key, f"is {now - member.started:.0f} s old")
            elif size < math.inf and member.worker.pid is not None:
                used = usage.memory(member.worker.pid)
                if used is not None and used >= size:
                    orders += self.recycle(key, f"uses {used / 1e6:.0f} MB of memory")
        return orders

    # -- the heartbeat -----------------------------------------------------------------------

    def answered(self, key: int) -> None:
        """A worker has given a sign of life."""
        if self._pulse is not None:
            self._pulse.answered(key)

    def _beat(self) -> list[Order]:
        assert self._pulse is not None
        awake = [key for key, one in self._fleet.members.items() if one.ready_since is not None]
        number, hung = self._pulse.beat(awake, time.monotonic())
        for key in awake:
            process = self._processes[key]
            if key in hung:
                self._end_hung(process)
            else:
                process.ping(number)
        return []

    def _end_hung(self, process: ClusterProcess) -> None:
        logger().error(
            "worker %s (pid %s) gives no sign of life for %g s and is ended; where it can still "
            "write, its stacks are in its stderr",
            process.id,
            process.pid,
            self._rules.heartbeat,
        )
        process.kill(signal.SIGABRT)
        watcher.current().call_later(LAST_WORDS, process.kill)
