"""The monitor's page, as one part of a master: it goes over to the next one with the rest.

In the main thread: the threads of the monitor ask the watcher's, which must not wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpcluster.logs import logger
from mpcluster.supervision import Supervisor

from .errors import FAILED, CommandError

if TYPE_CHECKING:
    from mpcluster.monitor.server import Monitor

__all__ = ["Page"]


class Page:
    """Shown at an address, if there is one.

    Args:
        address: ``HOST:PORT``; None: it is never shown.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._monitor: Monitor | None = None

    def open(self, supervisor: Supervisor) -> None:
        """Show this supervisor.

        Raises:
            CommandError: The address cannot be had, or an extra is missing.
        """
        if self.address is None:
            return
        from mpcluster import monitor

        try:
            self._monitor = monitor.start(supervisor, self.address)
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise CommandError(f"--monitor {self.address}: {error}", FAILED) from None
        logger().info("the monitor is at %s", self._monitor.url)

    def close(self) -> None:
        """Show it no more; the address is free then. Idempotent."""
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None
