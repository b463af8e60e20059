"""The listener of an accepting master: watched while a connection could be dealt with, only then.

While no worker may be passed one, clients wait in the kernel's queue and nothing wakes the
master. (Node's master accepts without bound there, and with ``maxConnections`` asks a full
worker 7,000 times a second.) Likewise for a while after the kernel had no descriptor or
memory for one more: to ask at once again would be to spin.
"""

from __future__ import annotations

import _socket
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from mpcluster import descriptors
from mpcluster.scheduling.base import Kept
from mpcluster.scheduling.taker import Connection
from mpcluster.scheduling.timers import Timers

__all__ = ["REST", "Door"]

_log = logging.getLogger("mpcluster")

#: Seconds without accepting after the kernel had no descriptor or memory for one more.
REST: Final = 0.1

#: For a listener whose server has not yet said how many may wait.
_BACKLOG: Final = socket.SOMAXCONN

#: What accept(2) says of a connection that is no more; the next one is another matter.
_OF_ONE: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        getattr(errno, "ENONET", errno.EPROTO),
    }
)

_accept: Callable[[socket.socket], tuple[int, object]] = _socket.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001


class Door:
    """Where clients come in. In the master's watcher thread, as all of a policy.

    Args:
        kept: Of the policy; the socket's open file description is the master's alone.
        timers: Of the policy.
        on_clients: Called for as long as clients wait and the door is :meth:`tended <tend>`.
        on_rested: Called when accepting may succeed again.
    """

    def __init__(
        self,
        kept: Kept,
        timers: Timers,
        on_clients: Callable[[], object],
        on_rested: Callable[[], object],
    ) -> None:
        self.socket = kept.socket
        self.socket.setblocking(False)  # noqa: FBT003
        self._watch, self._timers = kept.watch, timers
        self._on_clients, self._on_rested = on_clients, on_rested
        self._listens = self._told_of_rest = False
        self.watched = False
        self.resting = False

    def __repr__(self) -> str:
        return "resting" if self.resting else "accepting" if self.watched else "not accepting"

    def listen(self, backlog: int | None) -> None:
        """Listen from the first asker on; as in Node, the last ``listen`` sets the backlog.

        Raises:
            OSError: The kernel's.
        """
        if backlog is not None or not self._listens:
            self.socket.listen(_BACKLOG if backlog is None else backlog)
            self._listens = True

    def tend(self, *, wanted: bool) -> None:
        """Watch the listener from now on, or do not."""
        if wanted and not self.watched:
            self.watched = True
            self._watch.add(self.socket.fileno(), lambda _: self._on_clients())
        elif self.watched and not wanted:
            self.watched = False
            self._watch.remove(self.socket.fileno())

    def accept(self) -> Connection | None:
        """The next connection; ``None``: there is none, or the master has to rest."""
        try:
            with descriptors.opening():
                fd, peer = _accept(self.socket)
                descriptors.own(fd)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _OF_ONE:
                self._rest(error)
            return None
        self._told_of_rest = False
        return Connection(fd, peer)

    def close(self) -> None:
        """Close the listener: who waits in its queue is reset by the kernel."""
        self.tend(wanted=False)
        descriptors.close(self.socket)

    def _rest(self, error: OSError) -> None:
        if not self._told_of_rest:
            self._told_of_rest = True
            _log.warning(
                "the master cannot accept connections now, they wait in the kernel's queue: %s",
                error,
            )
        self.resting = True
        self._timers.start(self, REST, self._go_on)

    def _go_on(self) -> None:
        self.resting = False
        self._on_rested()
