"""What a test leaves behind: processes, threads, descriptors, files in shared memory.

A test that forks and kills must leave the machine as it found it, or the next one fails
for its sake. :func:`snapshot` before and :func:`settle` after are all there is to it;
``conftest.py`` calls them around every test.

Processes are found in three ways, because a child whose parent is gone has no parent to be
found by: by their parents, up to this process; by a log to which every child that Python
forks adds its number (a hook that children of children inherit); and by a mark in the
environment that programs started as a subprocess inherit.
"""

from __future__ import annotations

import gc
import os
import secrets
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

#: The thread that mpcluster keeps for a moment when there is nothing to watch.
IDLE_THREADS = frozenset({"mpcluster-watcher"})

MARK = "MPCLUSTER_TEST_RUN"
_SHARED_MEMORY = Path("/dev/shm")
_own_mark = f"{os.getpid()}-{secrets.token_hex(4)}"
_forked_log: str | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A line of ``/proc/<pid>/stat``; number and start time together are never used twice."""

    pid: int
    started: int
    parent: int
    state: str

    @classmethod
    def read(cls, pid: int | str) -> Process | None:
        """Return what the kernel says of ``pid``, or ``None`` where it is gone."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = text[text.rindex(")") + 2 :].split()
        return cls(int(pid), started=int(fields[19]), parent=int(fields[1]), state=fields[0])

    @property
    def key(self) -> tuple[int, int]:
        """What tells this process from a later one with the same number."""
        return self.pid, self.started

    def __str__(self) -> str:
        if self.state == "Z":
            return f"process {self.pid}: a zombie, nobody has waited for it"
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            command = b""
        shown = command.replace(b"\0", b" ").decode(errors="replace").strip()[:200]
        parent = "this process" if self.parent == os.getpid() else f"process {self.parent}"
        return f"process {self.pid}, child of {parent}, state {self.state}: {shown}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was at one moment."""

    processes: frozenset[tuple[int, int]]
    threads: frozenset[threading.Thread]
    descriptors: dict[int, str]
    files: frozenset[str]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What there is now and was not before; false when that is nothing."""

    processes: tuple[Process, ...]
    threads: tuple[threading.Thread, ...]
    descriptors: dict[int, str]
    files: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.processes or self.threads or self.descriptors or self.files)

    def __str__(self) -> str:
        lines = [str(process) for process in self.processes]
        lines += [_where(thread) for thread in self.threads]
        lines += [f"descriptor {fd} -> {target}" for fd, target in self.descriptors.items()]
        lines += [f"file {_SHARED_MEMORY / name}" for name in self.files]
        return "\n".join(lines)


def install() -> None:
    """From now on this process's children can be found when their parents are gone."""
    global _forked_log, _own_mark
    if _forked_log is not None:
        return
    # Not the one made at import: test workers that were forked would have one and the same.
    _own_mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    fd, _forked_log = tempfile.mkstemp(prefix="mpcluster-tests-forked-")
    os.close(fd)
    os.environ[MARK] = f"{os.environ.get(MARK, '')}:{_own_mark}"
    os.register_at_fork(after_in_child=_log_fork)


def uninstall() -> None:
    """Remove the log; the hook then finds nothing to write to."""
    if _forked_log is not None:
        Path(_forked_log).unlink(missing_ok=True)


def snapshot() -> Snapshot:
    """Note what there is, as the measure for :func:`settle`."""
    if _forked_log is not None:
        try:  # whoever lives is in the snapshot from here on
            os.truncate(_forked_log, 0)
        except FileNotFoundError:  # uninstalled
            pass
    return Snapshot(
        processes=frozenset(process.key for process in family()),
        threads=frozenset(threading.enumerate()),
        descriptors=_descriptors(),
        files=_files(),
    )


def since(before: Snapshot) -> Leaks:
    """Compare now with ``before``."""
    now = _descriptors()
    # A thing of mpcluster's own may be closed and made anew under another number; an epoll
    # or an eventfd has no identity to be told by, so one that is gone makes up for one.
    gone = Counter(target for fd, target in before.descriptors.items() if now.get(fd) != target)
    descriptors = {}
    for fd, target in now.items():
        if before.descriptors.get(fd) == target:
            continue
        if target.startswith("anon_inode:") and gone[target] > 0:
            gone[target] -= 1
            continue
        descriptors[fd] = _describe(fd, target)
    return Leaks(
        processes=tuple(p for p in family() if p.key not in before.processes),
        threads=tuple(
            thread
            for thread in threading.enumerate()
            if thread not in before.threads and thread.name not in IDLE_THREADS
        ),
        descriptors=descriptors,
        files=tuple(sorted(_files() - before.files)),
    )


def settle(before: Snapshot, patience: float = 5.0) -> Leaks:
    """Return what is left since ``before``, after what is just ending has ended.

    Args:
        before: The state to come back to.
        patience: Seconds given to processes and threads that are about to end.
    """
    deadline = time.monotonic() + patience
    while leaks := since(before):
        gc.collect()  # a reference cycle is no leak, though it may hold a descriptor
        leaks = since(before)
        rest = deadline - time.monotonic()
        if not leaks or rest <= 0:
            break
        _wait_for_any(leaks, min(rest, 0.05))
    return leaks


def end(leaks: Leaks) -> None:
    """Kill what processes are left, so that the next test does not suffer from them."""
    for process in leaks.processes:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            if (now := Process.read(process.pid)) is None or now.key != process.key:
                continue
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
        if process.parent == os.getpid():
            try:
                os.waitpid(process.pid, 0)
            except ChildProcessError:  # its own Process object was quicker
                pass


def family() -> list[Process]:
    """Return every living or unreaped process that comes from this one, oldest first."""
    everyone = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := Process.read(name)) is not None:
            everyone[process.pid] = process
    me = everyone[os.getpid()]
    forked = _logged()
    found: dict[int, bool] = {me.pid: True}

    def belongs(pid: int) -> bool:
        if pid not in found:
            process = everyone.get(pid)
            if process is None or process.started < me.started:
                found[pid] = False
            else:
                found[pid] = belongs(process.parent) or pid in forked or _is_marked(pid)
        return found[pid]

    ours = [process for pid, process in everyone.items() if belongs(pid) and process is not me]
    # A zombie whose parent is gone is for init to reap, in its own time.
    ours = [process for process in ours if process.state != "Z" or belongs(process.parent)]
    return sorted(ours, key=lambda process: process.key)


def _log_fork() -> None:
    # Opened and closed again: a descriptor that is kept would be one more to be found.
    try:
        fd = os.open(str(_forked_log), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:  # the tests are over, or the child may open no more files
        return
    try:
        os.write(fd, b"%d\n" % os.getpid())
    finally:
        os.close(fd)


def _logged() -> frozenset[int]:
    if _forked_log is None:
        return frozenset()
    try:
        return frozenset(int(line) for line in Path(_forked_log).read_text().split())
    except FileNotFoundError:
        return frozenset()


def _is_marked(pid: int) -> bool:
    try:
        return _own_mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False


def _descriptors() -> dict[int, str]:
    table = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            table[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one by which the directory was read
            pass
    return table


def _describe(fd: int, target: str) -> str:
    if "pidfd" in target:
        try:
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("Pid:"):
                return f"{target} of process {line.split()[1]}"
    return target


def _files() -> frozenset[str]:
    """Names in ``/dev/shm`` that mpcluster or multiprocessing made.

    Run in parallel, the workers of pytest-xdist see each other's; only mpcluster's own,
    which have the number of a process in them, can then be told apart, by that process.
    """
    try:
        names = os.listdir(_SHARED_MEMORY)
    except FileNotFoundError:
        return frozenset()
    prefixes = (
        ("mpcluster",) if "PYTEST_XDIST_WORKER" in os.environ else ("mpcluster", "psm_", "sem.mp-")
    )
    return frozenset(name for name in names if name.startswith(prefixes))


def _where(thread: threading.Thread) -> str:
    kind = "daemon thread" if thread.daemon else "thread"
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"{kind} {thread.name!r}"
    code = frame.f_code
    return (
        f"{kind} {thread.name!r}, now in {code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
    )


def _wait_for_any(leaks: Leaks, seconds: float) -> None:
    """Return when one of the processes or threads has ended, at the latest after ``seconds``."""
    pidfds = []
    try:
        for process in leaks.processes:
            if process.state != "Z":
                try:
                    pidfds.append(os.pidfd_open(process.pid))
                except OSError:
                    pass
        if not pidfds and leaks.threads:
            leaks.threads[0].join(seconds)
        else:  # for a zombie or a descriptor there is no event: then this is the bound alone
            select.select(pidfds, [], [], seconds)
    finally:
        for fd in pidfds:
            os.close(fd)
