"""USR2: a new master in the place of the old one, on the same sockets.

The old one starts the same command anew, as a child that inherits the listeners and the monitor's
socket. What they say over a socket pair::

    new: ready      all its workers are; until now both masters' workers have served
    old: yours      it accepts and steers nothing more; its workers finish and leave

A new master that ends before it is ready changes nothing: the old one serves on. One whose
old master dies is in charge at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, MutableMapping
from typing import Final

from mpcluster import bequest, descriptors, registrar, watcher
from mpcluster.logs import logger

__all__ = ["Predecessor", "Successor", "predecessor"]

_VARIABLE: Final = "MPCLUSTER_PREDECESSOR"
_READY: Final = b"ready\n"
_YOURS: Final = b"yours\n"


class Successor:
    """The new master, as the old one sees it. In the watcher's thread.

    Args:
        environ: What it is to have in its environment, besides this process's.
        workers: How many it shall have; None: as its settings say.
        page: The number of the monitor's socket; -1 without one.
        on_ready: Called when all its workers are ready.
        on_end: Called if it has ended before that, with how.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self,
        environ: dict[str, str],
        workers: int | None,
        page: int,
        on_ready: Callable[[], object],
        on_end: Callable[[str], object],
    ) -> None:
        self._on_ready, self._on_end = on_ready, on_end
        with descriptors.opening():
            self._line, theirs = socket.socketpair()
            descriptors.own(self._line)
            descriptors.own(theirs)
        try:
            left = registrar.bequeath()
            down = [theirs.fileno(), *(fd for one in left for fd in one.fds)]
            if page >= 0:
                down.append(page)
            own = f"{os.getpid()} {theirs.fileno()} {workers or 0} {page}"
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, *sys.orig_argv[1:]],
                {**os.environ, **environ, **bequest.written(left), _VARIABLE: own},
                # Onto themselves: that is how they are not closed when the program begins.
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in down],
                setsigmask=[],
            )
            with descriptors.opening():
                self._pidfd = os.pidfd_open(self.pid)
                descriptors.own(self._pidfd)
        except OSError:
            descriptors.close(self._line)
            raise
        finally:
            descriptors.close(theirs)
        watcher.current().add(self._line.fileno(), lambda _: self._hear())
        watcher.current().add(self._pidfd, lambda _: self._ended())

    def kill(self) -> None:
        """End it."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def tell_it_is_in_charge(self) -> None:
        """It may go on alone."""
        try:
            self._line.send(_YOURS)
        except OSError:
            pass  # it has died just now; it has the sockets, or nobody has
        self._stop_hearing()

    def _hear(self) -> None:
        try:
            heard = self._line.recv(len(_READY))
        except OSError:
            heard = b""
        if heard == _READY:
            self._on_ready()
        else:
            self._stop_hearing()  # what comes next is its end

    def _stop_hearing(self) -> None:
        if self._line.fileno() >= 0:
            watcher.current().remove(self._line.fileno())
            descriptors.close(self._line)

    def _ended(self) -> None:
        self._stop_hearing()
        watcher.current().remove(self._pidfd)
        descriptors.close(self._pidfd)
        self._pidfd = -1
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            status = 0
        code = os.waitstatus_to_exitcode(status)
        self._on_end(f"exited with {code}" if code >= 0 else f"was killed by signal {-code}")


class Predecessor:
    """The old master, as the new one sees it. In the watcher's thread.

    Attributes:
        workers: How many it was told to have, if it was told so while it ran.
        page: The monitor's socket, on which it answers for as long as it is in charge.
    """

    def __init__(
        self, line: socket.socket, workers: int | None, page: socket.socket | None
    ) -> None:
        self._line = line
        self.workers = workers
        self.page = page
        self._on_gone: Callable[[], object] | None = None

    def await_charge(self, on_charge: Callable[[], object]) -> None:
        """Call ``on_charge()`` once when the old master has let go, or has died."""
        self._on_gone = on_charge
        watcher.current().add(self._line.fileno(), lambda _: self._hear())

    def tell_ready(self) -> None:
        """All workers are ready."""
        try:
            self._line.send(_READY)
        except OSError:
            pass  # it has died, which is heard

    def _hear(self) -> None:
        watcher.current().remove(self._line.fileno())
        descriptors.close(self._line)  # whatever it was: yours, or the end
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()


def predecessor(environ: MutableMapping[str, str] = os.environ) -> Predecessor | None:
    """The old master, where this one was started to take its place; the variable is removed."""
    words = environ.pop(_VARIABLE, "").split()
    if len(words) != 4 or words[0] != str(os.getppid()):
        return None
    _, line, workers, page = map(int, words)
    try:
        kept = _kept(line)
    except OSError:
        logger().warning("the old master has left no line to it")
        return None
    return Predecessor(kept, workers or None, _kept(page) if page >= 0 else None)


def _kept(number: int) -> socket.socket:
    """A socket that was handed down, for this master alone."""
    kept = socket.socket(fileno=number)
    with descriptors.opening():
        descriptors.own(kept)
        kept.set_inheritable(False)
    return kept
