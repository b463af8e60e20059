"""What a fork cannot take along, found before it is made.

A thread stays behind; an event loop, a connection or an open database is shared by all who
were forked after it was opened, and none of them knows of the others. Each is named in a
warning, with what to do.
"""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from mpcluster import descriptors, watcher
from pytest_mpcluster import ForkSafetyWarning

__all__ = ["find", "warn"]

_ADVICE: Final = "Make it in a fixture, or in the hook pytest_mpcluster_after_fork (docs/pytest.md)"

#: Libraries with threads of their own, by a part of their file's name; what is told of them.
#: None: known to let go of its threads at a fork, so nothing is told.
_LIBRARIES: Final = {
    "openblas": None,
    "libgomp": "OpenMP (libgomp)",
    "libiomp": "OpenMP (libiomp)",
    "libomp": "OpenMP (libomp)",
    "libmkl": "MKL",
    "libtbb": "TBB",
    "cygrpc": "gRPC",
    "libcuda": "CUDA",
    "libarrow": "Arrow",
    "polars": "Polars",
    "librdkafka": "librdkafka",
    "uvloop": "uvloop",
}


def warn(config: pytest.Config) -> None:
    """Give a warning for each thing that :func:`find` finds.

    Raises:
        pytest.UsageError: Warnings are errors in this run.
    """
    for finding in find():
        try:
            config.issue_config_time_warning(
                ForkSafetyWarning(f"before the workers were forked, {finding}. {_ADVICE}"), 2
            )
        except ForkSafetyWarning as error:
            raise pytest.UsageError(str(error)) from None


def find() -> list[str]:
    """Return what a fork of this process cannot take along, each as a part of a sentence."""
    loops = [
        thing
        for thing in _instances("asyncio.base_events", "BaseEventLoop")
        if not thing.is_closed()
    ]
    return [
        *_python_threads(),
        *_native_threads(),
        *(f"an event loop was open: {loop!r}" for loop in loops),
        *_open_files(loops_are_told=bool(loops)),
    ]


def _python_threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread is threading.current_thread() or thread.name == watcher.THREAD_NAME:
            continue
        yield f"the thread {thread.name!r}{_place(thread.ident)} was running, and no worker has it"
    known = {thread.ident for thread in threading.enumerate()}
    for ident in sys._current_frames().keys() - known:  # noqa: SLF001  # started by `_thread`
        place = _place(ident)
        # This pytest runs in a worker of another pytest-xdist, which receives in that thread.
        if not place.startswith(" (of execnet."):
            yield f"a thread{place} was running, and no worker has it"


def _place(ident: int | None) -> str:
    frame = sys._current_frames().get(ident or 0)  # noqa: SLF001
    outermost = ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != "threading":
            outermost = f" (of {name}, in {frame.f_code.co_name})"
        frame = frame.f_back
    return outermost


def _native_threads() -> Iterator[str]:
    # Python's own have a frame each; the numbers that they know of themselves, a fork changes.
    number = len(os.listdir("/proc/self/task")) - len(sys._current_frames())  # noqa: SLF001
    if number <= 0:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        files = {os.path.basename(line.rsplit("/", 1)[-1].strip()) for line in maps if "/" in line}
    loaded = {part for part in _LIBRARIES if any(part in file for file in files)}
    told = sorted(name for part in loaded if (name := _LIBRARIES[part]) is not None)
    if told:
        yield f"{number} threads were running outside Python, perhaps of {', '.join(told)}"
    elif not loaded:
        yield f"{number} threads were running outside Python, of a library unknown"


def _open_files(*, loops_are_told: bool) -> Iterator[str]:
    ours = descriptors.owned()
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd < 3 or fd in ours:
            continue
        try:
            # What was inherited from the shell is not close-on-exec, and not the program's.
            if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                continue
            target = os.readlink(f"/proc/self/fd/{name}")
            finding = _describe(fd, target, loops_are_told=loops_are_told)
        except OSError:
            continue  # closed meanwhile: it was this very listing
        if finding:
            yield finding


def _describe(fd: int, target: str, *, loops_are_told: bool) -> str:
    if target.startswith("socket:"):
        return _describe_socket(fd)
    if target == "anon_inode:[eventpoll]" and not loops_are_told:
        return f"an epoll (descriptor {fd}) was open: an event loop's, perhaps"
    if stat.S_ISREG(os.fstat(fd).st_mode) and _is_sqlite(fd):
        return f"the SQLite database {target} was open"
    return ""


def _describe_socket(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as copy:
        if copy.family == socket.AF_UNIX and not copy.getsockname():
            try:
                peer = copy.getpeername()
            except OSError:
                return ""
            if not peer:
                return ""  # a pair: its other end is in this program, or in a child of it
            return f"a connection to {_text(peer)} was open"
        try:
            return f"a connection to {_text(copy.getpeername())} was open"
        except OSError:
            return f"a socket at {_text(copy.getsockname())} was open"


def _text(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def _is_sqlite(fd: int) -> bool:
    try:
        return os.pread(fd, 16, 0) == b"SQLite format 3\0"
    except OSError:
        return False


def _instances(module: str, name: str) -> list[Any]:
    """Instances of a class, where its module was imported at all."""
    cls = getattr(sys.modules.get(module), name, None)
    if cls is None:
        return []
    return [thing for thing in gc.get_objects() if isinstance(thing, cls)]
