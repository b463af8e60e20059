"""Where lines go: a terminal, a pipe, a file; written without ever waiting for it.

A reader that is slow (a stopped terminal, a full pipe) must not stop the watcher, which
looks after the workers. So nothing is written to what is not ready, and past a limit
:attr:`Sink.is_full` says that no more should be brought: then the workers wait, as they
would if they wrote there themselves. What a disk has no room for is lost, and counted.

Everything here runs in the watcher's thread, but for :meth:`Sink.finish` at the end.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable
from typing import Final

from mpcluster import descriptors, watcher

__all__ = ["MOST", "Sink"]

#: Bytes that may wait.
MOST: Final = 1 << 20
#: Bytes that are written at once to what is ready: more might wait (POSIX: PIPE_BUF).
_AT_ONCE: Final = select.PIPE_BUF
#: Seconds that a reader is given at the very end.
_LAST_WAIT: Final = 1.0


class Sink:
    """One place for lines.

    Args:
        fd: Its descriptor; -1 with ``path``.
        path: Of a file, which is opened, and can be opened anew.
        on_room: Called when it was full and is not any more.
        on_loss: Called with the error at the first line that is lost, and with None and
            their number when it can be written again.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(
        self,
        fd: int = -1,
        path: str | None = None,
        *,
        on_room: Callable[[], object],
        on_loss: Callable[[OSError | None, int], object],
    ) -> None:
        self.path = path
        self._fd = fd
        self._buffer = bytearray()
        self._watched = False
        self._lost = 0
        self._told_full = False
        self._on_room, self._on_loss = on_room, on_loss
        if path is not None:
            self._fd = _open(path)
        self._is_file = _is_file(self._fd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path or self._fd} {len(self._buffer)} bytes wait>"

    @property
    def is_full(self) -> bool:
        """Do so many bytes wait that no more should be brought?"""
        if len(self._buffer) >= MOST:
            self._told_full = True
        return self._told_full

    def write(self, line: bytes) -> None:
        """Write it, or let it wait."""
        self._buffer += line
        if not self._watched:
            self._flush()

    def reopen(self) -> None:
        """Open the file anew: it was moved away.

        Raises:
            OSError: That cannot be; the old one is written to as before.
        """
        if self.path is None:
            return
        fresh = _open(self.path)
        descriptors.close(self._fd)
        self._fd, self._is_file = fresh, _is_file(fresh)

    def finish(self) -> None:
        """Write what waits, or nearly: a reader that takes nothing is not waited for long."""
        self._unwatch()
        deadline = time.monotonic() + _LAST_WAIT
        while self._buffer and self._is_ready(deadline - time.monotonic()):
            self._write_some()
        if self.path is not None:
            descriptors.close(self._fd)

    def _flush(self) -> None:
        while self._buffer:
            if not self._is_file and not self._is_ready(0):
                self._watch()
                return
            if not self._write_some():
                return
        self._unwatch()
        if self._told_full:
            self._told_full = False
            self._on_room()

    def _write_some(self) -> bool:
        try:
            count = os.write(self._fd, self._buffer if self._is_file else self._buffer[:_AT_ONCE])
        except BlockingIOError:  # somebody has made it so, and has just filled it
            self._watch()
            return False
        except OSError as error:
            self._lose(error)
            return True
        del self._buffer[:count]
        if self._lost and not self._buffer:
            lost, self._lost = self._lost, 0
            self._on_loss(None, lost)
        return True

    def _lose(self, error: OSError) -> None:
        first = not self._lost
        self._lost += max(1, self._buffer.count(b"\n"))
        self._buffer.clear()
        if first:
            self._on_loss(error, self._lost)

    def _is_ready(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            watcher.current().add(self._fd, lambda _: self._flush(), watcher.WRITABLE)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            watcher.current().remove(self._fd)


def _open(path: str) -> int:
    with descriptors.opening():
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o640)
        descriptors.own(fd)
        return fd


def _is_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
