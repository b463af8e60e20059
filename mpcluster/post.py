"""A worker's place with its supervisor: given before the fork, taken up in the child."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcluster.tally import Tally

__all__ = ["Post"]


class Post:
    """One worker's place. Its parent makes it and hands it over with the fork.

    Args:
        slot: The number of its slot.
        max_tasks: Tasks that it may do; None for any number.
        has_pulse: It will be asked for signs of life.
        tally: Where its connections are counted, for its parent to see; None: nowhere.
    """

    def __init__(
        self, slot: int, max_tasks: float | None, *, has_pulse: bool, tally: Tally | None = None
    ) -> None:
        self.slot = slot
        self._tally = tally
        self._max_tasks = max_tasks
        self._has_pulse = has_pulse
        self._done = 0
        # Guards the count, which any thread of the worker may raise, a signal handler too:
        # so it is re-entrant. Nobody takes it in the parent: the child finds it free. A child
        # of the worker is at no post.
        self._counting = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at slot {self.slot}, {self._done} tasks done>"

    def take_up(self) -> None:
        """In the worker, before its program begins."""
        if self._tally is not None:
            from mpcluster import tally

            tally.keep(self._tally)
        if self._has_pulse:
            _show_stacks_on_abort()

    def count(self, tasks: int) -> int | None:
        """Count tasks that are done. In the worker, any thread.

        Returns:
            How many by now, if these reached the limit; None before and ever after.
        """
        if self._max_tasks is None:
            return None
        with self._counting:
            before, self._done = self._done, self._done + tasks
        return before + tasks if before < self._max_tasks <= before + tasks else None


def _show_stacks_on_abort() -> None:
    """A hung worker is ended by SIGABRT: let it write to stderr where each thread stands."""
    import faulthandler

    if not faulthandler.is_enabled():
        try:
            faulthandler.enable()
        except (AttributeError, OSError, RuntimeError, ValueError):
            pass  # there is no stderr to write to
