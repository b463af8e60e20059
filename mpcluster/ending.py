"""The end of a master that has forked workers.

A script that falls off its end lives on until its workers are gone, and death callbacks
go on forking until then. One that raises or exits takes its workers with it. Ctrl-C and
SIGTERM do so too, and then end the master by that very signal, so that a shell sees what
it expects. (A master that is killed needs none of this: see :mod:`mpcluster.leash`.)

The wait has to happen while the main module still runs: from 3.12 on, a process that has
begun to shut down can start no thread, and its children inherit that. So the return from
the main module's code is waited for by ``sys.monitoring``. 3.11 has neither; there the
wait is an exit function, and the last instruction of the module's frame tells a program
that fell off its end from one that raised or exited.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import sys
import threading
import time
from opcode import opmap
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from mpcluster import family, interpreter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpcluster.process import ClusterProcess

__all__ = ["end_workers", "prepare"]

logger = logging.getLogger("mpcluster")

_TOOL_NAME: Final = "mpcluster"


class _Ending:
    """How this process will end; one a master, made by its first ``fork()``."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.pid = os.getpid()
        self.release = release
        self.main_frame: FrameType | None = None  # 3.11 alone
        self.interrupted = False


_ending: _Ending | None = None


def prepare(release: Callable[[], None]) -> None:
    """See to it that this master ends well. Called by each ``fork()``; acts at the first.

    Args:
        release: Called at the very end, to give back what the process holds outside.
    """
    global _ending
    if _ending is not None and _ending.pid == os.getpid():
        return
    _ending = _Ending(release)
    atexit.register(_at_exit)
    frame = _main_frame()
    if frame is not None:
        if sys.version_info >= (3, 12):
            _await_return(frame.f_code)
        else:
            _ending.main_frame = frame
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _main_frame() -> FrameType | None:
    """Find the frame of the main module, if it is running (and not a console's line)."""
    if hasattr(sys, "ps1"):
        return None
    frame = interpreter.main_frame()
    main = sys.modules["__main__"].__dict__
    while frame is not None:
        if frame.f_globals is main and frame.f_code.co_name == "<module>":
            return frame
        frame = frame.f_back
    return None


if sys.version_info >= (3, 12):

    def _await_return(code: CodeType) -> None:
        monitoring = sys.monitoring
        for tool in (4, 3, 1, 0):  # 2 is the profilers', 5 the optimizers'
            if monitoring.get_tool(tool) is None:
                break
        else:
            logger.warning(
                "every sys.monitoring tool is taken: death callbacks cannot fork "
                "any more once the main program has ended"
            )
            return

        def returned(_code: CodeType, _offset: int, _value: object) -> None:
            monitoring.set_local_events(tool, code, 0)
            monitoring.free_tool_id(tool)
            _main_program_is_over()

        monitoring.use_tool_id(tool, _TOOL_NAME)
        monitoring.register_callback(tool, monitoring.events.PY_RETURN, returned)
        monitoring.set_local_events(tool, code, monitoring.events.PY_RETURN)


def _has_returned(frame: FrameType) -> bool:
    """Is the last that it did to return? (Else it raised, SystemExit maybe.)"""
    return frame.f_code.co_code[frame.f_lasti] == opmap["RETURN_VALUE"]


def _is_ours() -> bool:
    return _ending is not None and _ending.pid == os.getpid()


def _main_program_is_over() -> None:
    """The main module returns: stay until the last non-daemonic forked worker is gone."""
    if not _is_ours():
        return
    assert _ending is not None
    relatives = family.current()
    try:
        relatives.wait_told(lambda: not _living(relatives) and relatives.is_settled(), None)
    except KeyboardInterrupt as interrupt:
        _ending.interrupted = True
        end_workers()
        if sys.version_info >= (3, 12):
            # Ends the interpreter as a Ctrl-C in the program would; only the traceback,
            # which would show nothing but these lines, is left out.
            _hide(interrupt)
            raise


def _living(relatives: family.Family) -> list[ClusterProcess]:
    return [w for w in list(relatives.workers.values()) if w.is_forked and not w.daemon]


def _hide(hidden: BaseException) -> None:
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if error is not hidden:
            shown(kind, error, trace)

    sys.excepthook = hook


def _at_exit() -> None:
    if not _is_ours():
        return
    assert _ending is not None
    try:
        if _ending.main_frame is not None and _has_returned(_ending.main_frame):
            _main_program_is_over()
    except KeyboardInterrupt:  # just before the wait: raised from here it would end nothing
        _ending.interrupted = True
    end_workers()
    _ending.release()


def _die_of_interrupt() -> None:
    # 3.11 alone: an exit function cannot raise. It has to be the last of nearly all.
    if sys.version_info < (3, 12) and _is_ours():
        assert _ending is not None
        if _ending.interrupted:
            interpreter.die_of_sigint()


interpreter.at_the_very_end(_die_of_interrupt)


def _on_sigterm(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    if _is_ours():
        assert _ending is not None
        end_workers()
        _ending.release()
        interpreter.flush_what_can_be()
    os.kill(os.getpid(), signum)


def end_workers() -> None:
    """End all forked workers: SIGTERM, and SIGKILL after ``kill_timeout``.

    Ctrl-C meanwhile does not wait any longer. No callback runs any more.
    """
    relatives = family.current()
    relatives.silence()
    workers = [worker for worker in list(relatives.workers.values()) if worker.is_forked]
    try:
        for worker in workers:
            worker.kill(signal.SIGTERM)
        deadline = time.monotonic() + relatives.settings.kill_timeout
        left = _wait_for(workers, deadline)
    except KeyboardInterrupt:
        left = workers
    for worker in left:
        worker.kill()
    _wait_for(left, time.monotonic() + 1.0)


def _wait_for(workers: list[ClusterProcess], deadline: float) -> list[ClusterProcess]:
    """Wait for the ends; return those that live at the deadline (monotonic seconds)."""
    left = {worker.sentinel: worker for worker in workers if worker.is_alive()}
    poll = select.poll()
    for sentinel in left:
        poll.register(sentinel, select.POLLIN)
    while left:
        ready: list[Any] = poll.poll(min(max(0.0, deadline - time.monotonic()), 3600) * 1000)
        if not ready and time.monotonic() >= deadline:
            break
        for sentinel, _ in ready:
            poll.unregister(sentinel)
            left.pop(sentinel).is_alive()  # reaps
    return list(left.values())


def _after_fork_in_child() -> None:
    global _ending
    _ending = None
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_after_fork_in_child)
