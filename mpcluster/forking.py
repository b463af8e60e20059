"""The fork itself.

CPython 3.12 and later warn at each ``os.fork()`` of a process with more than one thread.
In a process with workers there is one more thread than the program has: the watcher. It
is made to be forked beside (whatever it does at that moment is thrown away in the child,
see :mod:`mpcluster.watcher`), and a death callback forks *in* it. So the fork is made by
the same three steps of CPython's C interface as ``os.fork`` makes it by, and the warning
is given where it is deserved: when the program itself has other threads.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import operator
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Final

from mpcluster import descriptors, interpreter, watcher

__all__ = ["EndingError", "fork"]

_EVERY_SIGNAL: Final = signal.valid_signals()

_WARNS: Final = sys.version_info >= (3, 12)


class EndingError(RuntimeError):
    """A child was to be forked while the process ends. A callback that meets it is silent."""


def fork(keep: tuple[int, ...] = ()) -> int:
    """Fork; return the child's pid in the parent and 0 in the child.

    Args:
        keep: Descriptors that the child shall have although they are the parent's own.

    Raises:
        OSError: The system has no room for one more process.
        EndingError: The main program is over and the interpreter shuts down (3.12+): a
            child of it could start no thread.
    """
    if _WARNS:
        if not threading.main_thread().is_alive():
            raise EndingError("cannot fork at interpreter shutdown: the main program is over")
        _warn_of_threads()  # before: where warnings are errors, there is no child then
        sys.audit("os.fork")
    # A signal to the child waits there until the interpreter has forgotten those of its
    # parent, and the handlers that are the master's alone are taken back: a SIGTERM that
    # came before would be forgotten with them, and who sent it would wait for ever.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
    held = interpreter.hold_logging()
    in_main_thread = threading.current_thread() is threading.main_thread()
    main_state = None if in_main_thread else interpreter.find_main_state()
    pid = -1
    try:
        with descriptors.keep(*keep):
            pid = _raw_fork()
        return pid
    finally:
        if pid:  # not in the child: there, logging has made its locks anew
            interpreter.let_go_of_logging(held)
        else:
            interpreter.take_signals(main_state)
            interpreter.leave_event_loop()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _load() -> Callable[[], int]:
    # PyDLL keeps the GIL for the call, as os.fork does: no other thread of this
    # interpreter is in the middle of a bytecode at the moment of the fork.
    library = ctypes.PyDLL(None)
    before, in_parent, in_child, system_fork = (
        library.PyOS_BeforeFork,
        library.PyOS_AfterFork_Parent,
        library.PyOS_AfterFork_Child,
        ctypes.PyDLL(None, use_errno=True).fork,  # the others leave this errno alone
    )
    for function in (before, in_parent, in_child):
        function.restype = None
        function.argtypes = []
    system_fork.restype = ctypes.c_int
    system_fork.argtypes = []

    def raw_fork() -> int:
        # No bytecode runs between the three steps: there a signal handler could, and a
        # Ctrl-C would leave the locks of the fork taken, or send the child on its way as a
        # second master. So `map` chains them: the pid that fork returns chooses the last.
        pids, choosing = itertools.tee(map(operator.call, (system_fork,)))
        after = map({0: in_child}.get, choosing, itertools.repeat(in_parent))
        steps = map(operator.call, itertools.chain((before,), after))
        collections.deque(steps, maxlen=0)
        pid: int = next(pids)
        if pid < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return pid

    return raw_fork


_raw_fork: Final = _load() if _WARNS else os.fork


def _warn_of_threads() -> None:
    if threading.active_count() <= 1 + watcher.current().is_running():
        return
    # Called in a callback, the fork leaves the main thread out: that one is the price of
    # death callbacks, not of the program's own threads.
    ours = {threading.current_thread(), threading.main_thread()}
    others = [
        thread
        for thread in threading.enumerate()
        if thread not in ours and thread.name != watcher.THREAD_NAME
    ]
    in_other_thread = not watcher.current().in_thread() and (
        threading.current_thread() is not threading.main_thread()
    )
    if others or in_other_thread:
        warnings.warn(
            # CPython's own words, for programs that filter by them.
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may lead to "
            "deadlocks in the child.",
            DeprecationWarning,
            stacklevel=2,
        )
