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
import select
import signal
from typing import Final

from mpcluster import descriptors, perprocess
from mpcluster.logs import logger

__all__ = ["PUT_ON", "become_root", "cut", "hold", "wear"]

_SIGKILL: Final = int(signal.SIGKILL)

#: The child's one step: ``fcntl(end, PUT_ON, getpid())``.
PUT_ON: Final = fcntl.F_SETOWN


def hold() -> int:
    """Return the read end for a child to be, making the pipe at the first call in a root."""
    mine = perprocess.mine()
    read_end: int | None = mine.get(__name__)
    if read_end is not None:
        return read_end
    with descriptors.opening():
        if __name__ not in mine:
            # The root has a write end as well, which no child keeps.
            mine[__name__], write_end = os.pipe()
            descriptors.own(mine[__name__])
            descriptors.own(write_end)
        read_end = mine[__name__]
        assert read_end is not None
        return read_end


def cut() -> int:
    """In a parent: open the pipe once more, for one child to be, and ask for the signal.

    What a parent does costs less than what each child does, in memory that is not yet its
    own. It is owned, and so the child has to be let have it; the parent closes its own copy after
    the fork. The child asks for the signal by :data:`PUT_ON`, and has to look afterwards whether
    there is anything to be read: then the root master has ended before. It keeps it under the name
    of this module (:mod:`perprocess`), for its own children.

    Returns:
        Its number; -1 where there is no /proc.

    Raises:
        OSError: Out of descriptors.
    """
    try:
        return _open(hold())
    except FileNotFoundError:
        return -1


def wear() -> None:
    """In a new worker: be killed when the root master ends. Exits if it has already.

    Its own children will be on the same leash. A child that is no worker (of a plain
    ``os.fork``) is a root of its own; its copy of the pipe was closed by `descriptors`.
    """
    read_end = perprocess.mine().setdefault(__name__, perprocess.before().get(__name__))
    try:
        # Never closed: the registration goes with the description.
        own_end = _open(read_end)
        fcntl.fcntl(own_end, fcntl.F_SETOWN, os.getpid())
    except OSError as error:
        logger().warning("this worker may outlive its master: /proc is needed (%s)", error)
        return
    poll = select.poll()
    poll.register(own_end, select.POLLIN)
    if poll.poll(0):  # nobody writes, so it ended before the registration
        os.kill(os.getpid(), _SIGKILL)


def _open(read_end: int | None) -> int:
    """A description of its own for one worker, which is not yet said."""
    with descriptors.opening():
        own_end = os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK)
        descriptors.own_numbers(own_end)
    fcntl.fcntl(own_end, fcntl.F_SETSIG, _SIGKILL)
    fcntl.fcntl(own_end, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    return own_end


def become_root() -> None:
    """In a process that wears a leash: hold one of its own for the workers that it may fork.

    It is still killed with its master; but its workers end with it, not only with that one.
    """
    with descriptors.opening():
        read_end: int | None = perprocess.mine().pop(__name__, None)
        if read_end is not None and fcntl.fcntl(read_end, fcntl.F_GETOWN) != os.getpid():
            descriptors.close(read_end)
