"""The errors that are ``concurrent.futures``' too; :mod:`mpcluster.errors` shows them.

They stand apart because that package costs every fork something, and a program that only
starts and joins processes meets none of them.
"""

from __future__ import annotations

import concurrent.futures
import signal as _signal
from typing import Any

from mpcluster.errors import ClusterError

__all__ = ["TaskCancelledError", "WorkerDiedError"]


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


class TaskCancelledError(ClusterError, concurrent.futures.CancelledError):
    """A task was cancelled before it had a result."""


for _error in (WorkerDiedError, TaskCancelledError):
    _error.__module__ = ClusterError.__module__  # where a program finds and pickles them
