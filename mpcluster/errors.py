"""Everything that mpcluster raises on purpose, as one tree.

::

    ClusterError
    ├── NotMasterError           you called it wrong: only the master forks
    ├── ChannelClosedError       you, or the other side, closed it   (OSError)
    ├── ChannelFullError         the other side does not read        (BlockingIOError)
    ├── SerializationError       a message that cannot travel        (pickle.PicklingError)
    ├── WorkerDiedError          it broke: a worker is gone          (BrokenExecutor)
    ├── TaskTimeoutError         a task overran its limit            (TimeoutError)
    ├── TaskCancelledError       a task was taken back               (CancelledError)
    ├── SupervisionError         it broke: no worker stays alive
    │   └── ReloadAbortedError   a replacement did not get ready
    └── EngineUnavailableError   an optional part is not installed   (ImportError)

Each also derives from the built-in error that existing code already catches.
Every one survives pickling, so that it can be raised on the other side of a channel.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import signal as _signal
from typing import Any

__all__ = [
    "ChannelClosedError",
    "ChannelFullError",
    "ClusterError",
    "EngineUnavailableError",
    "NotMasterError",
    "ReloadAbortedError",
    "SerializationError",
    "SupervisionError",
    "TaskCancelledError",
    "TaskTimeoutError",
    "WorkerDiedError",
]


class ClusterError(Exception):
    """Base of every error that mpcluster raises."""


class NotMasterError(ClusterError):
    """A call that only the master may make was made in a worker."""


class ChannelClosedError(ClusterError, OSError):
    """The channel is closed, by this side or by the other."""


class ChannelFullError(ClusterError, BlockingIOError):
    """The other side has stopped reading, and ``channel_limit`` bytes wait for it.

    The message that met this error was not sent, not even in part; the channel lives on.
    """


class SerializationError(ClusterError, pickle.PicklingError):
    """A message could not be pickled, or could not be unpickled where it arrived."""


class WorkerDiedError(ClusterError, concurrent.futures.BrokenExecutor):
    """A worker ended while something still depended on it.

    Args:
        message: What was lost and what to do next.
        worker_id: The worker's number in its cluster.
        pid: Its process id.
        exitcode: As ``multiprocessing.Process.exitcode``: negative for a signal.
    """

    def __init__(
        self,
        message: str,
        *,
        worker_id: int | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
    ) -> None:
        super().__init__(message)
        self.worker_id = worker_id
        self.pid = pid
        self.exitcode = exitcode

    @property
    def signal(self) -> _signal.Signals | None:
        """The signal that ended the worker, or ``None`` where it exited by itself."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return _signal.Signals(-self.exitcode)
        except ValueError:  # a real-time signal has no name
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"worker_id": self.worker_id, "pid": self.pid, "exitcode": self.exitcode}
        return (type(self), self.args, state)


class TaskTimeoutError(ClusterError, TimeoutError):
    """A task ran longer than its ``task_timeout``."""


class TaskCancelledError(ClusterError, concurrent.futures.CancelledError):
    """A task was cancelled before it had a result."""


class SupervisionError(ClusterError):
    """A supervisor has given up: its workers end as soon as they begin."""


class ReloadAbortedError(SupervisionError):
    """A reload was given up; the workers that it had not replaced serve on."""


class EngineUnavailableError(ClusterError, ImportError):
    """An optional part is asked for that is not installed; the message names the extra."""
