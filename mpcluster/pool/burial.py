"""What becomes of the calls of a worker that has died."""

from __future__ import annotations

from collections.abc import Callable

from mpcluster.pool.calls import Call
from mpcluster.pool.failures import died, name_of
from mpcluster.pool.intake import Intake
from mpcluster.pool.link import Link
from mpcluster.pool.roster import Roster
from mpcluster.pool.runs import Run
from mpcluster.pool.turn import Turn

__all__ = ["Burial"]


class Burial:
    """Sorts what dead workers leave. By the thread that has the turn.

    Args:
        on_death: Called by the attendant with each dead worker.
    """

    def __init__(
        self,
        roster: Roster,
        turn: Turn,
        intake: Intake,
        on_death: Callable[[Link], object],
    ) -> None:
        self._roster = roster
        self._turn = turn
        self._intake = intake
        self._on_death = on_death

    def bury_all(self) -> None:
        """Bury all whose death was told."""
        while self._roster.deaths:
            self._bury(self._roster.deaths.popleft())

    def _bury(self, link: Link) -> None:
        """A worker is dead: what it had finished counts, what it ran fails. With the turn."""
        if link.is_closed:
            return
        self._intake.collect(link)
        while not link.stream.over and self._intake.read(link):
            pass
        with self._roster.lock:
            begun = link.begun
            was_ready = link.is_ready
            left = _apart(sorted(link.under_way.items()), begun)
            link.under_way.clear()
            link.usable = False
            self._roster.forget(link)
            if link in self._roster.links:
                self._roster.links.remove(link)
            ran = [call for call in left if call.number <= begun]
            back = [call for call in left if call.number > begun]
            victims = []
            for call in ran:
                call.link = None
                if self._may_go_on(link, call):
                    back.insert(0, call)
                else:
                    victims.append(call)
            for call in back:
                call.link = None
            self._roster.requeue(back)
            self._roster.settle(link)
        self._turn.forget(link.doorbell)
        self._turn.forget(link.socket.fileno())
        link.close()
        link.was_ready = was_ready
        for call in victims:
            call.fail(self._cause_of_death(link, call))
        self._turn.attendant.add(lambda: self._on_death(link))

    def _may_go_on(self, link: Link, call: Call) -> bool:
        """Shall a call that a dead worker ran be begun anew?"""
        if link.execution is not None:
            return link.execution[0] != call.number  # it was meant for another
        call.deaths += 1
        return call.deaths <= call.options.retries

    def _cause_of_death(self, link: Link, call: Call) -> BaseException:
        if link.execution is not None:
            return link.execution[1]
        return died(link, f"while it ran {name_of(call)}")


def _apart(calls: list[tuple[int, Call]], begun: int) -> list[Call]:
    """These, with each order of a run that was begun by itself."""
    apart: list[Call] = []
    for _, call in calls:
        rest = call
        while type(rest) is Run and rest.count > 1 and rest.number <= begun:
            one, rest = rest, rest.cut(1)
            apart.append(one)
        apart.append(rest)
    return apart
