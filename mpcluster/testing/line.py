"""The stream between execnet's two ends, and how a worker ended.

Both are what execnet calls an IO. The worker's end is a socket and no more. The
controller's end also knows the worker: it reads what the template has to tell of it, and
what it writes to its standard streams, all in execnet's receiver thread for this worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from execnet.gateway_base import ExecModel, Message

from mpcluster import descriptors
from mpcluster.testing import orders

__all__ = ["ControllerEnd", "WorkerEnd"]

#: Bytes of a worker's stderr that are kept for the report of its death.
TAIL: Final = 16384

#: Seconds that a worker may live without its end of the stream, before it is killed.
LOST_PATIENCE: Final = 1.0

_CHUNK: Final = 65536


class _Stream:
    """What both ends have in common: bytes in and out of one socket."""

    def __init__(self, stream: socket.socket, execmodel: ExecModel) -> None:
        self.execmodel = execmodel
        self._stream = stream
        self._buffer = bytearray()
        # One message at a time: the main thread and execnet's receiver thread both send.
        # Held while the message goes out, which the other side's receiver always takes. A
        # child that is forked meanwhile has no use for it: its copy of the socket is closed.
        self._writing = threading.Lock()

    def read(self, size: int, /) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            EOFError: The other side is gone.
        """
        while len(self._buffer) < size:
            data = self._receive()
            if not data:
                raise EOFError(f"expected {size} bytes, got {len(self._buffer)}")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _receive(self) -> bytes:
        try:
            return self._stream.recv(_CHUNK)
        except ConnectionResetError:
            return b""

    def write(self, data: bytes, /) -> None:
        """Write all of it.

        Raises:
            OSError: The other side is gone.
        """
        with self._writing:
            self._stream.sendall(data)

    def close_read(self) -> None:
        """Nothing is read any more."""
        self._shut(socket.SHUT_RD)

    def close_write(self) -> None:
        """Nothing is written any more: the other side comes to its end of file."""
        self._shut(socket.SHUT_WR)

    def _shut(self, how: int) -> None:
        try:
            self._stream.shutdown(how)
        except OSError:
            pass  # the other side was quicker


class WorkerEnd(_Stream):
    """In a worker."""

    def wait(self) -> int | None:
        """Nothing to wait for: execnet asks this of the controller's end only."""
        return None

    def kill(self) -> None:
        """Likewise."""


class ControllerEnd(_Stream):
    """In the controller, one for each worker.

    Args:
        name: The worker's id.
        stream: The controller's end of the stream.
        news: The controller's end of the news.
        outputs: What to do with what comes from the worker's stdout and stderr, by the
            descriptor that it is read from; called in execnet's receiver thread.

    Attributes:
        exitcode: As ``multiprocessing.Process.exitcode``, once the worker is gone.
        trouble: Why it was never forked.
        tail: The last bytes of its stderr.
        captured: Files that its output is captured in: those of stdout and stderr.
    """

    def __init__(
        self,
        name: str,
        execmodel: ExecModel,
        stream: socket.socket,
        news: socket.socket,
        outputs: dict[int, Callable[[bytes], None]],
    ) -> None:
        super().__init__(stream, execmodel)
        self.name = name
        self.exitcode: int | None = None
        self.trouble = ""
        self.tail = b""
        self.captured: tuple[int, ...] = ()
        self._news = news
        self._outputs = outputs
        self._pidfd: int | None = None
        self._told_all = False
        self._told_to_go = False
        self._poll = select.poll()
        for fd in (stream.fileno(), news.fileno(), *outputs):
            self._poll.register(fd, select.POLLIN)
        # Taken by execnet's receiver thread while it looks, and by the thread that waits for
        # the end of the worker when that one has gone: one of them reads at a time.
        self._looking = threading.RLock()
        self._pid_lock = threading.Lock()  # guards `_pidfd` against its closing; no I/O

    def __repr__(self) -> str:
        end = "running" if not self._told_all else f"exitcode={self.exitcode}"
        return f"<{type(self).__name__} {self.name} {end}>"

    @property
    def is_over(self) -> bool:
        """Is the worker gone, and everything read that it has left?"""
        return self._told_all

    def _receive(self) -> bytes:
        with self._looking:
            while True:
                ready = self._look(None)
                if self._stream.fileno() in ready:
                    data = super()._receive()
                    if not data:
                        self._see_it_out()
                    return data
                if self._told_all:
                    # Dead; but a child of it may still hold a copy of its end.
                    self._poll.unregister(self._stream)
                    return b""

    def _see_it_out(self) -> None:
        """The stream is at its end: let the report of that know how the worker ended."""
        self._poll.unregister(self._stream)
        # Told to go, it takes what time it needs for its end; execnet waits for that.
        if self._told_to_go or self._wait_until_over(LOST_PATIENCE):
            return
        self.kill()  # it has lost its stream, and cannot be part of the run any more
        self._wait_until_over(LOST_PATIENCE)

    def write(self, data: bytes, /) -> None:
        """Write all of it; from execnet's last message on, the worker may go.

        A worker that has died is no error here: the receiver tells of its end, and xdist then
        gives its tests to others. As an error it would end the whole run, where xdist was about
        to give more to the one while the death of another is dealt with.
        """
        # Before it is sent: the answer, the end of the stream, may come at once.
        if data[0] == Message.GATEWAY_TERMINATE:
            self._told_to_go = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().write(data)

    def _wait_until_over(self, patience: float | None) -> bool:
        deadline = None if patience is None else time.monotonic() + patience
        while not self._told_all:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._look(left)
            if left == 0.0:
                break
        return self._told_all

    def _look(self, patience: float | None) -> set[int]:
        """Wait for something; deal with all but the stream; return what was ready."""
        milliseconds = None if patience is None else patience * 1000
        ready = {fd for fd, _ in self._poll.poll(milliseconds)}
        for fd in ready & self._outputs.keys():
            self._read_output(fd)
        # News last: with the end of the worker, what it had written is read already.
        if self._news.fileno() in ready and ready <= {self._news.fileno(), self._stream.fileno()}:
            self._read_news()
        return ready

    def _read_output(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self._outputs[fd](data)
        else:
            self._poll.unregister(fd)
            del self._outputs[fd]
            os.close(fd)

    def _read_news(self) -> None:
        arrived = orders.receive_news(self._news)
        if arrived is None:
            self._over()  # the template is gone, too
            return
        message, fds = arrived
        match message:
            case orders.Begun():
                self._pidfd = fds[0]
            case orders.Captured():
                self.captured = tuple(fds)
            case orders.NotForked(error=error):
                self.trouble = error
                self._over()
            case orders.Ended(exitcode=exitcode):
                self.exitcode = exitcode
                self._over()

    def _over(self) -> None:
        self._told_all = True
        self._poll.unregister(self._news)
        for fd in list(self._outputs):  # what a child of it may still write is not waited for
            os.set_blocking(fd, False)
            self._drain(fd)
        with self._pid_lock:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    def _drain(self, fd: int) -> None:
        try:
            while fd in self._outputs:
                self._read_output(fd)
        except BlockingIOError:
            self._poll.unregister(fd)
            del self._outputs[fd]
            os.close(fd)

    def keep_tail(self, data: bytes) -> None:
        """Keep the end of what the worker writes to stderr."""
        self.tail = (self.tail + data)[-TAIL:]

    def signal(self, number: int) -> None:
        """Send a signal to the worker; nothing if it is gone."""
        with self._pid_lock:
            if self._pidfd is not None:
                try:
                    signal.pidfd_send_signal(self._pidfd, number)
                except ProcessLookupError:
                    pass

    def kill(self) -> None:
        """Kill it."""
        self.signal(signal.SIGKILL)

    def wait(self) -> int | None:
        """Wait for its end; return its exit code. After the receiver thread has ended."""
        with self._looking:
            self._wait_until_over(None)
        return self.exitcode

    def close(self) -> None:
        """Let go of everything. At the end of the run, when the template is gone."""
        self.kill()
        with self._looking:
            self._wait_until_over(LOST_PATIENCE)
            for fd in (*self.captured, *self._outputs):
                os.close(fd)
            self._outputs.clear()
            self.captured = ()
        for end in (self._stream, self._news):
            descriptors.close(end)
