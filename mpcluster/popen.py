"""A forked child as its parent holds it: pid, pidfd, channel end, exit code.

Takes the place of ``multiprocessing.popen_fork.Popen`` and differs from it in three ways.
Its sentinel is a pidfd: the pipe that CPython uses stays silent while any descendant of
the child still holds a copy of the other end. A wait never sits in ``waitpid``: it waits
on the pidfd and then reaps without blocking, under a lock, so that any number of threads,
the watcher among them, may look at once. And a child that somebody else has reaped
(``os.wait()`` in the program, ``SIGCHLD`` ignored) is dead all the same.
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import struct
import sys
from _thread import RLock, get_ident
from collections.abc import Callable
from fcntl import ioctl
from multiprocessing import popen_fork
from termios import FIONREAD
from typing import Final

from mpcluster import descent, descriptors, forking, interpreter, leash, perprocess, watcher
from mpcluster.descent import Newborn

__all__ = ["UNKNOWN_EXITCODE", "Popen", "own_pidfd"]

#: The exit code of a child whose status somebody else has taken, on kernels that do not
#: keep it (before 6.15); the same number as asyncio's child watchers give.
UNKNOWN_EXITCODE: Final = 255


_NO_SIZE: Final = bytes(4)

#: Milliseconds of one wait, some weeks: poll(2) takes no more.
_LONGEST: Final = 2**31 - 1


class Popen(popen_fork.Popen):
    """Fork ``process_obj`` and hold the child.

    Attributes:
        sentinel: Becomes readable when the child has ended, and stays so.
        connection: This side's end of the channel, a socket's number.
    """

    method = "fork"
    sentinel: int
    connection: int
    _open_sentinels: list[int] | tuple[()] = ()  # one, until it is closed
    #: The child has its parent's bell: its channel need not be watched until it rings.
    has_bell = True
    _watched = _close_wanted = False  # guarded by `reaping`
    #: Called once by who has seen the end, unless it is taken away under `reaping` before. It
    #: is called under `reaping` as well, and returns what is to be called after it.
    on_end: Callable[[], Callable[[], object]] | None = None

    def _launch(self, process_obj: Newborn) -> None:
        self._begin()
        opened: tuple[int, ...] = ()
        try:
            with descriptors.opening():
                # The bare call: `socket`'s own, and `Pipe`, bring a lot of others along.
                ours, theirs = opened = tuple(end.detach() for end in _socket.socketpair())
                descriptors.own_numbers(ours, theirs)
                parent_sentinel = own_pidfd()
                end = leash.cut()
                opened = (ours, theirs, end)
            poll = select.poll()
            poll.register(theirs, select.POLLIN)
            the_watcher = watcher.current()
            # The watcher counts when it is in the middle of a call; the child can tell.
            threaded = interpreter.count_threads() > the_watcher.is_running()
            heritage = descent.bequeath(process_obj, theirs, end)
            if end >= 0:
                poll.register(end, select.POLLIN)
            me = get_ident()
            perprocess.bequests[me] = heritage[0]
            try:
                pid = forking.fork((theirs, parent_sentinel, end, the_watcher.bell))
                if pid == 0:
                    threaded = threaded or the_watcher.calls_under_way > 0
                    descent.be_child(
                        process_obj, heritage, parent_sentinel, poll, threaded=threaded
                    )
            finally:
                del perprocess.bequests[me]
        except BaseException:
            if os.getpid() != self._owner:
                os._exit(1)  # a Ctrl-C just after the fork: no second master goes on here
            descriptors.close_numbers(*opened)
            raise
        descriptors.close_numbers(theirs, end)
        self._adopt(pid, ours)

    def _begin(self) -> None:
        self._owner = os.getpid()
        # Guards `returncode` and the one waitpid that may succeed, and `on_end`. Taken by any
        # thread that looks at the child; nothing but waitpid(WNOHANG) and a look at the channel
        # happens under it. Re-entrant, for a signal handler may look too. A forked child never
        # takes it: there, `poll` sees that the child is not its own.
        self.reaping = RLock()

    def _adopt(self, pid: int, ours: int) -> None:
        """Hold the child that was forked.

        Raises:
            OSError: Out of descriptors; the child is ended again.
        """
        self.pid = pid
        self.connection = ours
        try:
            with descriptors.opening():
                self.sentinel = _open_sentinel(pid)
                descriptors.own_numbers(self.sentinel)
        except OSError:  # out of descriptors: a child that nobody can watch must not live
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            descriptors.close(ours)
            raise
        self._open_sentinels = [self.sentinel]

    @staticmethod
    def run_child(process_obj: Newborn, connection: int, sentinel: int, *, threaded: bool) -> None:
        """In a child for which nothing is prepared: be that process. Does not return."""
        heritage = descent.bequeath(process_obj, connection, -1)
        perprocess.begin_with(heritage[0])
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        descent.be_child(process_obj, heritage, sentinel, poll, threaded=threaded)

    # -- the parent ------------------------------------------------------------------------

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code, or ``None`` while the child lives; reaps it.

        With ``flag=0`` it waits for the end, as the base class does.
        """
        is_through = self.returncode is not None and self.on_end is None
        if not is_through and os.getpid() == self._owner:
            if not flag & os.WNOHANG:
                self._ended(None)
            with self.reaping:
                if self.returncode is None:
                    self.returncode = self._reap()
                note = then = None
                if self.returncode is not None:
                    note, self.on_end = self.on_end, None
                if note is not None:
                    then = note()
            if then is not None:
                then()
        return self.returncode

    def _reap(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return self._status_taken_by_another() if self._ended(0) else None
        return os.waitstatus_to_exitcode(status) if pid == self.pid else None

    def _status_taken_by_another(self) -> int:
        status = _status_of_reaped(self.sentinel)
        return UNKNOWN_EXITCODE if status is None else os.waitstatus_to_exitcode(status)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to ``timeout`` seconds for the end; return the exit code or ``None``."""
        if self.returncode is None and not self._ended(timeout):
            return None
        return self.poll()

    def unread(self) -> int:
        """How many bytes the child has said that nobody has read."""
        return int.from_bytes(ioctl(self.connection, FIONREAD, _NO_SIZE), sys.byteorder)

    def watch(self) -> None:
        """From now on the watcher waits for the sentinel, so it is not closed."""
        with self.reaping:
            self._watched = True

    def release(self) -> None:
        """The watcher is done with it; do what :meth:`close` has left."""
        with self.reaping:
            self._watched = False
            wanted = self._close_wanted
        if wanted:
            self.close()

    def close(self) -> None:
        """Close the sentinel, at once or as soon as nobody watches it any more."""
        if os.getpid() == self._owner:
            with self.reaping:
                self._close_wanted = True
                if self._watched:
                    return
            self._close_sentinel()

    def __del__(self) -> None:
        try:
            if os.getpid() == self._owner:  # in a child it is closed long since
                self._close_sentinel()
        except Exception:  # noqa: BLE001  # the interpreter is going, its modules are gone
            pass

    def _close_sentinel(self) -> None:
        # `pop` gives it to one caller, whatever their threads. Neither a `util.Finalize` nor a
        # `weakref.finalize` does this: at the end of the process the main thread runs those, and
        # the watcher may fork at that very moment. A sentinel that it has just opened would be
        # closed under its hands, and its number be the next thing's.
        sentinels = self._open_sentinels
        if sentinels:
            try:
                descriptors.close_numbers(sentinels.pop())
            except IndexError:
                pass  # another thread was quicker

    def _ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        milliseconds = None if timeout is None else min(max(0.0, timeout) * 1000, _LONGEST)
        return bool(poll.poll(milliseconds))

    def send_signal(self, sig: int) -> None:
        """Send a signal to the child, and surely to no other; nothing if it has ended."""
        if os.getpid() != self._owner:
            if self.returncode is None:  # the pidfd is its parent's alone
                os.kill(self.pid, sig)
        elif self.poll() is None:
            try:
                signal.pidfd_send_signal(self.sentinel, sig)
            except ProcessLookupError:
                pass  # it has ended in the meantime

    _send_signal = send_signal  # as the base class calls it


def _open_sentinel(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        # Ended and reaped already (SIGCHLD is ignored): something that is always ready.
        read_end, write_end = os.pipe()
        os.close(write_end)
        return read_end


# This process's own pidfd, which its children inherit to know its end by. Made once in each
# process, under `descriptors.opening()`; a child's copy belongs to `parent_process()`.
_pidfd: tuple[int, int] | None = None


def own_pidfd() -> int:
    """This process's own pidfd, for a child to know its parent's end by."""
    global _pidfd
    with descriptors.opening():
        if _pidfd is None or _pidfd[0] != os.getpid():
            _pidfd = os.getpid(), os.pidfd_open(os.getpid())
            descriptors.own(_pidfd[1])
        return _pidfd[1]


# ioctl PIDFD_GET_INFO of linux/pidfd.h: struct pidfd_info begins with the mask of what is
# asked for, and ends (in its first version, 64 bytes) with the exit code.
_GET_INFO: Final = 0xC040FF0B
_INFO_EXIT: Final = 1 << 3


def _status_of_reaped(pidfd: int) -> int | None:
    """Return the wait status of a process that is reaped already, where the kernel keeps it."""
    request = struct.pack("=Q", _INFO_EXIT).ljust(64, b"\0")
    try:
        answer = ioctl(pidfd, _GET_INFO, request)
    except OSError:
        return None
    mask, status = struct.unpack_from("=Q", answer)[0], struct.unpack_from("=i", answer, 60)[0]
    return status if mask & _INFO_EXIT else None
