"""The seam between a pool and what runs its calls.

Everything Pool-shaped (results, order, chunks, callbacks, bounded input) stands above it and
is there once. An engine is given calls (:class:`mpcluster.pool.calls.Call`) and finishes
each of them once, by ``finish``, ``fail`` or ``drop``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mpcluster.pool.calls import Call
from mpcluster.pool.runs import Feed

__all__ = ["Awaited", "Engine"]


class Awaited(Protocol):
    """What a thread can wait for."""

    def ready(self) -> bool:
        """Need nobody wait any more?"""

    def enlist(self) -> Any:
        """A lock that is released when it is ready, or when the waiter has to look."""

    def delist(self, lock: Any) -> None:
        """Release it no more."""

    def poke(self) -> None:
        """Release all of them."""


class Engine(Protocol):
    """Runs calls."""

    has_timeouts: bool  #: a call may have a limit of time

    @property
    def slots(self) -> int:
        """How many calls run at the same time."""

    def known(self, function: Callable[..., Any]) -> Any:
        """The entry of a function, for the calls of it."""

    def submit(self, call: Call | Feed) -> None:
        """Run a call, or those of a feed. Any thread; returns at once."""

    def submit_all(self, calls: Iterable[Any]) -> None:
        """Run these; a feed of calls may stand for many."""

    def attend(self) -> None:
        """See to it that what was submitted goes on, though nobody waits for it."""

    def wait(self, awaited: Awaited, deadline: float | None) -> None:
        """Wait until it is ready, or until ``deadline`` (monotonic seconds)."""

    def cancel(self, call: Any) -> bool:
        """Do not run a call, or stop it: will it never be finished?"""

    def is_running(self, call: Any) -> bool:
        """Is a worker busy with it?"""

    def call_later(self, job: Callable[[], object]) -> None:
        """Call ``job()`` in the engine's own thread, where a user's code may run."""

    def interrupt(self) -> None:
        """Let whoever drives the engine look again."""

    def cancel_queued(self) -> None:
        """Cancel what has not begun."""

    def when_quiet(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` whenever nothing is left to do."""

    def is_quiet(self) -> bool:
        """Is nothing left to do, callbacks included?"""

    def unfinished(self) -> dict[int, Any]:
        """The calls that are queued or under way."""

    def counts(self) -> dict[str, int]:
        """How many workers and calls are in which state."""

    def stop(self, error: BaseException) -> None:
        """End it; what is not finished gets ``error``."""
