"""What the workers write and what the master has to say, in one form.

Each worker writes into two pipes of its own. The watcher reads them, so that every line can
say whose it is, and that the last words of one that ends are there to be shown.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mpcluster import descriptors, watcher

from .lines import Assembly, Form, Line
from .sink import Sink
from .worker import ProgramProcess

__all__ = ["Output"]

#: Lines of a worker's stderr that are kept, for the case that it ends.
LAST_WORDS: Final = 20
_STREAMS: Final = ("stdout", "stderr")
_AT_ONCE: Final = 64 * 1024


class _Stream:
    """One pipe of one worker, at the master's end."""

    def __init__(self, fd: int, name: str, make: Callable[[str, str], Line]) -> None:
        self.fd = fd
        self.name = name
        self.assembly = Assembly()
        self.make = make
        self.tail: deque[str] = deque(maxlen=LAST_WORDS)


class Output:
    """Everything that is written. In the watcher's thread, but for its end.

    Args:
        form: How a line is written.
        log: A file for all of it; None: the master's stdout and stderr.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, form: Form, log: str | None = None) -> None:
        self._form = form
        self._streams: dict[int, _Stream] = {}
        self._err = Sink(2, on_room=self._resume, on_loss=_ignore)
        if log is None:
            self._out = Sink(1, on_room=self._resume, on_loss=_ignore)
            self._log = self._err
        else:
            self._log = Sink(path=log, on_room=self._resume, on_loss=self._on_loss)
            self._out = self._log
        self._paused: set[int] = set()
        self._stderr_of: dict[int, _Stream] = {}  # by pid, of those that live
        #: Of the last worker that has ended without being asked to.
        self.last_words: list[str] = []
        self._handler = _Handler(self)

    # -- the master's own words ----------------------------------------------------------------

    def begin(self) -> None:
        """Take what mpcluster logs."""
        logger = logging.getLogger("mpcluster")
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def leave(self) -> None:
        """In a worker: log as any program does."""
        logger = logging.getLogger("mpcluster")
        logger.removeHandler(self._handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True

    def say(self, text: str, level: str = "info") -> None:
        """Write what the master says; several lines are several."""
        for line in text.splitlines():
            self._log.write(self._form(Line(time.time(), os.getpid(), line, level=level)))

    # -- the workers' --------------------------------------------------------------------------

    def attend(self, worker: ProgramProcess, read_ends: list[int]) -> None:
        """Read what a new worker writes."""
        slot = None if worker.post is None else worker.post.slot
        number, pid = worker.id, worker.pid or 0
        for fd, name in zip(read_ends, _STREAMS, strict=True):

            def make(text: str, name: str) -> Line:
                return Line(time.time(), pid, text, name, slot=slot or 0, worker=number)

            self._streams[fd] = stream = _Stream(fd, name, make)
            if name == "stderr":
                self._stderr_of[pid] = stream
            self._watch(fd)

    def died(self, pid: int | None, *, crashed: bool) -> None:
        """A worker is gone; read what it has left, for nobody else is to come before."""
        stream = self._stderr_of.pop(pid or 0, None)
        if stream is None:
            return
        while stream.fd in self._streams and _readable(stream.fd) and self._read(stream):
            pass
        if crashed:
            for line in stream.assembly.end():  # whoever still holds the pipe begins anew
                self._take(stream, line)
            self.last_words = list(stream.tail)

    def reopen(self) -> None:
        """Open the log file anew.

        Raises:
            OSError: That cannot be; the old one is used on.
        """
        self._log.reopen()

    def finish(self) -> None:
        """Write what is left. At the end, when no worker is."""
        for stream in list(self._streams.values()):
            while stream.fd in self._streams and _readable(stream.fd) and self._read(stream):
                pass
            self._close(stream)
        self.leave()
        for sink in {self._out, self._log, self._err}:
            sink.finish()

    # -- in between ----------------------------------------------------------------------------

    def _watch(self, fd: int) -> None:
        if self._out.is_full or self._log.is_full:
            self._paused.add(fd)
        else:
            watcher.current().add(fd, lambda _: self._on_readable(fd))

    def _on_readable(self, fd: int) -> None:
        stream = self._streams.get(fd)
        if stream is not None:
            self._read(stream)
        if self._out.is_full or self._log.is_full:
            for one in self._streams.keys() - self._paused:
                watcher.current().remove(one)
                self._paused.add(one)

    def _resume(self) -> None:
        if self._out.is_full or self._log.is_full:
            return
        paused, self._paused = self._paused, set()
        for fd in paused:
            self._watch(fd)

    def _read(self, stream: _Stream) -> bool:
        """Take in a piece; was there any?"""
        try:
            piece = os.read(stream.fd, _AT_ONCE)
        except OSError:
            piece = b""
        if not piece:
            self._close(stream)
            return False
        for line in stream.assembly.add(piece):
            self._take(stream, line)
        return True

    def _take(self, stream: _Stream, text: str) -> None:
        stream.tail.append(text)
        sink = self._log if stream.name == "stderr" else self._out
        sink.write(self._form(stream.make(text, stream.name)))

    def _close(self, stream: _Stream) -> None:
        if self._streams.pop(stream.fd, None) is not None:
            for line in stream.assembly.end():
                self._take(stream, line)
            self._paused.discard(stream.fd)
            watcher.current().remove(stream.fd)
            descriptors.close(stream.fd)

    def _on_loss(self, error: OSError | None, lost: int) -> None:
        where = self._log.path
        if error is not None:
            said = f"the log {where} cannot be written: {error.strerror}; lines are lost"
        else:
            said = f"the log {where} is written again; {lost} lines were lost"
            self._log.write(
                self._form(Line(time.time(), os.getpid(), f"{lost} lines were lost here"))
            )
        self._err.write(self._form(Line(time.time(), os.getpid(), said, level="warning")))


class _Handler(logging.Handler):
    """Brings what mpcluster logs, in whatever thread, to the watcher's.

    The lock that `logging` gives each handler is held for no longer than it takes to queue
    a call; in a forked child there is no such handler (:meth:`Output.leave`).
    """

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        text, level = self.format(record), record.levelname.lower()
        here = watcher.current()
        if here.in_thread():
            self._output.say(text, level)
        else:
            here.call_soon(lambda: self._output.say(text, level))


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _ignore(_error: OSError | None, _lost: int) -> None:
    """Nobody reads the master's stdout or stderr, so nobody can be told."""
