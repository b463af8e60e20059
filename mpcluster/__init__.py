"""Node's ``cluster`` for Python, on ``multiprocessing``: one program, many processes, one port.

The layers, lowest first; each imports only what stands above it in this list::

    ground      errors, events, states, messages, address, arguments,
                configuration, descriptors, logs, tally
    transport   greeting, pickling, wire, memfd,  messages over a socketpair
                line, sender, inbox, channel
    watching    watcher                           one thread, one epoll, a process
    sockets     listeners, registry, scheduling,  the root master's shared listeners,
                sharing, drain                    and how a worker comes by them
    processes   forking, leash, family, upstream, a worker, from both sides
                hearing, leaving, workerside, descent, popen, post, downstream,
                life, unheard, process, mainprogram, context
    cluster     ending, registrar, recruiting,    what a program calls
                supervision, cluster
    work        pool, joblib                      tasks, on workers
    faces       testing      pytest-xdist on forked workers (``pytest_mpcluster`` is its door)
                monitor      a page that shows a supervisor's workers
                cli          the command ``mpcluster``
"""

from __future__ import annotations

import importlib as _importlib
import os as _os
import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError(f"mpcluster runs on Linux (5.4 or later), and this is {_sys.platform}")

from collections.abc import Callable as _Callable
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from mpcluster import above as _above
from mpcluster import descent as _descent
from mpcluster import family as _family
from mpcluster import workerside as _workerside
from mpcluster.configuration import Settings
from mpcluster.context import get_context
from mpcluster.errors import (
    ChannelClosedError,
    ChannelFullError,
    ClusterError,
    EngineUnavailableError,
    NotMasterError,
    PoolClosedError,
    ReloadAbortedError,
    ResultTimeoutError,
    SerializationError,
    SupervisionError,
    TaskTimeoutError,
)
from mpcluster.process import ClusterProcess
from mpcluster.states import WorkerState
from mpcluster.workerside import Worker

if _TYPE_CHECKING:
    from mpcluster.address import Address
    from mpcluster.cluster import (
        broadcast,
        disconnect,
        fork,
        join,
        listen,
        off,
        on,
        once,
        ready,
        send,
        setup,
        supervise,
    )
    from mpcluster.errors import TaskCancelledError, WorkerDiedError

__all__ = [
    "Address",
    "ChannelClosedError",
    "ChannelFullError",
    "ClusterError",
    "ClusterExecutor",
    "ClusterPool",
    "ClusterProcess",
    "EngineUnavailableError",
    "NotMasterError",
    "PoolClosedError",
    "ReloadAbortedError",
    "ResultTimeoutError",
    "Rules",
    "SerializationError",
    "Settings",
    "SlotState",
    "SlotStatus",
    "SupervisionError",
    "Supervisor",
    "TaskCancelledError",
    "TaskTimeoutError",
    "Worker",
    "WorkerDiedError",
    "WorkerState",
    "broadcast",
    "disconnect",
    "fork",
    "get_context",
    "is_master",
    "is_worker",
    "join",
    "listen",
    "off",
    "on",
    "once",
    "ready",
    "send",
    "settings",
    "setup",
    "supervise",
    "worker",
    "workers",
]

if _TYPE_CHECKING:
    from mpcluster.pool.executor import ClusterExecutor
    from mpcluster.pool.pool import ClusterPool
    from mpcluster.supervision import Rules, SlotState, SlotStatus, Supervisor

    is_master: bool
    is_worker: bool
    worker: Worker | None
    workers: dict[int, ClusterProcess]
    settings: Settings

# A program that a worker executes inherits the variable, and is no worker.
_os.environ.pop(_descent.WORKER_ID_VARIABLE, None)

# What differs from process to process is looked up at each use.
_LIVE: dict[str, _Callable[[], _Any]] = {
    "is_master": lambda: _workerside.current() is None,
    "is_worker": lambda: _workerside.current() is not None,
    "worker": _workerside.current,
    # A copy: deaths are told in another thread, while the program goes through them here.
    "workers": lambda: _family.current().living(),
    "settings": lambda: _family.current().settings,
}

# Imported when first asked for: all that is imported costs every fork, of a program that only
# starts and joins processes too.
_LATE: dict[str, str] = {
    "Address": "mpcluster.address",
    "ClusterExecutor": "mpcluster.pool.executor",
    "ClusterPool": "mpcluster.pool.pool",
    "TaskCancelledError": "mpcluster.errors",
    "WorkerDiedError": "mpcluster.errors",
    **dict.fromkeys(
        (
            "broadcast",
            "disconnect",
            "fork",
            "join",
            "listen",
            "off",
            "on",
            "once",
            "ready",
            "send",
            "setup",
            "supervise",
        ),
        "mpcluster.cluster",
    ),
    **dict.fromkeys(("Rules", "SlotState", "SlotStatus", "Supervisor"), "mpcluster.supervision"),
}

_above.load = lambda: _importlib.import_module("mpcluster.cluster")


def __getattr__(name: str) -> _Any:
    if name in _LIVE:
        return _LIVE[name]()
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LIVE})
