"""Looks at workers from time to time: is one too old or too large, does each still get on?

Its two timers are the watcher's, and everything happens in that thread.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mpcluster import watcher
from mpcluster.logs import logger
from mpcluster.process import ClusterProcess

from . import usage
from .fleet import Fleet, Member
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


@dataclass(slots=True)
class _Limits:
    """One worker's own, and what has come of them."""

    age: float  # seconds
    size: float  # bytes
    tasks: int | None = None  # done, once they are as many as it may do
    not_before: float = -math.inf  # monotonic seconds: the next try to replace it


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
        self._limits: dict[int, _Limits] = {}  # by worker id
        self._timers: dict[Callable[[], list[Order]], watcher.Timer] = {}

    def begin(self) -> None:
        """Look from now on."""
        rules = self._rules
        limits = (rules.max_age, rules.max_memory, rules.max_tasks)
        if any(limit is not None for limit in limits):
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
        self._limits[key] = _Limits(
            math.inf if age is None else age, math.inf if size is None else size
        )

    def forget(self, key: int) -> None:
        """One that is gone."""
        self._limits.pop(key, None)

    def spent(self, key: int, tasks: int) -> list[Order]:
        """A worker says that it has done as many tasks as it may; it says so once."""
        if key in self._limits:
            self._limits[key].tasks = tasks
        return self.examine(key)

    def examine(self, key: int) -> list[Order]:
        """Have a worker replaced if it has reached a limit, a new one ready first.

        One that cannot be replaced now (it is not ready yet, its slot is) is looked at again.
        """
        member, limits = self._fleet.members.get(key), self._limits.get(key)
        now = time.monotonic()
        if member is None or limits is None or now < limits.not_before:
            return []
        reason = _reached(member, limits, now)
        found = None if reason is None else self._fleet.recycle(key, reason)
        if found is None:
            return []
        logger().info("%s %s and is replaced", member.name, reason)
        limits.not_before = now + AGAIN  # where no replacement gets ready, not at each look
        return found[1]

    def _look(self) -> list[Order]:
        orders: list[Order] = []
        for key in list(self._fleet.members):
            orders += self.examine(key)
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


def _reached(member: Member, limits: _Limits, now: float) -> str | None:
    """Which limit it has reached, as the log has it."""
    if limits.tasks is not None:
        return f"has done {limits.tasks} tasks"
    if now - member.started >= limits.age:
        return f"is {now - member.started:.0f} s old"
    if limits.size < math.inf and member.worker.pid is not None:
        used = usage.memory(member.worker.pid)
        if used is not None and used >= limits.size:
            return f"uses {used / 1e6:.0f} MB of memory"
    return None
