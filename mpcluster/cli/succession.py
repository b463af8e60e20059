"""Who was the master before this one, and who is to be it next.

::

    (a predecessor?) ──► in charge ──start()──► a successor starts ──ready──► handed over
                             ▲                         │
                             └──── it ends, or takes too long
"""

from __future__ import annotations

from collections.abc import Callable

from mpcluster import registrar, watcher
from mpcluster.logs import logger

from .handover import Predecessor, Successor

__all__ = ["Succession"]


class Succession:
    """One master's place in the line. In the watcher's thread.

    Args:
        predecessor: The master whose place this one is to take.
        on_ready: Called with the successor's pid when it may take over; it does, if this
            returns true.
        lay_down: Called when nothing waits in this master any more: to let go of what else
            it has, and then call its argument.
        on_end: Called when the successor is in charge.
        on_failure: Called when it has ended instead.
    """

    def __init__(
        self,
        predecessor: Predecessor | None,
        on_ready: Callable[[int], bool],
        lay_down: Callable[[Callable[[], object]], object],
        on_end: Callable[[], object],
        on_failure: Callable[[], object],
    ) -> None:
        self._predecessor = predecessor
        self._successor: Successor | None = None
        self._deadline: watcher.Timer | None = None  # of the successor
        self._on_ready, self._lay_down = on_ready, lay_down
        self._on_end, self._on_failure = on_end, on_failure

    @property
    def is_in_charge(self) -> bool:
        """Is there no master before this one (any more)?"""
        return self._predecessor is None

    @property
    def has_successor(self) -> bool:
        """Is one about to take over?"""
        return self._successor is not None

    def begin(self, in_charge: Callable[[], object]) -> None:
        """Call ``in_charge()`` at once, or when the master before this one has let go."""
        if self._predecessor is None:
            in_charge()
            return

        def let_go() -> None:
            self._predecessor = None
            registrar.settle()
            in_charge()

        self._predecessor.await_charge(let_go)

    def tell_ready(self) -> None:
        """All workers are ready: tell the master before this one."""
        if self._predecessor is not None:
            self._predecessor.tell_ready()

    def start(
        self, environ: dict[str, str], workers: int | None, page: int, patience: float
    ) -> None:
        """Start a successor.

        Args:
            environ: What it is to have in its environment.
            workers: How many it shall have; None: as its settings say.
            page: The number of the monitor's socket, for it to go on with; -1 without one.
            patience: Seconds until it must be ready.

        Raises:
            OSError: It could not be started.
        """
        self._successor = Successor(environ, workers, page, self._ready, self._ended)
        logger().info("a new master (%d) starts", self._successor.pid)
        self._deadline = watcher.current().call_later(patience, self._successor.kill)

    def abandon(self) -> None:
        """This master ends: a successor would take over from one that is gone."""
        if self._successor is not None:
            self._successor.kill()

    def _ready(self) -> None:
        successor = self._successor
        assert successor is not None
        self._end_deadline()
        if self._on_ready(successor.pid):
            self._successor = None
            registrar.let_go(lambda: self._lay_down(lambda: self._leave(successor)))

    def _leave(self, successor: Successor) -> None:
        successor.tell_it_is_in_charge()
        self._on_end()

    def _ended(self, how: str) -> None:
        self._end_deadline()
        if self._successor is not None:
            self._successor = None
            logger().error("the new master %s before it was ready; this one serves on", how)
            self._on_failure()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
