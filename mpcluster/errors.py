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
    ├── ResultTimeoutError       a result is not there in time       (both TimeoutErrors)
    ├── PoolClosedError          you, or its end, closed the pool    (ValueError, RuntimeError)
    ├── SupervisionError         it broke: no worker stays alive
    │   └── ReloadAbortedError   a replacement did not get ready
    └── EngineUnavailableError   an optional part is not installed   (ImportError)

Each also derives from the built-in error that existing code already catches.
Every one survives pickling, so that it can be raised on the other side of a channel.
"""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcluster.taskerrors import TaskCancelledError, WorkerDiedError

__all__ = [
    "ChannelClosedError",
    "ChannelFullError",
    "ClusterError",
    "EngineUnavailableError",
    "NotMasterError",
    "PoolClosedError",
    "ReloadAbortedError",
    "ResultTimeoutError",
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


class TaskTimeoutError(ClusterError, TimeoutError):
    """A task ran longer than its ``task_timeout``."""


class SupervisionError(ClusterError):
    """A supervisor has given up: its workers end as soon as they begin."""


class ReloadAbortedError(SupervisionError):
    """A reload was given up; the workers that it had not replaced serve on."""


class EngineUnavailableError(ClusterError, ImportError):
    """An optional part is asked for that is not installed; the message names the extra."""


class ResultTimeoutError(ClusterError, multiprocessing.TimeoutError, TimeoutError):
    """A result was not there in time; the task goes on.

    Both ``multiprocessing.TimeoutError`` and the built-in one, which are not the same.
    """


class PoolClosedError(ClusterError, ValueError, RuntimeError):
    """A pool that is closed, ended or another process's was given work."""


def __getattr__(name: str) -> Any:
    # Their bases are `concurrent.futures`' own, which brings `logging` along: loaded when one
    # of them is first named. (By its name, for that module imports this one.)
    if name in ("TaskCancelledError", "WorkerDiedError"):
        return getattr(importlib.import_module("mpcluster.taskerrors"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
