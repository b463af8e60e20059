"""The workers that take connections from one accepting policy, in the order of their slots.

Slots are places that outlive a worker: a replacement gets its predecessor's, so that after a
crash or a rolling reload the same clients find the same place (``ip_hash``), and whoever reads
the list the same order. Bookkeeping only.
"""

from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Iterator
from typing import Final

from mpcluster.messages import Route
from mpcluster.scheduling.line import Line
from mpcluster.scheduling.taker import Taker

__all__ = ["AHEAD", "Takers"]

#: Connections that a worker may be passed and not have accepted, where it is waited for. More would
#: delay more clients where a worker is stopped, until they are taken back.
AHEAD: Final = 4


class Takers:
    """Who takes part.

    Args:
        limit: Connections that each may have open at once.
        in_turn: They are passed equally many, and waited for.
    """

    def __init__(self, limit: int | None, *, in_turn: bool) -> None:
        self._limit = math.inf if limit is None else limit
        self._in_turn = in_turn
        self._by_route: dict[Route, Taker] = {}  # in the order of their slots

    def __iter__(self) -> Iterator[Taker]:
        return iter(self._by_route.values())

    def __len__(self) -> int:
        return len(self._by_route)

    def __repr__(self) -> str:
        return repr(list(self))

    def get(self, route: Route) -> Taker | None:
        """Who has this route, if somebody has."""
        return self._by_route.get(route)

    def enter(self, route: Route, ours: socket.socket, theirs: Line) -> Taker:
        """Add one, in the first slot that is free: a predecessor's, if one has died."""
        taken = {taker.slot for taker in self}
        slot = next(slot for slot in itertools.count() if slot not in taken)
        taker = Taker(route, slot, ours, theirs, self._limit, AHEAD if self._in_turn else 1)
        self._by_route[route] = taker
        self._sort()
        return taker

    def remove(self, taker: Taker) -> None:
        """Forget one; its slot is free."""
        del self._by_route[taker.route]

    def give_up_slot(self, leaving: Taker) -> bool:
        """Let the last in line have the slot of one that leaves by will, for its own.

        Its replacement may be here already, and is then that last one. So after a rolling
        reload the slots are taken as before, each by the new worker.

        Returns:
            Whether anybody has moved.
        """
        others = [one for one in self if one is not leaving and not one.draining]
        last = max(others, key=lambda taker: taker.slot, default=leaving)
        if last.slot <= leaving.slot:
            return False
        leaving.slot, last.slot = last.slot, leaving.slot
        self._sort()
        return True

    def taking(self) -> list[Taker]:
        """Those that take connections, be they free or not."""
        return [taker for taker in self if taker.takes]

    def ready(self) -> list[Taker]:
        """Those that may be passed one now; one that lets them lie only if there is no other.

        In turn, the one whose last turn is longest ago, if it is free; else nobody: it is
        waited for, unless it has no place or lets connections lie.
        """
        able = [taker for taker in self if taker.has_place and not taker.slow]
        if able and self._in_turn:
            able = [min(able, key=lambda taker: taker.turn)]
        elif not any(taker.is_free for taker in able):
            able = list(self)
        return [taker for taker in able if taker.is_free]

    def _sort(self) -> None:
        in_order = sorted(self._by_route.items(), key=lambda item: item[1].slot)
        self._by_route = dict(in_order)
