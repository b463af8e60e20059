"""No worker outlives its root master, whatever ends that one.

The root master holds the write end of one pipe, and nobody else does. Every worker below
it, nested ones too, opens the read end anew and asks the kernel to send *SIGKILL to the
worker* when something happens on it (``F_SETOWN``, ``F_SETSIG``, ``O_ASYNC``; fcntl(2)).
Nothing is ever written, so what happens is the end: the last write end closes with the
death of the master. No thread or handler of the worker takes part, so a worker that spins
in C with the interpreter's lock held goes as well.

Why not ``PR_SET_PDEATHSIG``: that fires when the *thread* that forked ends. Why reopened
through ``/proc/self/fd``: owner and signal belong to the open file description, which the
copies that a fork makes would share.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal

from mpcluster import descriptors

__all__ = ["become_root", "hold", "wear"]

logger = logging.getLogger("mpcluster")

#: The read end, in the root master and in every worker below it. A root has a write end
#: as well, which no child keeps. Both are set once, under `descriptors.opening()`.
_read_end: int | None = None


def hold() -> int:
    """Return the read end for a child to be, making the pipe at the first call in a root."""
    global _read_end
    with descriptors.opening():
        if _read_end is None:
            _read_end, write_end = os.pipe()
            descriptors.own(_read_end)
            descriptors.own(write_end)
        return _read_end


def wear() -> None:
    """In a new worker: be killed when the root master ends. Exits if it has already."""
    assert _read_end is not None
    try:
        # Never closed: the registration goes with the description. The child has one thread
        # as yet, so nobody forks in between.
        own_end = os.open(f"/proc/self/fd/{_read_end}", os.O_RDONLY | os.O_NONBLOCK)
        descriptors.own(own_end)
        fcntl.fcntl(own_end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own_end, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own_end, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    except OSError as error:
        logger.warning("this worker may outlive its master: /proc is needed (%s)", error)
        return
    with contextlib.suppress(BlockingIOError):  # nothing to read: somebody could write
        os.read(own_end, 1)
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before the registration


def become_root() -> None:
    """In a process that wears a leash: hold one of its own for the workers that it may fork.

    It is still killed with its master; but its workers end with it, not only with that one.
    """
    global _read_end
    with descriptors.opening():
        if _read_end is not None:
            descriptors.close(_read_end)
            _read_end = None


def _after_fork_in_child() -> None:
    global _read_end
    # A child that is not a worker (a plain os.fork) is a root of its own; its copy of the
    # pipe was closed by `descriptors`.
    if _read_end is not None and _read_end not in descriptors.owned():
        _read_end = None


os.register_at_fork(after_in_child=_after_fork_in_child)
