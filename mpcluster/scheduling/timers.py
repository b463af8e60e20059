"""The timers of one policy, by what they are for: each runs once, and all end with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from mpcluster.scheduling.base import CallLater, Timer

__all__ = ["Timers"]


class Timers:
    """At most one timer a key. In the thread of the policy.

    Args:
        call_later: As in :class:`~mpcluster.scheduling.base.Kept`.
    """

    def __init__(self, call_later: CallLater) -> None:
        self._call_later = call_later
        self._pending: dict[Hashable, Timer] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, key: Hashable, seconds: float, call: Callable[[], object]) -> None:
        """Call it once after ``seconds``, unless a timer of that key runs already."""
        if key not in self._pending and not self._closed:

            def due() -> None:
                del self._pending[key]
                call()

            self._pending[key] = self._call_later(seconds, due)

    def cancel(self, key: Hashable) -> None:
        """Do not call any more; harmless where no such timer runs."""
        timer = self._pending.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancel all, and start none any more."""
        self._closed = True
        for key in list(self._pending):
            self.cancel(key)
