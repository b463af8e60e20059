"""What a service manager is told: the protocol of ``sd_notify(3)``, one datagram a word.

Said by the watcher's thread: where that stands still, the watchdog hears nothing more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from mpcluster import descriptors, watcher
from mpcluster.logs import logger

__all__ = ["Notifier"]

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Tells the service manager, where there is one; else nobody.

    The variables are taken out of the environment: what the workers start is none of the
    manager's business. :attr:`variables` has them, for a master that takes over.

    Args:
        environ: Where they are.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self.variables = {name: environ.pop(name) for name in _VARIABLES if name in environ}
        self._address = self.variables.get("NOTIFY_SOCKET", "")
        self._timer: watcher.Timer | None = None
        self._complained = False
        pid = self.variables.get("WATCHDOG_PID", str(os.getpid()))
        usec = self.variables.get("WATCHDOG_USEC", "")
        #: Seconds between two signs of life; half of what the manager waits for.
        self.interval = int(usec) / 2e6 if usec.isdecimal() and pid == str(os.getpid()) else None

    def begin(self) -> None:
        """Give signs of life from now on, if they are wanted. In the watcher's thread."""
        if self.interval:
            self.tell(WATCHDOG=1)
            self._timer = watcher.current().call_later(self.interval, self.begin)

    def end(self) -> None:
        """Give none any more."""
        if self._timer is not None:
            self._timer.cancel()

    def ready(self, status: str) -> None:
        """All workers are ready, at the start or after a reload."""
        self.tell(READY=1, STATUS=status)

    def reloading(self) -> None:
        """A reload has begun; :meth:`ready` says that it is over."""
        # CLOCK_MONOTONIC, as Type=notify-reload wants it.
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self) -> None:
        """The end has begun."""
        self.tell(STOPPING=1)

    def hand_over(self, pid: int) -> None:
        """Another process is the service from now on, and this one says nothing more."""
        self.end()
        self.tell(MAINPID=pid)
        self._address = ""

    def tell(self, **words: object) -> None:
        """Send these in one datagram; nobody waits for an answer."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        # An abstract address begins with an at sign here, and with a zero for the kernel.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with descriptors.opening():
            told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            descriptors.own(told)
        try:
            told.sendto(text.encode(), address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger().warning("the service manager cannot be told: %s", error)
        finally:
            descriptors.close(told)
