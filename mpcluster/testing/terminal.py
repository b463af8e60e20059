"""One worker at a time has the terminal: ``--pdb`` and ``breakpoint()`` in a worker.

The controller's standard streams are inherited by every worker. Whoever has the lock has
the terminal: a worker lays them over its own streams, and the controller, which asks for
the lock before each event that it takes in, keeps quiet meanwhile. The lock goes with the
process, so a worker that is killed in its debugger gives the terminal back.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from typing import Any

import pytest

from mpcluster import descriptors

__all__ = ["Borrower", "Quiet", "Terminal"]


class Terminal:
    """The controller's standard streams, and the lock on them.

    Made in the controller, inherited by all. Where nobody sits at the keyboard and no
    ``--pdb`` asks for it, nothing is lent.

    Args:
        wanted: ``--pdb`` or ``--trace`` was given.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.is_lent = wanted or os.isatty(0)
        self.streams: tuple[int, ...] = ()
        self._lock = -1
        self._lock_pid = 0
        self._kept: tuple[int, ...] = ()
        self._foreground: int | None = None
        if self.is_lent:
            with descriptors.opening():
                self._lock = os.memfd_create("mpcluster-terminal")
                self.streams = (*(os.dup(fd) for fd in (0, 1, 2)), self._lock)
                for fd in self.streams:
                    descriptors.own(fd)

    @property
    def is_held(self) -> bool:
        """Does this worker have the terminal?"""
        return bool(self._kept)

    # -- in a worker -------------------------------------------------------------------------

    def borrow(self) -> None:
        """Wait for the terminal, and take it; nothing if this worker has it."""
        if not self.is_lent:
            return
        if self._kept:
            self._lay_over()  # pytest has put its own stdin in place meanwhile
            return
        fcntl.flock(self._own_lock(), fcntl.LOCK_EX)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with descriptors.opening():
            self._kept = tuple(os.dup(fd) for fd in (0, 1, 2))
            for fd in self._kept:
                descriptors.own(fd)
        self._lay_over()
        self._come_to_foreground()

    def _lay_over(self) -> None:
        for lent, own in zip(self.streams[:3], (0, 1, 2), strict=True):
            os.dup2(lent, own)

    def give_back(self) -> None:
        """Let the others have it; nothing if this worker has it not."""
        if not self._kept:
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._leave_foreground()
        for kept, own in zip(self._kept, (0, 1, 2), strict=True):
            os.dup2(kept, own)
            descriptors.close(kept)
        self._kept = ()
        fcntl.flock(self._own_lock(), fcntl.LOCK_UN)

    def _come_to_foreground(self) -> None:
        """Let Ctrl-C come to this worker alone, as a shell does for a job."""
        if not os.isatty(0):
            return
        try:
            self._foreground = os.tcgetpgrp(0)
            os.setpgid(0, 0)
            _set_foreground(os.getpid())
        except OSError:
            self._foreground = None  # not the terminal of this session

    def _leave_foreground(self) -> None:
        if self._foreground is None:
            return
        try:
            _set_foreground(self._foreground)
            os.setpgid(0, self._foreground)
        except OSError:
            pass  # the controller is gone, and this worker will be
        self._foreground = None

    # -- in the controller -------------------------------------------------------------------

    def wait_until_free(self) -> float:
        """Wait while a worker has the terminal; return the seconds that it took."""
        if not self.is_lent:
            return 0.0
        waited = 0.0
        try:
            fcntl.flock(self._own_lock(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            began = time.monotonic()
            fcntl.flock(self._own_lock(), fcntl.LOCK_SH)
            waited = time.monotonic() - began
            if os.isatty(self.streams[0]):
                _take_back(self.streams[0])
        fcntl.flock(self._own_lock(), fcntl.LOCK_UN)
        return waited

    def _own_lock(self) -> int:
        # A lock belongs to an open file description, and those are shared by a fork.
        if self._lock_pid != os.getpid():
            with descriptors.opening():
                self._lock = os.open(f"/proc/self/fd/{self.streams[3]}", os.O_RDWR | os.O_CLOEXEC)
                descriptors.own(self._lock)
            self._lock_pid = os.getpid()
        return self._lock

    def close(self) -> None:
        """In the controller, when the run is over."""
        fds = (*self.streams, *([self._lock] if self._lock_pid == os.getpid() else []))
        for fd in fds:
            descriptors.close(fd)
        self.streams, self.is_lent = (), False


def _set_foreground(group: int) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(0, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _take_back(fd: int) -> None:
    """A worker that had the terminal and was killed could not give it back."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        if os.tcgetpgrp(fd) != os.getpgrp():
            os.tcsetpgrp(fd, os.getpgrp())
    except OSError:
        pass  # not the terminal of this session
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Borrower:
    """Plugin of a worker: has the terminal whenever pdb talks to its user."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self._terminal = terminal
        self._name = name
        self._test = "(no test)"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._test = nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_exception_interact(self, node: Any) -> None:
        """Before pytest shows the traceback that it will debug."""
        if node.config.option.usepdb:
            self._begin()

    @pytest.hookimpl(tryfirst=True)
    def pytest_enter_pdb(self) -> None:
        """A debugger is about to read from the keyboard."""
        self._begin()

    def _begin(self) -> None:
        is_new = not self._terminal.is_held
        self._terminal.borrow()
        if is_new and self._terminal.is_held:
            sys.stdout.write(f"\n>>> {self._name} has the terminal, in {self._test}\n")
            sys.stdout.flush()

    @pytest.hookimpl(trylast=True)
    def pytest_leave_pdb(self) -> None:
        """Its user has let the test go on."""
        self._terminal.give_back()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """A test is over, however its debugger was left."""
        self._terminal.give_back()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """The session is over: the debugger's user has said quit."""
        self._terminal.give_back()


class _ReportStream:
    """Where a worker's own terminal reporter writes: to nobody, or to who is debugging."""

    encoding = "utf-8"

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def write(self, text: str) -> int:
        """Write while this worker has the terminal."""
        if self._terminal.is_held:
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        if self._terminal.is_held:
            sys.stdout.flush()

    def isatty(self) -> bool:
        """No colours."""
        return False


class Quiet:
    """Two plugins of a worker whose tests write to the terminal (``-s``).

    pytest's terminal reporter takes ``sys.stdout`` as it is configured; in a worker, where
    the controller does the reporting, it shall have another one.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._stream = _ReportStream(terminal)
        self._real: Any = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Before everybody."""
        self._real, sys.stdout = sys.stdout, self._stream

    def restore(self) -> None:
        """After everybody."""
        sys.stdout = self._real

    def register(self, pluginmanager: pytest.PytestPluginManager) -> None:
        """Register both."""
        pluginmanager.register(self)
        pluginmanager.register(_Restorer(self))


class _Restorer:
    def __init__(self, quiet: Quiet) -> None:
        self._quiet = quiet

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        self._quiet.restore()
