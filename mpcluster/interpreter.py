"""The names of CPython's own modules that are private and yet needed, all in one place.

Each is used by ``multiprocessing`` itself in the same way, in every version from 3.11 on,
and is there in the interpreter's own test suite. A version that moves one fails here.
"""

from __future__ import annotations

# The calls of `signal` without an enum made of each number: pthread_sigmask alone makes 64,
# which lie all over the memory that a child shares.
import _signal as bare_signal  # type: ignore[import-not-found]
import _thread
import atexit
import contextlib
import functools
import gc
import importlib
import io
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing import util
from types import FrameType
from typing import Any, Final

__all__ = [
    "RENEWING_EXIT_FUNCTIONS",
    "at_the_very_end",
    "bare_signal",
    "become_main_thread",
    "before_the_end",
    "count_exit_functions",
    "count_known_threads",
    "count_threads",
    "die_of_sigint",
    "empty_stdin",
    "end_threads",
    "environ",
    "environ_data",
    "find_main_state",
    "flush_open_files",
    "flush_std_streams",
    "flush_what_can_be",
    "forget_imports_of_other_threads",
    "get_handler",
    "hold_logging",
    "leave_event_loop",
    "leave_finalizers",
    "let_go_of_logging",
    "main_frame",
    "main_program_is_over",
    "needs_main_state",
    "open_std_streams",
    "renew_exit_functions",
    "renew_std_streams",
    "run_exit_functions",
    "set_handler",
    "take_signals",
]


# What each child calls is bound by name: a function of Python's that runs there for the first
# time, or a look-up in a module, writes to several pages, each of which the child has to copy.

#: In a child: forget what the parent had registered with ``atexit``, and register one's own.
RENEWING_EXIT_FUNCTIONS: Final[tuple[Callable[[], object], ...]] = (
    atexit._clear,
    functools.partial(atexit.register, util._exit_function),  # type: ignore[attr-defined]
)
#: Run what is registered with ``atexit``, which ``os._exit`` would pass over.
run_exit_functions: Final[Callable[[], object]] = atexit._run_exitfuncs
count_exit_functions: Final[Callable[[], int]] = atexit._ncallbacks
#: Flush ``sys.stdout`` and ``sys.stderr``, whatever they are; as at a process's end.
flush_std_streams: Final[Callable[[], object]] = util._flush_std_streams  # type: ignore[attr-defined]

set_handler: Final[Callable[[int, Any], Any]] = bare_signal.signal
get_handler: Final[Callable[[int], Any]] = bare_signal.getsignal

#: ``os.environ``, and what it keeps, by encoded names: beside ``os.putenv``, all of an assignment.
environ: Final = os.environ
environ_data: Final[dict[bytes, bytes]] = environ._data  # type: ignore[attr-defined]

_last_exit_functions: list[Callable[[], object]] = []


def at_the_very_end(call: Callable[[], object]) -> None:
    """Call ``call()`` at the exit, after what was registered since mpcluster was imported.

    The last to come is called first, as by ``atexit``.
    """
    _last_exit_functions.append(call)


def _run_last_exit_functions() -> None:
    while _last_exit_functions:
        _last_exit_functions.pop()()


# With the import of mpcluster, though who has something to call is loaded later.
atexit.register(_run_last_exit_functions)


def before_the_end(function: Callable[[], object]) -> None:
    """Call it when the main thread has nothing more to do, before its exit functions.

    As ``concurrent.futures`` does, to have what was submitted done. Not in a forked child.
    """
    threading._register_atexit(function)  # type: ignore[attr-defined]


def die_of_sigint() -> None:
    """End as Ctrl-C ends a program, so that a parent sees it, but without a traceback."""
    flush_std_streams()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def renew_exit_functions() -> None:
    """In a child: forget what the parent had registered with ``atexit``."""
    for step in RENEWING_EXIT_FUNCTIONS:
        step()


def leave_finalizers() -> None:
    """In a child, after :func:`renew_exit_functions`: finalizers run at exit, but its own only.

    Those of the parent's temporary directories and the like are the parent's to run.
    """
    finalize: Any = weakref.finalize
    for finalizer in list(finalize._registry):
        finalizer.atexit = False
    finalize._registered_with_atexit = True
    atexit.register(finalize._exitfunc)


def flush_what_can_be() -> None:
    """As :func:`flush_std_streams`, in a signal's handler; raises nothing.

    The handler may have come in the midst of a write to the very stream, which then refuses.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            stream.flush()


def end_threads() -> None:
    """Wait for the threads that are no daemons, as at a process's end."""
    threading._shutdown()  # type: ignore[attr-defined]


def flush_open_files() -> None:
    """Flush the files that were never closed, as an interpreter does at its end.

    Those that were opened before ``gc.freeze()`` are left alone: they are the parent's.
    """
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    for file in [thing for thing in gc.get_objects() if isinstance(thing, kinds)]:
        try:
            if not file.closed:
                file.flush()
        except (OSError, ValueError):
            pass  # its descriptor was closed behind its back, or nobody reads any more


def forget_imports_of_other_threads() -> None:
    """In a child: what other threads of the parent were importing, import anew.

    The lock of a module that is being imported belongs to a thread, and a fork leaves that
    thread behind: whoever imports the module in the child would wait for it for ever.
    """
    bootstrap: Any = importlib._bootstrap
    if not bootstrap._module_locks:
        return
    mine = threading.get_ident()
    for name, reference in list(bootstrap._module_locks.items()):
        lock = reference()
        if lock is None or lock.owner == mine:
            continue
        bootstrap._module_locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if lock.owner is not None and getattr(spec, "_initializing", False):
            del sys.modules[name]  # half of it is there


@functools.cache
def empty_stdin() -> io.TextIOWrapper:
    """Return what a child reads from as its ``sys.stdin``: one object, for all children.

    It stays open for good; all that a process forks inherits it.
    """
    return open(os.open(os.devnull, os.O_RDONLY), encoding="utf-8", closefd=False)


def become_main_thread() -> None:
    """In a child: the one thread that there is is the main thread, in every respect.

    A child that is forked in a callback goes on in what was the watcher's thread: a daemon,
    whose threads would be daemons too and die with it.
    """
    thread = threading.current_thread()
    if thread.name != "MainThread":
        thread.name = "MainThread"
        thread._daemonic = False  # type: ignore[attr-defined]


_NOTES_MAIN_STATE: bool = sys.version_info >= (3, 13)
_main_ident: Callable[[], int] = getattr(_thread, "_get_main_thread_ident", lambda: 0)


def needs_main_state() -> bool:
    """Has a fork in this thread to see to what :func:`find_main_state` tells of?"""
    return _NOTES_MAIN_STATE and _thread.get_ident() != _main_ident()


@functools.cache
def find_main_state() -> int | None:
    """Find where CPython 3.13 notes the state of its main thread; before a fork.

    It marks a signal there, and forgets at a fork in another thread that this one is the
    main thread from now on: in such a child, handlers run only when something else makes
    the interpreter look, never in a loop that computes.

    Returns:
        The address of ``_PyRuntime.main_tstate``; None where there is none.
    """
    if not _NOTES_MAIN_STATE:
        return None
    import ctypes  # loaded already: such a version forks by it

    api = ctypes.pythonapi
    first, following = api.PyInterpreterState_ThreadHead, api.PyThreadState_Next
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    for function in (first, following):
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_void_p]
    states = set()
    state = first(api.PyInterpreterState_Get())
    while state:
        states.add(state)
        state = following(state)
    # It stands in the first part of a structure of more than 100 kB, right behind the main
    # thread's ident.
    words = (ctypes.c_void_p * 1024).in_dll(api, "_PyRuntime")
    ident = threading.main_thread().ident
    for index in range(1, len(words)):
        if words[index - 1] == ident and words[index] in states:
            return ctypes.addressof(words) + index * ctypes.sizeof(ctypes.c_void_p)
    return None


def take_signals(main_state: int | None) -> None:
    """In a child: from now on signals interrupt the one thread that there is.

    Args:
        main_state: What :func:`find_main_state` found before the fork.
    """
    if main_state is not None:
        import ctypes

        ctypes.pythonapi.PyThreadState_Get.restype = ctypes.c_void_p
        own = ctypes.pythonapi.PyThreadState_Get()
        ctypes.c_void_p.from_address(main_state).value = own


def leave_event_loop() -> None:
    """In a child: signals are no business of the event loop that runs in the parent.

    asyncio puts a handler that does nothing in the place of the default. (It also lets the
    interpreter write each signal to a socket that parent and child share, as others do.)
    """
    events = sys.modules.get("asyncio.unix_events")
    if events is not None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is events._sighandler_noop:
                is_interrupt = number == signal.SIGINT
                signal.signal(
                    number, signal.default_int_handler if is_interrupt else signal.SIG_DFL
                )


def main_program_is_over() -> bool:
    """Has the main thread ended, but for its exit functions? 3.12 or later."""
    main: Any = threading._main_thread  # type: ignore[attr-defined]
    # As its `is_alive()`, which runs several functions of Python's.
    return bool(main._handle.is_done() if _HAS_HANDLES else main._is_stopped)


_HAS_HANDLES = sys.version_info >= (3, 13)


def count_known_threads() -> int:
    """As ``threading.active_count()``, without waiting for its lock."""
    return len(threading._active) + len(threading._limbo)  # type: ignore[attr-defined]


def count_threads() -> int:
    """How many threads Python code has started that have not ended, by `_thread` alone too."""
    return _thread._count()


def hold_logging() -> list[Any]:
    """Before a fork: wait until no thread is in the middle of writing to a log.

    The handlers' own locks are made anew in a child, but not the lock in the file that a
    handler writes to, which a thread holds meanwhile. A thread that takes longer than a
    second is not waited for.

    Returns:
        What :func:`let_go_of_logging` takes, in the parent.
    """
    logging: Any = sys.modules.get("logging")  # not imported for this question
    if logging is None or not hasattr(logging, "_handlerList"):  # or another thread imports it
        return []
    locks = [logging._lock]
    handlers = (reference() for reference in list(logging._handlerList))
    locks += [handler.lock for handler in handlers if handler is not None and handler.lock]
    deadline = time.monotonic() + 1.0
    return [lock for lock in locks if lock.acquire(timeout=max(0.0, deadline - time.monotonic()))]


def let_go_of_logging(held: list[Any]) -> None:
    """After the fork, in the parent."""
    for lock in reversed(held):
        lock.release()


def renew_std_streams() -> None:
    """In a child of a process with threads: write to stdout and stderr by new objects.

    The old ones have a lock inside, which a thread that was printing has taken along. What
    was in them was flushed before the fork.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if not isinstance(old, io.TextIOWrapper) or old.closed:
            continue
        if not isinstance(old.buffer, io.BufferedWriter):
            continue
        raw = io.FileIO(old.fileno(), "w", closefd=False)
        raw.name = old.name
        fresh = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding,
            errors=old.errors,
            newline="\n",
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
        _left_behind.append(old)  # its finalizer would wait for that lock
        setattr(sys, name, fresh)
        if getattr(sys, f"__{name}__") is old:
            setattr(sys, f"__{name}__", fresh)
        for reference in list(getattr(sys.modules.get("logging"), "_handlerList", ())):
            handler = reference()
            if getattr(handler, "stream", None) is old:
                handler.stream = fresh


def open_std_streams() -> None:
    """In a child whose descriptors 0 to 2 have been replaced: read and write through new objects.

    The old ones may be those of whoever captured the parent's output.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        _left_behind.append(getattr(sys, name))  # its finalizer would close the descriptor
        mode, buffering = ("r", -1) if fd == 0 else ("w", 1)
        errors = "backslashreplace" if fd == 2 else "strict"
        fresh = open(fd, mode, buffering, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)


_left_behind: list[object] = []


def main_frame() -> FrameType | None:
    """Return the frame in which the main thread is, if there is one."""
    ident = threading.main_thread().ident
    return None if ident is None else sys._current_frames().get(ident)
