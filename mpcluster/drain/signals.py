"""The SIGTERM handler that a program has installed for itself."""

from __future__ import annotations

import signal
import threading

__all__ = ["note_inherited", "program_handles_sigterm", "send_sigterm"]

_inherited: object = None


def note_inherited() -> None:
    """In a new worker, before its program: what is there now is not the program's own."""
    global _inherited
    _inherited = signal.getsignal(signal.SIGTERM)


def program_handles_sigterm() -> bool:
    """Has the program installed a handler? Event loops' own count: they call one."""
    handler = signal.getsignal(signal.SIGTERM)
    return callable(handler) and handler is not _inherited


def send_sigterm() -> None:
    """Send it to the main thread, whatever that is blocked in."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGTERM)
