"""A worker as an accepting policy sees it: what it has in hand, and may it get more?

Bookkeeping only; it opens, sends and closes nothing (:mod:`mpcluster.scheduling.accepting`
does). Touched in the master's watcher thread alone.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from dataclasses import dataclass, field

from mpcluster.messages import Route
from mpcluster.scheduling.line import Line

__all__ = ["Connection", "Taker"]


@dataclass(eq=False, slots=True)
class Connection:
    """One that the master has accepted. Its descriptor is the master's own copy.

    Args:
        fd: Kept until a program has accepted the connection, and owned as in
            :mod:`mpcluster.descriptors`.
        peer: The client's address, as ``accept()`` has it.
    """

    fd: int
    peer: object


@dataclass(eq=False, slots=True)
class Taker:
    """One worker that takes connections from the policy.

    Args:
        route: Who it is.
        slot: Its place among the takers, from 0; a replacement gets that of its predecessor.
        ours: The master's end of the line to it.
        theirs: A copy of the worker's end, to take back from what its program has not taken.
        limit: Connections that it may have open at once.
        ahead: Connections that it may be passed before its program has accepted the first.
    """

    route: Route
    slot: int
    ours: socket.socket
    theirs: Line
    limit: float = math.inf
    ahead: int = 1

    #: When it was given its last connection: the how-manieth of all that was. 0: never yet.
    turn: int = 0
    #: Connections that its program has accepted and not closed, where the policy counts them.
    open: int = 0
    #: Passed to it and not yet accepted by its program, by number.
    passed: dict[int, Connection] = field(default_factory=dict)
    #: Those that belong to it and wait in the master (sticky policies only).
    queue: deque[Connection] = field(default_factory=deque)

    listening: bool = False  # its program has called listen()
    draining: bool = False
    short: bool = False  # its process had no descriptor left, a moment ago
    slow: bool = False  # it has let a connection lie, while it could have gone to another
    failed: int = 0  # how many times since it has last accepted one
    avoided: int = 0  # looks until it is tried again after that
    seen: int | None = None  # the number of the connection that lay there at the last look

    def __repr__(self) -> str:
        doing = "draining" if self.draining else "free" if self.is_free else "not free"
        return f"<Taker {self.slot}:{self.route} {doing} {len(self.passed)}+{self.open}>"

    @property
    def takes(self) -> bool:
        """Does it take connections at all, now or later?"""
        return self.listening and not self.draining

    @property
    def connections(self) -> int:
        """What it has in hand: open ones, and those that its program has yet to accept."""
        return self.open + len(self.passed)

    @property
    def has_place(self) -> bool:
        """May it have one more, sooner or later?"""
        return self.takes and not self.short and self.connections < self.limit

    @property
    def is_free(self) -> bool:
        """May it be passed one more connection now?

        What a worker has not accepted is what another could have: so one at a time, or few.
        """
        return len(self.passed) < self.ahead and self.has_place

    def accepted(self, number: int, *, counted: bool) -> Connection | None:
        """Its program has accepted what it was passed under that number; what that was."""
        self.slow, self.failed = False, 0
        connection = self.passed.pop(number, None)
        if connection is not None and counted:
            self.open += 1
        return connection
