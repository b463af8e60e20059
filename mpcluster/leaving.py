"""How a worker's program comes to its end from outside.

A worker that was asked to leave and has nothing more to do ends as if its program had
called ``sys.exit(0)``: the main thread is interrupted by ``SIGURG``, whose handler raises
SystemExit there. The signal's default is to be ignored, so no program loses anything if one
comes too many; a program that has a handler of its own for it keeps that.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from _thread import get_ident  # the threads' own: gevent's names greenlets
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Final

from mpcluster import interpreter, watcher

__all__ = ["Program"]


# As numbers, for each child installs a handler.
_SIGURG: Final = int(signal.SIGURG)
_DEFAULT: Final = int(signal.SIG_DFL)


class Stage(enum.Enum):
    """Where the program of a worker stands."""

    BEFORE = "not begun"
    RUNNING = "running"
    ASKED = "running, and to be ended"
    OVER = "over, but for its threads and exit functions"


class Program:
    """The program of this worker.

    Args:
        flush: Hands to the kernel what this process has sent; called at an abrupt end.
        urgent: Called in the watcher's thread when a SIGURG came that ends nothing.
        grace: Seconds that the main thread gets to follow a SystemExit.
    """

    def __init__(
        self, flush: Callable[[], object], urgent: Callable[[], object], grace: float
    ) -> None:
        self._flush = flush
        self._urgent = urgent
        self._grace = grace
        self._pid = os.getpid()
        #: The ident of its main thread: this is made in there.
        self.main = get_ident()
        self._stage = Stage.BEFORE
        self._ending = False
        self._exitcode = 0  # what it ends with by itself
        self._probes: deque[Callable[[], object]] = deque()

    def run(self, run: Callable[[], object]) -> None:
        """Run it. Only in here may a SystemExit be raised from outside."""
        try:
            self._stage = Stage.RUNNING
            run()
            self._stage = Stage.OVER
        except BaseException as error:
            self._stage = Stage.OVER
            drain = sys.modules.get("mpcluster.drain")  # else: nothing was drained
            if drain is None or not drain.ended_cleanly(error):
                self._exitcode = _exitcode_of(error)
                raise

    def end(self) -> None:
        """End it in its main thread, with exit code 0; at the latest after the grace."""
        self._ending = True
        watcher.current().call_later(self._grace, self._end_with_own_code)
        signal.pthread_kill(self.main, signal.SIGURG)

    def end_at_once(self, code: int = 0) -> None:
        """End the process, without the exit functions of its program. Does not return."""
        self._flush()
        try:
            interpreter.flush_std_streams()
        finally:
            os._exit(code)

    def _end_with_own_code(self) -> None:
        self.end_at_once(self._exitcode)

    def probe(self, alive: Callable[[], object]) -> None:
        """Call ``alive()`` from the main thread, or from the event loop that runs in it.

        It comes beneath whatever the main thread does: it must not take a lock.
        """
        self._probes.append(alive)
        signal.pthread_kill(self.main, signal.SIGURG)

    def handle_sigurg(self) -> None:
        """Let SIGURG reach this program, unless it has a use for it."""
        bare = interpreter.bare_signal
        present = bare.getsignal(_SIGURG)
        inherited = isinstance(getattr(present, "__self__", None), Program)
        if inherited or present in (_DEFAULT, None):
            # Not with `siginterrupt(SIGURG, False)`: the kernel would go on with a wait for
            # a lock as if nothing had come, and the main thread never run the handler.
            bare.signal(_SIGURG, self._on_sigurg)

    def _on_sigurg(self, _signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a child of this worker that is none itself
        while self._probes:
            _call_from_loop(self._probes.popleft())
        if not self._ending:
            watcher.current().call_soon(self._urgent)
        elif self._stage is Stage.RUNNING:
            self._stage = Stage.ASKED  # once: what cleans up is not interrupted again
            sys.exit(0)
        elif self._stage is not Stage.ASKED:
            self._end_with_own_code()


def _call_from_loop(call: Callable[[], object]) -> None:
    """In the main thread: call once its event loop gets to it, or now where there is none."""
    events = sys.modules.get("asyncio.events")
    loop = None if events is None else events._get_running_loop()  # noqa: SLF001
    if loop is None:
        call()
    else:
        loop.call_soon_threadsafe(call)


def _exitcode_of(error: BaseException) -> int:
    """As ``multiprocessing`` makes it of what ended the program."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return error.code if isinstance(error.code, int) else 1
    return 1
