"""``round_robin``: the master deals connections to the free workers in turn.

For parity where connections are long or costly: one by one each of 4 workers gets exactly
25 of 100; of a burst, in which a quick worker is free again sooner, 22 to 30. Each costs the
master an ``accept``, a message and an answer: http.server with a connection a request
answers 0.79 of what it does on sockets of its own, where ``slots`` have 0.90.

Node's default. Unlike there, a connection that a worker died with before its program
accepted it is given to another, and with nobody free the master does not accept at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.taker import Taker

__all__ = ["RoundRobin"]


class RoundRobin(Accepting):
    """The one whose last turn is longest ago; a new one has its first turn next."""

    in_turn = True

    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:  # noqa: ARG002
        """Whose turn it is among those that are free."""
        return min(takers, key=lambda taker: taker.turn)
