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

import fcntl
import os
import signal

from mpcluster import descriptors, perprocess
from mpcluster.logs import logger

__all__ = ["become_root", "hold", "wear"]


def hold() -> int:
    """Return the read end for a child to be, making the pipe at the first call in a root."""
    mine = perprocess.mine()
    with descriptors.opening():
        if __name__ not in mine:
            # The root has a write end as well, which no child keeps.
            mine[__name__], write_end = os.pipe()
            descriptors.own(mine[__name__])
            descriptors.own(write_end)
        read_end: int = mine[__name__]
        return read_end


def wear() -> None:
    """In a new worker: be killed when the root master ends. Exits if it has already.

    Its own children will be on the same leash. A child that is no worker (of a plain
    ``os.fork``) is a root of its own; its copy of the pipe was closed by `descriptors`.
    """
    read_end = perprocess.mine().setdefault(__name__, perprocess.before().get(__name__))
    try:
        # Never closed: the registration goes with the description. The child has one thread
        # as yet, so nobody forks in between.
        own_end = os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK)
        descriptors.own(own_end)
        fcntl.fcntl(own_end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own_end, fcntl.F_SETSIG, int(signal.SIGKILL))
        fcntl.fcntl(own_end, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    except OSError as error:
        logger().warning("this worker may outlive its master: /proc is needed (%s)", error)
        return
    try:
        os.read(own_end, 1)
    except BlockingIOError:
        return  # nothing to read: somebody could write
    os.kill(os.getpid(), signal.SIGKILL)  # it ended before the registration


def become_root() -> None:
    """In a process that wears a leash: hold one of its own for the workers that it may fork.

    It is still killed with its master; but its workers end with it, not only with that one.
    """
    with descriptors.opening():
        read_end: int | None = perprocess.mine().pop(__name__, None)
        if read_end is not None:
            descriptors.close(read_end)
