"""The fork itself.

CPython 3.12 and later warn at each ``os.fork()`` of a process with more than one thread.
In a process with workers there is one more thread than the program has: the watcher. It
is made to be forked beside (whatever it does at that moment is thrown away in the child,
see :mod:`mpcluster.watcher`), and a death callback forks *in* it. So the fork is made by
the same three steps of CPython's C interface as ``os.fork`` makes it by, and the warning
is given where it is deserved: when the program itself has other threads.
"""

from __future__ import annotations

import functools
import operator
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from mpcluster import descriptors, interpreter, watcher

__all__ = ["EndingError", "allow_beside", "can_fork_sibling", "fork", "fork_sibling"]

_masked: Final[Callable[[int, Iterable[int]], set[int]]] = interpreter.bare_signal.pthread_sigmask
_EVERY_SIGNAL: Final = tuple(map(int, signal.valid_signals()))
_BLOCK, _SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)

_WARNS: Final = sys.version_info >= (3, 12)


#: Threads of ours, besides the watcher, that are made to be forked beside. A thread is put in by
#: who starts it, one entry in one step.
_beside: Final[weakref.WeakSet[threading.Thread]] = weakref.WeakSet()


class EndingError(RuntimeError):
    """A child was to be forked while the process ends. A callback that meets it is silent."""


def allow_beside(thread: threading.Thread) -> None:
    """No fork is warned of for the sake of this thread.

    It must hold no lock at any time that a child could want, and its descriptors must be owned
    (:mod:`mpcluster.descriptors`): in a child there is nothing of it but its memory.
    """
    _beside.add(thread)


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
        if interpreter.main_program_is_over():
            raise EndingError("cannot fork at interpreter shutdown: the main program is over")
        if interpreter.count_known_threads() > 1 + watcher.current().is_running():
            _warn_of_threads()  # before: where warnings are errors, there is no child then
        sys.audit("os.fork")
    return _fork(_raw_fork, keep)


def fork_sibling(keep: tuple[int, ...] = ()) -> int:
    """Fork a child of *this process's parent*; for a process with a single thread.

    Returns:
        The new process's pid here, and 0 in it.

    Raises:
        OSError: The system has no room for one more process.
        NotImplementedError: See :func:`can_fork_sibling`.
    """
    if not can_fork_sibling():
        raise NotImplementedError("no fork of siblings on this machine")
    return _fork(_load(_clone_sibling), keep)


def can_fork_sibling() -> bool:
    """Are the machine and its C library known well enough for :func:`fork_sibling`?"""
    return os.uname().machine in _CLONE and _tid_address() is not None


def _fork(raw_fork: Callable[[], int], keep: tuple[int, ...]) -> int:
    # A signal to the child waits there until the interpreter has forgotten those of its
    # parent, and the handlers that are the master's alone are taken back: a SIGTERM that
    # came before would be forgotten with them, and who sent it would wait for ever.
    mask = _masked(_BLOCK, ())  # only asks: the next one may raise what a handler raises
    held = main_state = None
    pid = -1
    try:
        _masked(_BLOCK, _EVERY_SIGNAL)
        # What is not needed is not called, here and below: it would be pages to copy.
        if "logging" in sys.modules:
            held = interpreter.hold_logging()
        if interpreter.needs_main_state():
            main_state = interpreter.find_main_state()
        pid = descriptors.call_keeping(raw_fork, keep)
        return pid  # the `finally` looks at it
    finally:
        if pid:  # not in the child: there, logging has made its locks anew
            if held:
                interpreter.let_go_of_logging(held)
        else:
            if main_state is not None:
                interpreter.take_signals(main_state)
            interpreter.bare_signal.set_wakeup_fd(-1)
            if "asyncio.unix_events" in sys.modules:
                interpreter.leave_event_loop()
        _masked(_SETMASK, mask)


_call: Final[Callable[[Any], object]] = operator.call


def _load(system_fork: Callable[[], int]) -> Callable[[], int]:
    import ctypes

    # PyDLL keeps the GIL for the call, as os.fork does: no other thread of this
    # interpreter is in the middle of a bytecode at the moment of the fork.
    library = ctypes.PyDLL(None)
    before, in_parent, in_child = (
        library.PyOS_BeforeFork,
        library.PyOS_AfterFork_Parent,
        library.PyOS_AfterFork_Child,
    )
    for function in (before, in_parent, in_child):
        function.restype = None
        function.argtypes = []

    def raw_fork() -> int:
        # No bytecode runs between the three steps: there a signal handler could, and a
        # Ctrl-C would leave the locks of the fork taken, or send the child on its way as a
        # second master. So `map` chains them: the pid that fork returns chooses the last,
        # and is noted with it. (Each type and each object made here is a page for the child to
        # copy: no others than these few.)
        made = {0: in_child}
        after = map(_call, map(made.setdefault, iter(system_fork, None), (in_parent,)))
        any(map(_call, (before, after.__next__)))
        pid: int = made.popitem()[0]
        if pid < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return pid

    return raw_fork


@functools.cache
def _libc() -> Any:
    """The C library, with an errno of its own, which the calls into the interpreter leave alone."""
    import ctypes

    library = ctypes.PyDLL(None, use_errno=True)
    library.fork.restype = ctypes.c_int
    library.fork.argtypes = []
    library.syscall.restype = ctypes.c_long
    library.pthread_self.restype = ctypes.c_void_p
    return library


_raw_fork: Final = _load(_libc().fork) if _WARNS else os.fork

#: By machine: the number of clone(2), and its arguments from flags and the address of the tid.
_CLONE: Final[dict[str, tuple[int, Callable[[int, int], tuple[int, ...]]]]] = {
    "x86_64": (56, lambda flags, tid: (flags, 0, 0, tid, 0)),
    "aarch64": (220, lambda flags, tid: (flags, 0, 0, 0, tid)),
}
_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000


def _clone_sibling() -> int:
    """As the C library's fork, for a process with one thread, but with CLONE_PARENT.

    The C library keeps the thread's number in memory; without the new one there, raise() and
    abort() in the child would signal a thread that it does not have. Its handlers of
    pthread_atfork are not run: whoever calls this has itself just been forked.
    """
    number, arguments = _CLONE[os.uname().machine]
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    address = _tid_address()
    assert address is not None
    import ctypes

    words = (ctypes.c_long(word) for word in (number, *arguments(flags, address)))
    return int(_libc().syscall(*words))


def _tid_address() -> int | None:
    """Where the C library keeps this thread's number, if that is found beyond doubt."""
    import ctypes

    beginning = int(_libc().pthread_self())
    words = (ctypes.c_int * 256).from_address(beginning)
    here = [index for index, word in enumerate(words) if word == threading.get_native_id()]
    return beginning + 4 * here[0] if len(here) == 1 else None


def _warn_of_threads() -> None:
    # Called in a callback, the fork leaves the main thread out: that one is the price of
    # death callbacks, not of the program's own threads.
    ours = {threading.current_thread(), threading.main_thread()}
    others = [
        thread
        for thread in threading.enumerate()
        if thread not in ours and thread not in _beside and thread.name != watcher.THREAD_NAME
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
