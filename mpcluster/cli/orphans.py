"""Zombies that are nobody's: what PID 1 of a container has to bury.

Processes whose parent has ended become children of PID 1 (or of a subreaper, prctl(2)), and
stay in the table of processes until that one waits for them. A child of the master's own
(a worker; what a preloaded module has started) is waited for by whoever started it, and would
be stolen from him. So a zombie is taken only when it has been one for a while: long enough
that nobody else wants it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

from mpcluster import watcher
from mpcluster.logs import logger

from . import signals

__all__ = ["Orphans", "is_their_parent"]

#: Seconds that a zombie is left to whoever may want it.
GRACE: Final = 2.0
_PR_GET_CHILD_SUBREAPER: Final = 37


def is_their_parent() -> bool:
    """Do orphans become children of this process?"""
    if os.getpid() == 1:
        return True
    answer = ctypes.c_int(0)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) == 0 and answer.value != 0


class Orphans:
    """Buries them; in the watcher's thread, but for :meth:`hear`."""

    def __init__(self) -> None:
        self._suspects: set[tuple[int, int]] = set()
        self._timer: watcher.Timer | None = None

    def hear(self) -> None:
        """Look at each SIGCHLD from now on. In the main thread."""
        signals.hear_of_children(self.look)
        watcher.current().call_soon(self.look)

    def look(self) -> None:
        """Look soon, once, for what is a zombie now and still is then."""
        if self._timer is None:
            self._suspects = zombies()
            if self._suspects:
                self._timer = watcher.current().call_later(GRACE, self._bury)

    def _bury(self) -> None:
        self._timer = None
        for pid, _started in self._suspects & zombies():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
                logger().info("orphan %d has ended", pid)
        self.look()  # at those that have come meanwhile


def zombies() -> set[tuple[int, int]]:
    """This process's children that nobody has waited for: pid and start, never used twice."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                state = _state(pid)
                if state is not None:
                    found.add((int(pid), state))
    return found


def _state(pid: str) -> int | None:
    """When a zombie was started; None of who is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[19]) if fields[0] == "Z" else None
