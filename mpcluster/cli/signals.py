"""The signals of a master, as operators know them from other servers.

====================  =====================================================
TERM, INT             stop: let the workers finish; a second one, at once
QUIT                  stop at once
HUP                   reload
TTIN, TTOU            one worker more, one less
USR1                  reopen the log file
USR2                  put a new master in the place of this one
====================  =====================================================

They are heard in the main thread, whatever that waits in, and dealt with in the watcher's.
Workers begin with what the command itself began with.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from mpcluster import watcher

__all__ = ["HEARD", "hear", "hear_of_children"]

HEARD: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_before: dict[int, Any] = {}


def hear(what: Callable[[signal.Signals], object]) -> None:
    """Call ``what(signal)`` in the watcher's thread on each of them. In the main thread."""

    def handler(number: int, _frame: FrameType | None) -> None:
        watcher.current().call_soon(lambda: what(signal.Signals(number)))

    for one in HEARD:
        _handle(one, handler)


def hear_of_children(look: Callable[[], object]) -> None:
    """Call ``look()`` in the watcher's thread when a child has ended. In the main thread."""
    _handle(signal.SIGCHLD, lambda _number, _frame: watcher.current().call_soon(look))


def _handle(number: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> None:
    # First: a worker may be forked between these two lines.
    _before.setdefault(number, signal.getsignal(number) or signal.SIG_DFL)
    signal.signal(number, handler)


def _after_fork_in_child() -> None:
    # Every signal is blocked until this is done: none is heard by a child in its master's way.
    for one, handler in _before.items():
        signal.signal(one, handler)
    _before.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
