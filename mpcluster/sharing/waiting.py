"""Blocking on a descriptor that never blocks.

The descriptions of shared sockets are non-blocking (see :class:`~.copies.Copy`); who
wants to block does it here, in Python.

A thread that blocks in ``accept(2)`` is woken alone and in turn: the kernel hands
connections to blocked acceptors first-in first-out, which spreads them evenly over
workers. ``poll()`` would wake every worker for each connection. So each thread that waits
has an ``epoll`` of its own, in which it registers with ``EPOLLEXCLUSIVE``, and every few waits
anew: that puts it at the end of the queue, where a registration that lasts would stay the
first. (Each time would be two system calls a connection, and in each the interpreter may go
to another thread.) It ends with the thread; a forked child, whose queue would be the parent's
too, gets a new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .copies import Copy, identify

__all__ = ["attempt", "end", "wait", "wait_in_turn"]

T = TypeVar("T")

#: A wake-up given to a process that was killed before it could accept is lost, and the
#: connection would lie there until the next one comes; so look again now and then.
_ROUND = 1.0  # seconds

#: Waits until a thread goes to the end of the queue: where connections come one at a time, a
#: worker gets so many in a row.
_STAY = 4

# Taken now: gevent deletes some of these from the module.
_epoll = getattr(select, "epoll", None)
_poll = getattr(select, "poll", None)
_EXCLUSIVE = getattr(select, "EPOLLEXCLUSIVE", 0)
_always_ready: int | None = None
_mine = threading.local()


def attempt(copy: Copy, call: Callable[[], T], *, writing: bool = False) -> T:
    """``call()`` until it would not block, waiting in between as ``copy.timeout`` says.

    Raises:
        BlockingIOError: there is nothing, and the program does not want to wait: its
            socket is non-blocking, or it was told of a datagram and a sibling was quicker.
        TimeoutError: as of any socket with a timeout.
    """
    deadline = None
    while True:
        try:
            result = call()
        except BlockingIOError:
            if copy.timeout == 0.0:
                raise
            if copy.reported and copy.timeout is None and not writing:
                copy.reported = False
                raise
        else:
            copy.reported = False
            return result
        if copy.ended:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if copy.timeout is None:
            remaining = _ROUND
        else:
            now = time.monotonic()
            deadline = now + copy.timeout if deadline is None else deadline
            remaining = min(deadline - now, _ROUND)
            if remaining <= 0:
                raise TimeoutError("timed out")
        wait(copy, remaining, writing=writing)


def wait_in_turn(copy: Copy, seconds: float | None) -> None:
    """As :func:`wait`, for reading; without a limit for a round, since a wake-up can be lost."""
    wait(copy, _ROUND if seconds is None else min(seconds, _ROUND))


def wait(copy: Copy, seconds: float, *, writing: bool = False) -> None:
    """Return when the descriptor may be ready, or was ended, or after ``seconds``."""
    try:
        queue = getattr(_mine, "queue", None) or _Queue()
        _mine.queue = None  # so that a signal's handler which waits, too, takes another
        queue.enter(copy, writing=writing)
    except OSError:  # no descriptor is left for one: be woken with all others, then
        poller = _poll()  # type: ignore[misc]
        poller.register(copy.fd, select.POLLOUT if writing else select.POLLIN)
        poller.poll(seconds * 1000)
        return
    copy.waiting.add(queue)
    try:
        if not copy.ended:  # looked at after `waiting` is set: end() misses nobody
            queue.poll(seconds)
    finally:
        copy.waiting.discard(queue)
    if not copy.ended:  # else what has ended the wait is registered, too
        _mine.queue = queue


class _Queue:
    """The ``epoll`` of one thread, and what it is registered for, if for anything."""

    def __init__(self) -> None:
        if _epoll is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._epoll = _epoll()
        self.poll = self._epoll.poll
        self._entered: tuple[Copy, object, bool] | None = None
        self._waits = 0

    def enter(self, copy: Copy, *, writing: bool) -> None:
        """Be registered for this: still, or at the end of the queue.

        Raises:
            OSError: The kernel has no descriptor, or no room, for that.
        """
        # A drain lays something over the descriptor, and removes what was registered.
        wanted = (copy, copy.identity, writing)
        self._waits += 1
        if self._entered == wanted and self._waits < _STAY:
            return
        self._leave()
        mask = select.EPOLLOUT if writing else select.EPOLLIN | _EXCLUSIVE
        self._epoll.register(copy.fd, mask)
        self._entered, self._waits = wanted, 0

    def _leave(self) -> None:
        if self._entered is None:
            return
        copy, identity, _ = self._entered
        if identify(copy.fd) == identity:
            with contextlib.suppress(OSError):  # a drain has done it
                self._epoll.unregister(copy.fd)
        else:
            # Closed here and open in the master, it cannot be removed any more, and would be
            # reported on and on.
            self._epoll.close()
            self._epoll = _epoll()  # type: ignore[misc]
            self.poll = self._epoll.poll
        self._entered = None

    def wake(self, fd: int) -> None:
        """Let whoever polls see something. In any thread.

        Raises:
            OSError, ValueError: Its thread has left meanwhile, or was woken already.
        """
        self._epoll.register(fd, select.EPOLLIN)


def end(copy: Copy) -> None:
    """Wake every thread that waits for this copy; they get ``EINVAL``, as of the kernel."""
    global _always_ready
    copy.ended = True
    if not copy.waiting:
        return
    if _always_ready is None:
        _always_ready = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    for queue in list(copy.waiting):
        try:
            queue.wake(_always_ready)
        except (OSError, ValueError):  # its thread has left meanwhile, or is ended already
            continue


def _after_fork_in_child() -> None:
    global _mine
    _mine = threading.local()


os.register_at_fork(after_in_child=_after_fork_in_child)
