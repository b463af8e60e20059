"""``least_connections``: to the worker that has the fewest connections open now.

For connections that live long and unequally so, as WebSockets do, and after a reload or a
scale-up: a new worker catches up, where ``round_robin`` would leave it behind for as long
as the old connections live. Workers tell of each end, which costs them a system call a
connection beside ``round_robin``.

A connection counts as open until the worker's process has closed it. Children that it forks
for a connection do not count: their parent closes its copy at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.taker import Taker

__all__ = ["LeastConnections"]


class LeastConnections(Accepting):
    """The one with the fewest; of equals the one whose last turn is longest ago."""

    counts = True

    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:  # noqa: ARG002
        """Who has the fewest among those that are free."""
        return min(takers, key=lambda taker: (taker.connections, taker.turn))
