"""The SIGTERM handler that a program has installed for itself."""

from __future__ import annotations

import os
import signal
import threading
from _thread import get_ident  # the threads' own

__all__ = ["note_inherited", "note_main", "program_handles_sigterm", "send_sigterm"]

_inherited: object = None
#: The main thread of a forked child; `threading` may be gevent's by now, and name a greenlet.
_main: int | None = None


def note_inherited() -> None:
    """In a new worker, before its program: what is there now is not the program's own."""
    global _inherited
    _inherited = signal.getsignal(signal.SIGTERM)


def note_main(ident: int | None) -> None:
    """Learn the main thread of this process, where no fork has told."""
    global _main
    _main = _main or ident


def program_handles_sigterm() -> bool:
    """Has the program installed a handler? Event loops' own count: they call one."""
    handler = signal.getsignal(signal.SIGTERM)
    return callable(handler) and handler is not _inherited


def send_sigterm() -> None:
    """Send it to the main thread, whatever that is blocked in."""
    main = _main or threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGTERM)


def _after_fork_in_child() -> None:
    global _main
    _main = get_ident()


os.register_at_fork(after_in_child=_after_fork_in_child)
