"""xdist's queue of events, seen first by the controller's plugin.

Everything that a worker does comes through here to xdist's session, in its main thread.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Event", "EventQueue"]

#: The name of a method of xdist's session, without ``worker_``, and its arguments.
Event: TypeAlias = tuple[str, dict[str, Any]]


class EventQueue:
    """Takes the place of the session's queue: what xdist calls of it, and no more.

    Beneath is a ``SimpleQueue``, which is written in C: six events a test, from a thread for
    each worker, made ``queue.Queue`` and its locks an eighth of the controller's CPU.

    Args:
        see: Called with each event; what it returns goes on to xdist, None is kept back.
        look: Called when it is time; returns the seconds until it shall be called again, or
            None.
    """

    def __init__(
        self, see: Callable[[Event], Event | None], look: Callable[[], float | None]
    ) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        #: Add an event, in whatever thread.
        self.put: Callable[[Event], None] = self._events.put
        self._see = see
        self._look = look

    def get(self, block: bool = True, timeout: float | None = None) -> Event:  # noqa: FBT001, FBT002
        """Return the next event for xdist; as ``queue.Queue.get``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            waits = [self._look()]
            if deadline is not None:
                waits.append(max(0.0, deadline - time.monotonic()))
            patience = min((wait for wait in waits if wait is not None), default=None)
            try:
                event = self._events.get(block, patience)
            except queue.Empty:
                if not block or (deadline is not None and time.monotonic() >= deadline):
                    raise
                continue
            seen = self._see(event)
            if seen is not None:
                return seen

    def drain(self) -> None:
        """See what is left, at the end."""
        while True:
            try:
                self._see(self._events.get_nowait())
            except queue.Empty:
                return
