"""Does a worker still get on? Questions, answers, and what an answer that fails to come means.

Each beat asks every worker once. A worker is hung when a question has stayed without an
answer for the whole time that it is given, counted in beats that were asked in time: where
this very process, or the machine, stood still, nobody is to blame, and all are given that
time anew.
"""

from __future__ import annotations

import itertools

__all__ = ["BEATS", "Pulse"]

#: Beats in the time that a worker is given.
BEATS = 4


class Pulse:
    """The heartbeat of all workers of one supervisor.

    Args:
        patience: Seconds without an answer after which a worker counts as hung.
    """

    def __init__(self, patience: float) -> None:
        self.interval = patience / BEATS
        self._numbers = itertools.count(1)
        self._missed: dict[int, int] = {}  # worker id → beats asked since its last answer
        self._last: float | None = None

    def beat(self, workers: list[int], now: float) -> tuple[int, list[int]]:
        """Ask once more.

        Args:
            workers: Ids of those that are to be alive.
            now: Monotonic seconds.

        Returns:
            The question's number, and the ids of those who are hung.
        """
        late = self._last is not None and now - self._last > 2 * self.interval
        self._last = now
        known = {} if late else self._missed
        hung = [one for one in workers if known.get(one, 0) >= BEATS]
        self._missed = {one: known.get(one, 0) + 1 for one in workers if one not in hung}
        return next(self._numbers), hung

    def answered(self, worker: int) -> None:
        """A sign of life."""
        if worker in self._missed:
            self._missed[worker] = 0
