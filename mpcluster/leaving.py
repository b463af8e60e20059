"""How a worker's program comes to its end from outside.

A worker that was asked to leave and has nothing more to do ends as if its program had
called ``sys.exit(0)``: the main thread is interrupted by ``SIGURG``, whose handler raises
SystemExit there. The signal's default is to be ignored, so no program loses anything if one
comes too many; a program that has a handler of its own for it keeps that. Where that does not call
on to the one before, the program is ended after a grace, and what its main thread does cannot be
known (:meth:`Program.probe`).
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TextIO

from mpcluster import interpreter, perprocess, watcher

__all__ = ["Program", "run"]


class Stage(enum.Enum):
    """Where the program of a worker stands."""

    BEFORE = "not begun"
    RUNNING = "running"
    ASKED = "running, and to be ended"
    OVER = "over, but for its threads and exit functions"


#: Under which names a process has what it knows of its program: where that stands, and what it
#: has ended with by itself.
_STAGE: Final = f"{__name__}.stage"
_EXITCODE: Final = f"{__name__}.exitcode"
#: Probes by a SIGURG that the program has taken for itself, until it is left alone with them.
TRIES: Final = 3

_RUNNING, _OVER = Stage.RUNNING, Stage.OVER  # for each child looks them up for the first time


def run(mine: dict[str, Any], stdin: TextIO | None, program: Callable[[], object]) -> None:
    """Run the program of this worker. Only in here may a SystemExit be raised from outside.

    Args:
        mine: What is this process's own.
        stdin: Its ``sys.stdin``; None leaves that as it is.
        program: The program.
    """
    if stdin is not None:
        sys.stdin = stdin
    try:
        mine[_STAGE] = _RUNNING
        program()
        mine[_STAGE] = _OVER
    except BaseException as error:
        mine[_STAGE] = _OVER
        drain = sys.modules.get("mpcluster.drain")  # else: nothing was drained
        if drain is None or not drain.ended_cleanly(error):
            mine[_EXITCODE] = _exitcode_of(error)
            raise


class Program:
    """How the program of this worker is reached. Made when somebody wants to.

    Args:
        main: The ident of its main thread.
        flush: Hands to the kernel what this process has sent; called at an abrupt end.
        urgent: Called in the watcher's thread when a SIGURG came that ends nothing.
        handler: Of SIGURG, which calls :meth:`on_sigurg`.
        grace: Seconds that the main thread gets to follow a SystemExit.
    """

    def __init__(
        self,
        main: int,
        flush: Callable[[], object],
        urgent: Callable[[], object],
        handler: Callable[..., object],
        grace: float,
    ) -> None:
        #: The ident of its main thread.
        self.main = main
        self._flush = flush
        self._urgent = urgent
        self._handler = handler
        self._calls_on: object = handler  # the handler by which a probe was reached last
        self._tries = 0  # by one that has not called on so far
        self._grace = grace
        self._ending = False
        self._probes: deque[Callable[[], object]] = deque()

    def end(self) -> None:
        """End it in its main thread, with exit code 0; at the latest after the grace."""
        self._ending = True
        watcher.current().call_later(self._grace, self._end_with_own_code)
        signal.pthread_kill(self.main, signal.SIGURG)

    def end_at_once(self, code: int = 0) -> None:
        """End the process, without the exit functions of its program. Does not return."""
        self._flush()
        try:
            interpreter.flush_what_can_be()
        finally:
            os._exit(code)

    def _end_with_own_code(self) -> None:
        self.end_at_once(perprocess.mine().get(_EXITCODE, 0))

    def probe(self, alive: Callable[[], object]) -> None:
        """Call ``alive()`` from the main thread, or from the event loop that runs in it.

        It comes beneath whatever the main thread does: it must not take a lock.

        Where the program has taken SIGURG for itself and does not call on, its main thread cannot
        be asked: ``alive()`` is called here, for what this thread can say, and that is logged.
        In the watcher's thread.
        """
        if interpreter.get_handler(signal.SIGURG) not in (self._handler, self._calls_on):
            alive()
            if self._tries == TRIES:
                return
            self._tries += 1
            if self._tries == TRIES:
                _warn_of_foreign_handler()
        self._probes.append(alive)
        signal.pthread_kill(self.main, signal.SIGURG)

    def on_sigurg(self) -> None:
        """The main thread is interrupted: end it, or what else that was for."""
        if self._probes:
            self._calls_on, self._tries = interpreter.get_handler(signal.SIGURG), 0
        while self._probes:
            _call_from_loop(self._probes.popleft())
        mine = perprocess.mine()
        stage = mine.get(_STAGE, Stage.BEFORE)
        if not self._ending:
            watcher.current().call_soon(self._urgent)
        elif stage is Stage.RUNNING:
            mine[_STAGE] = Stage.ASKED  # once: what cleans up is not interrupted again
            sys.exit(0)
        elif stage is not Stage.ASKED:
            self._end_with_own_code()


def _call_from_loop(call: Callable[[], object]) -> None:
    """In the main thread: call once its event loop gets to it, or now where there is none."""
    events = sys.modules.get("asyncio.events")
    loop = None if events is None else events._get_running_loop()  # noqa: SLF001
    if loop is None:
        call()
    else:
        loop.call_soon_threadsafe(call)


def _warn_of_foreign_handler() -> None:
    from mpcluster.logs import logger

    logger().warning(
        "the program of this worker (pid %d) has taken SIGURG for itself, by which the heartbeat "
        "asks its main thread: a main thread that hangs is not noticed any more. Let its handler, "
        "set in the worker, call the one that signal.signal() has returned",
        os.getpid(),
    )


def _exitcode_of(error: BaseException) -> int:
    """As ``multiprocessing`` makes it of what ended the program."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return error.code if isinstance(error.code, int) else 1
    return 1
