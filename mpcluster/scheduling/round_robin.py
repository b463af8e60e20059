"""``round_robin``: the master deals connections to the workers strictly in turn.

For parity, where connections are long: each of 4 workers gets 25 of 100, one by one as in a
burst. The one whose turn it is is waited for, with up to 4 connections passed ahead, until it
lets them lie for 0.1 to 0.2 s. Each costs the master an ``accept``, a message and an answer:
http.server with a connection a request takes 1.54 times the processor time that it takes on
sockets of its own, where ``slots`` take 1.18 (docs/scheduling.md).

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
        """Whose turn it is."""
        return min(takers, key=lambda taker: taker.turn)
