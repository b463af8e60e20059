"""What goes wrong in a worker: the ways in which it ends, and the moments at which it does.

All of it runs in the workers. They inherit ``Board.current``, which is set before the pool is
made: memory that they share with the test, and by which the test knows what was begun, what was
done, and whether the accident has happened.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import resource
import select
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NamedTuple

#: How a worker, or a task in it, comes to grief.
WAYS = ("SIGKILL", "os._exit", "segfault", "sys.exit", "exception", "MemoryError")

#: Those that no ``except`` can stop, with the exit code that they leave.
DEADLY = {"SIGKILL": -signal.SIGKILL, "os._exit": 7, "segfault": -signal.SIGSEGV}

#: When it does, if it has a task.
STAGES = (
    "unpickling the task",
    "running",
    "pickling the result",
    "writing the result",
    "writing a large result",
)

EXIT_STATUS = 3

#: Seconds after which a worker is not awaited any more.
PATIENCE = 20.0


class Board:
    """What the workers of one pool have done, in memory shared with the test.

    A byte belongs to one task, so that no two processes write the same one at a time.
    """

    current: ClassVar[Board]

    def __init__(self, tasks: int, workers: int) -> None:
        self.tasks = tasks
        self.workers = workers
        self._bytes = mmap.mmap(-1, 2 * tasks + 2)
        self.heard, self.say = os.pipe()
        self._gate, self._open_gate = os.pipe()

    def begin(self, task: int) -> None:
        self._bytes[task] += 1

    def finish(self, task: int) -> None:
        self._bytes[self.tasks + task] += 1

    def begun(self) -> list[int]:
        """How often each task was begun."""
        return list(self._bytes[: self.tasks])

    def finished(self) -> list[int]:
        """How often each task was finished."""
        return list(self._bytes[self.tasks : 2 * self.tasks])

    @property
    def happened(self) -> int:
        """How often the accident was about to happen."""
        return self._bytes[2 * self.tasks]

    def happens(self) -> None:
        self._bytes[2 * self.tasks] += 1

    @property
    def way(self) -> str:
        return WAYS[self._bytes[2 * self.tasks + 1]]

    @way.setter
    def way(self, way: str) -> None:
        self._bytes[2 * self.tasks + 1] = WAYS.index(way)

    def meet(self) -> None:
        """In a worker: say that it is here, and wait for the gate to open."""
        os.write(self.say, b"h")
        os.read(self._gate, 1)

    def gather(self) -> None:
        """In the test: wait until as many workers as there should be are here, and let them go."""
        for _ in range(self.workers):
            assert self.hear() == b"h"
        os.write(self._open_gate, b"g" * self.workers)

    def hear(self) -> bytes:
        """Wait for the next word of a worker."""
        ready, _, _ = select.select([self.heard], [], [], PATIENCE)
        assert ready, "no worker has anything to say"
        return os.read(self.heard, 1)

    def close(self) -> None:
        self._bytes.close()
        for fd in (self.heard, self.say, self._gate, self._open_gate):
            os.close(fd)


def happen(way: str) -> None:
    """Let it happen, here and now."""
    Board.current.happens()
    if way == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "os._exit":
        os._exit(DEADLY[way])
    elif way == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # pytest's, which would tell of it
        ctypes.string_at(0)
    elif way == "sys.exit":
        sys.exit(EXIT_STATUS)
    elif way == "exception":
        raise ValueError("made up")
    elif way == "MemoryError":
        with MemoryLimit(64 << 20):
            bytearray(1 << 30)
    raise AssertionError(f"{way} did not happen")


class MemoryLimit:
    """Inside of it the process cannot have more than so many bytes more than it has."""

    def __init__(self, more: int) -> None:
        self._more = more
        self._before = resource.getrlimit(resource.RLIMIT_AS)

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * mmap.PAGESIZE + self._more
        resource.setrlimit(resource.RLIMIT_AS, (limit, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


class HappensWhenUnpickled:
    """Harmless where it is made; whoever loads its pickle comes to grief."""

    def __init__(self, way: str, times: int) -> None:
        self.way = way
        self.times = times

    def __reduce__(self) -> tuple[Any, ...]:
        return happen_so_often, (self.way, self.times)


def happen_so_often(way: str, times: int) -> None:
    if Board.current.happened < times:
        happen(way)


class HappensWhenPickled:
    """The worker that returns it comes to grief over its pickling."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __reduce__(self) -> tuple[Any, ...]:
        happen(self.way)
        raise AssertionError


class Accident(NamedTuple):
    """What happens, when in the life of a task, and how often at the most."""

    way: str
    stage: str
    size: int = 0
    times: int = 255


class Task(NamedTuple):
    """One task, perhaps with an accident in it."""

    number: int
    accident: Accident | None = None
    argument: HappensWhenUnpickled | None = None


def tasks(count: int, unlucky: int, accident: Accident) -> list[Task]:
    """So many tasks, one of them the unlucky one."""
    made = [Task(number) for number in range(count)]
    argument = (
        HappensWhenUnpickled(accident.way, accident.times)
        if accident.stage == "unpickling the task"
        else None
    )
    made[unlucky] = Task(unlucky, accident, argument)
    return made


def work(task: Task) -> Any:
    """Do the task; return its number, or what brings the accident about."""
    Board.current.begin(task.number)
    Board.current.finish(task.number)
    accident = task.accident
    if accident is not None and Board.current.happened < accident.times:
        if accident.stage == "running":
            happen(accident.way)
        if accident.stage == "pickling the result":
            return HappensWhenPickled(accident.way)
        if accident.stage == "writing the result":
            return big_result(accident.way, accident.size)
        if accident.stage == "writing a large result":
            return large_result(accident.way, accident.size)
    return task.number


def letters(size: int) -> bytes:
    """A result of that size."""
    return b"l" * size


def meet(_: object) -> int:
    """Come together with all other workers; return the process id."""
    Board.current.meet()
    return os.getpid()


# -- in the middle of writing a result ------------------------------------------------------

#: The system calls by which these write to a socket (sendto, sendmsg, write, writev), as ``/proc``
#: numbers them.
_WRITING = {"x86_64": {b"44", b"46", b"1", b"20"}, "aarch64": {b"206", b"211", b"64", b"66"}}
_SENDERS = frozenset({"send", "sendall", "sendmsg", "write", "writev"})
_RECEIVERS = frozenset({"recv", "recv_into", "recvmsg", "recvmsg_into", "read", "poll"})


def big_result(way: str, size: int) -> bytes:
    """A result of that size; while the worker writes it to a socket, it happens.

    Where the worker is done with it before it could happen, nothing does.
    """
    answer = _Answer(way)
    signal.signal(signal.SIGUSR1, lambda *_: happen(way))
    threading.Thread(target=answer.interrupt, daemon=True).start()
    sys.setprofile(answer.follow)
    return b"r" * size


class _Answer:
    """The writing of one answer by the main thread, and another thread that interrupts it."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._main = threading.get_ident()
        self._begun = threading.Event()
        self._is_writing = False
        self._is_over = False

    def follow(self, _frame: FrameType, event: str, function: Any) -> None:
        """What the main thread does, from the end of its task to its wait for the next one."""
        if event == "c_call":
            if function.__name__ in _SENDERS:
                self._is_writing = True
                self._begun.set()
            elif function.__name__ in _RECEIVERS:
                self._is_over = True
                self._begun.set()
                sys.setprofile(None)
        elif event in {"c_return", "c_exception"}:
            self._is_writing = False

    def interrupt(self) -> None:
        """Let it happen while the main thread is in a system call that writes."""
        self._begun.wait()
        status = os.open(
            f"/proc/self/task/{threading.main_thread().native_id}/syscall", os.O_RDONLY
        )
        while not self._is_over:
            call = os.pread(status, 100, 0).split()[0]
            # What the main thread is in now is what was looked at, unless it has run since;
            # it does not run again before this thread gives up the interpreter.
            if self._is_writing and call in _WRITING[os.uname().machine]:
                if self._way in DEADLY:
                    happen(self._way)
                signal.pthread_kill(self._main, signal.SIGUSR1)
                return


def large_result(way: str, size: int) -> bytes:
    """A result of that size; when the worker has written a piece of it to a file, it happens.

    For what goes through shared memory, before anybody was told of it.
    """
    result = b"r" * size
    if way == "MemoryError":  # there is no moment to wait for: half of a copy finds no room
        Board.current.happens()
        MemoryLimit(size // 2).__enter__()  # and stays: what comes later is small
        return result

    def trap(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_return" and function.__name__ in {"write", "writev", "pwrite", "pwritev"}:
            sys.setprofile(None)
            happen(way)

    sys.setprofile(trap)
    return result


# -- with no task at all --------------------------------------------------------------------


def be_ready_to_happen() -> None:
    """An initializer: at SIGUSR1 what stands on the board happens, and is told before."""
    signal.signal(signal.SIGUSR1, _tell_and_happen)


def _tell_and_happen(*_: object) -> None:
    os.write(Board.current.say, b"!")
    happen(Board.current.way)
