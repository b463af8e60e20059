"""Is a connection there for this process, whatever the kernel says to all that poll?

A connection is taken from the queue and lies in ``Listener.taken`` before it is reported.
See :mod:`~.polling`, of which this is the part that decides.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from . import parking, real, waiting
from .copies import Copy, Taken

__all__ = ["accepts", "holds", "is_blocking", "take", "until_true", "wait_alone"]


def take(copy: Copy) -> Taken:
    """A connection from the listener itself, past those that were reported. Never waits.

    Be it accepted here or by the master, who is not told yet.

    Raises:
        BlockingIOError: There is none, or a sibling was quicker.
        OSError: The kernel's, else.
    """
    line = copy.listener.line
    if line is not None and not copy.parked:
        passed = line.take(copy.fd)
        if passed is not None:
            return passed
        parking.silence(copy)  # an end of file would keep it readable for ever
    fd, address = real.accept(copy.handle)
    return Taken(fd, address)


def is_blocking(copy: Copy) -> bool:
    """Would ``accept()`` wait, or is there something that it would fetch?"""
    return copy.timeout != 0.0 or bool(copy.listener.taken)


def is_ready(copy: Copy) -> bool:
    """Will ``accept()`` return at once, if only with an error? Takes what is there."""
    listener = copy.listener
    if listener.taken or copy.ended:
        return True
    if not accepts(copy):
        return False
    try:
        listener.taken.append(take(copy))
    except BlockingIOError:
        return False
    except OSError as error:
        listener.taken.append(error)  # accept()'s to raise
    return True


def holds(copy: Copy) -> bool:
    """The kernel says that it is readable. Is it so?"""
    if accepts(copy):
        return is_ready(copy)
    copy.reported = copy.listener.key[1] == socket.SOCK_DGRAM
    return True


def accepts(copy: Copy) -> bool:
    """Does it listen for connections? Else it is reported as the kernel has it."""
    return copy.listener.listening and copy.listener.key[1] != socket.SOCK_DGRAM


def wait_alone(copy: Copy, timeout: float | None) -> bool:
    """Wait in turn with the other processes, as who polls nothing else; is one there?

    It waits before it looks: to look first would be one system call more where there is
    nothing, and to jump the queue where there is.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    if timeout != 0 and not (copy.listener.taken or copy.ended):
        waiting.wait_in_turn(copy, timeout)
    while not is_ready(copy):
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return False
        waiting.wait_in_turn(copy, remaining)
    return True


def until_true(
    look: Callable[[float | None], bool], watched: list[Copy], timeout: float | None
) -> None:
    """Poll until something is to be reported, or ``timeout`` seconds are over.

    Args:
        look: Polls for so many seconds, keeps the result, says whether anything is in it.
        watched: The shared sockets among what is polled.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if any([is_ready(copy) for copy in watched]):  # noqa: C419 -- all of them
            look(0)
            return
        remaining = None if deadline is None else max(deadline - time.monotonic(), 0)
        if look(remaining) or remaining == 0:
            return
