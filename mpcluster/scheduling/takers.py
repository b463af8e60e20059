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

from mpcluster.messages import Route
from mpcluster.scheduling.line import Line
from mpcluster.scheduling.taker import Taker

__all__ = ["Takers"]


class Takers:
    """Who takes part.

    Args:
        limit: Connections that each may have open at once.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = math.inf if limit is None else limit
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
        taker = Taker(route, slot, ours, theirs, self._limit)
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

    def free(self) -> list[Taker]:
        """Those that may be passed one now; one that lets them lie only if there is no other."""
        free = [taker for taker in self if taker.is_free]
        return [taker for taker in free if not taker.slow] or free

    def _sort(self) -> None:
        in_order = sorted(self._by_route.items(), key=lambda item: item[1].slot)
        self._by_route = dict(in_order)
