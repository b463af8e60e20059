"""The monitor's page, as one part of a master: it goes over to the next one with the rest.

It does so with its socket: who asks while neither master answers waits, and is not refused.

In the main thread: the threads of the monitor ask the watcher's, which must not wait for them.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from mpcluster import descriptors
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
        program: What is shown, by its name.
        handed_down: The socket of the last master's page, for this one where it is at
            ``address``; closed at the latest when this is shown.
    """

    def __init__(
        self, address: str | None, program: str, handed_down: socket.socket | None = None
    ) -> None:
        self.address = address
        self._program = program
        self._handed_down = handed_down
        self._monitor: Monitor | None = None
        if address is None:
            self.close()

    def open(self, supervisor: Supervisor) -> None:
        """Show this supervisor.

        Raises:
            CommandError: The address cannot be had, or an extra is missing.
        """
        if self.address is None:
            return
        handed_down, self._handed_down = self._handed_down, None
        try:
            from mpcluster.monitor.server import Monitor

            self._monitor = Monitor(
                supervisor, self.address, program=self._program, handed_down=handed_down
            )
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise CommandError(f"--monitor {self.address}: {error}", FAILED) from None
        logger().info("the monitor is at %s", self._monitor.url)

    def fileno(self) -> int:
        """The number of its socket, for the next master; -1 while it is not shown. Any thread."""
        return -1 if (shown := self._monitor) is None else shown.fileno()

    def close(self) -> None:
        """Show it no more; the address is free then, or the next master's. Idempotent."""
        if self._handed_down is not None:
            descriptors.close(self._handed_down)
            self._handed_down = None
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None
