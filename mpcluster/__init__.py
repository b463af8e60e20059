"""Node's ``cluster`` for Python, on ``multiprocessing``: one program, many processes, one port.

The layers, lowest first; each imports only what stands above it in this list::

    ground      errors, events, states, messages, address, configuration, descriptors
    transport   pickling, wire, memfd, channel    messages over a socketpair
    watching    watcher                           one thread, one epoll, a process
    sockets     listeners, registry, scheduling,  the root master's shared listeners,
                sharing, drain                    and how a worker comes by them
    processes   forking, leash, popen, family,    a worker, from both sides
                upstream, leaving, workerside, life, process, mainprogram, context
    cluster     ending, registrar, recruiting,      what a program calls
                supervision, cluster
"""

from __future__ import annotations

import os as _os
import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError(f"mpcluster runs on Linux (5.4 or later), and this is {_sys.platform}")

from collections.abc import Callable as _Callable
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from mpcluster import family as _family
from mpcluster import process as _process
from mpcluster import workerside as _workerside
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
from mpcluster.configuration import Settings
from mpcluster.context import get_context
from mpcluster.errors import (
    ChannelClosedError,
    ChannelFullError,
    ClusterError,
    EngineUnavailableError,
    NotMasterError,
    ReloadAbortedError,
    SerializationError,
    SupervisionError,
    TaskCancelledError,
    TaskTimeoutError,
    WorkerDiedError,
)
from mpcluster.process import ClusterProcess
from mpcluster.states import WorkerState
from mpcluster.workerside import Worker

__all__ = [
    "Address",
    "ChannelClosedError",
    "ChannelFullError",
    "ClusterError",
    "ClusterProcess",
    "EngineUnavailableError",
    "NotMasterError",
    "ReloadAbortedError",
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
    from mpcluster.supervision import Rules, SlotState, SlotStatus, Supervisor

    is_master: bool
    is_worker: bool
    worker: Worker | None
    workers: dict[int, ClusterProcess]
    settings: Settings

# A program that a worker executes inherits the variable, and is no worker.
_os.environ.pop(_process.WORKER_ID_VARIABLE, None)

# What differs from process to process is looked up at each use.
_LIVE: dict[str, _Callable[[], _Any]] = {
    "is_master": lambda: _workerside.current() is None,
    "is_worker": lambda: _workerside.current() is not None,
    "worker": _workerside.current,
    "workers": lambda: _family.current().workers,
    "settings": lambda: _family.current().settings,
}

# Imported at the first use: who does not use them is not to wait for them.
_LATER = dict.fromkeys(("Rules", "SlotState", "SlotStatus", "Supervisor"), "supervision")


def __getattr__(name: str) -> _Any:
    if name in _LIVE:
        return _LIVE[name]()
    if name in _LATER:
        return getattr(_import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
