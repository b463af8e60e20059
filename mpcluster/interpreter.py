"""The names of CPython's own modules that are private and yet needed, all in one place.

Each is used by ``multiprocessing`` itself in the same way, in every version from 3.11 on,
and is there in the interpreter's own test suite. A version that moves one fails here.
"""

from __future__ import annotations

import atexit
import sys
import threading
from multiprocessing import util
from types import FrameType

__all__ = ["flush_std_streams", "main_frame", "renew_exit_functions", "run_exit_functions"]


def flush_std_streams() -> None:
    """Flush ``sys.stdout`` and ``sys.stderr``, whatever they are; as at a process's end."""
    util._flush_std_streams()  # type: ignore[attr-defined]


def renew_exit_functions() -> None:
    """In a child: forget what the parent had registered with ``atexit``."""
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]


def run_exit_functions() -> None:
    """Run what is registered with ``atexit``, which ``os._exit`` would pass over."""
    atexit._run_exitfuncs()


def main_frame() -> FrameType | None:
    """Return the frame in which the main thread is, if there is one."""
    ident = threading.main_thread().ident
    return None if ident is None else sys._current_frames().get(ident)
