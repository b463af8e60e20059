"""Connections that the master accepts and passes: the worker's end of the line.

The line (:mod:`mpcluster.scheduling.line`) stands in the listener's place. It is readable
when a connection has come, so whatever waits for a listener waits for it: ``select``, an
event loop, a thread in ``accept()``; which then takes a connection out of it instead.

The master learns two things from here: that the *program* has accepted a connection, which is
said in the same breath, and, where it counts, that a connection is closed. The latter is
seen where Python closes a socket, and otherwise (``os.close``, C code) by a look at all of
them once a second, by the watcher's thread, for as long as there are any.

**Lock.** One a line, taken by a thread in ``accept()`` or ``close()`` for two system calls that do
not block; nobody waits for it in ``close()``, which may run in a finaliser, inside the lock. It
is the interpreter's own, not gevent's. In a forked child it is new, the line's descriptor is opened
anew from the child's copy, and nothing is counted there.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import weakref
from _thread import allocate_lock
from collections import deque
from typing import Any, Final

from mpcluster import descriptors, watcher
from mpcluster.scheduling import line

from .copies import Identity, Taken, identify

__all__ = ["Line", "closed"]

#: Seconds between two looks for connections that were closed behind our back.
LOOK: Final = 1.0

#: The counted connections of this process, by descriptor: what it was, and whose.
_open: dict[int, tuple[Identity, Line]] = {}

_lines: weakref.WeakSet[Line] = weakref.WeakSet()
_looking = False


class Line:
    """This process's end of one line.

    Args:
        fd: Any descriptor on it. It has one of its own besides, so that what is said goes to
            the master whatever becomes of the program's descriptors in the meantime.
        counts: The master wants to know when a connection ends.
    """

    def __init__(self, fd: int, *, counts: bool) -> None:
        self._counts = counts
        self._lock = allocate_lock()
        self._ended: deque[None] = deque()  # closed, and not yet put into words
        self._unsaid: deque[tuple[bytes, int]] = deque()  # while the master does not listen
        self._own: _socket.socket | None = None
        self._closed = False
        #: What the program has set on the listener since: accepted connections inherit it.
        self.options: dict[tuple[int, int], Any] = {}
        self._end(fd)
        _lines.add(self)

    def _end(self, fd: int) -> _socket.socket:
        if self._own is None:
            with descriptors.opening():
                self._own = _socket.socket(fileno=os.dup(fd))
                descriptors.own(self._own.fileno())
        return self._own

    def listen(self, fd: int, backlog: int = 128) -> None:
        """The program takes connections from now on; ``backlog`` as of ``socket.listen``."""
        with self._lock:
            if not self._closed:
                self._end(fd)
                self._say(line.LISTEN, max(0, backlog))

    def take(self, fd: int) -> Taken | None:
        """Take the next connection out; the master is not told. ``None``: it has closed the line.

        If this process ends now, or closes its listener, another one gets the connection.

        Args:
            fd: The program's descriptor.

        Raises:
            BlockingIOError: No connection has come.
            OSError: EMFILE: no descriptor is left for it; the master gives it to another.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            passed = line.take(self._end(fd))
            if passed is None:
                return None
            if passed.fd < 0:
                self._say(line.REFUSED, passed.number)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return Taken(passed.fd, passed.peer, passed.number)

    def accept(self, accepted: int, number: int) -> None:
        """The program accepts what was taken: from now on it is this process's alone.

        Args:
            accepted: Its descriptor; closed where this fails.
            number: Of the connection.

        Raises:
            OSError: EBADF: the listener was closed meanwhile, and the connection is another's.
        """
        with self._lock:
            try:
                if self._closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                if self._counts:
                    _open[accepted] = (identify(accepted), self)
                self._say(line.COUNTED if self._counts else line.ACCEPTED, number)
                self._dress(accepted)
            except BaseException:
                line.close(accepted)
                raise
        if self._counts:
            _keep_looking()

    def close(self) -> None:
        """The program has closed its last copy: accept, and say, no more."""
        with self._lock:
            self._closed = True
            if self._own is not None:
                descriptors.disown(self._own.fileno())
                self._own.close()
                self._own = None

    def ended(self) -> None:
        """One of the counted connections is closed."""
        self._ended.append(None)
        self.say_rest()

    def say_rest(self) -> None:
        """Say what could not be said before."""
        if self._lock.acquire(blocking=False):  # else the next word, or look, will tell
            try:
                self._say()
            finally:
                self._lock.release()

    def _say(self, *word: Any) -> None:
        """Say this, after what is unsaid. Under the lock."""
        ended = len(self._ended)
        if ended:
            self._unsaid.append((line.ENDED, ended))
            for _ in range(ended):
                self._ended.popleft()
        if word:
            self._unsaid.append(word)
        try:
            while self._unsaid and self._own is not None:
                line.say(self._own, *self._unsaid[0])
                self._unsaid.popleft()
        except BlockingIOError:
            _keep_looking()  # the master is busy; the next look tries again

    def _dress(self, accepted: int) -> None:
        """Set what a connection would have inherited from a real listener."""
        if self.options:
            connection = _socket.socket(fileno=accepted)
            try:
                for option, value in self.options.items():
                    with contextlib.suppress(OSError):
                        connection.setsockopt(*option, *value)
            finally:
                connection.detach()

    def forget(self) -> None:
        """In a forked child: what it inherited of the line is closed already."""
        self._lock = allocate_lock()
        self._ended.clear()
        self._unsaid.clear()
        self._counts = False
        if self._own is not None:
            self._own.detach()
            self._own = None


def closed(fd: int) -> None:
    """This descriptor was closed, whatever it was. Any thread, a finaliser too."""
    if _open:
        entry = _open.pop(fd, None)
        if entry is not None:
            entry[1].ended()


def look() -> None:
    """Find those that are closed without a word. In the watcher's thread."""
    global _looking
    _looking = False
    for fd, (identity, its_line) in list(_open.items()):
        if identify(fd) != identity and _open.get(fd) == (identity, its_line):
            closed(fd)
    for one in list(_lines):
        one.say_rest()
    if _open:
        _keep_looking()


def _keep_looking() -> None:
    global _looking
    if not _looking:
        _looking = True
        watcher.current().call_later(LOOK, look)


def _after_fork_in_child() -> None:
    global _looking
    _looking = False
    _open.clear()
    for one in list(_lines):
        one.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
