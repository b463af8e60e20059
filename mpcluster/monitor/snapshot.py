"""One look at everything: a supervisor, its slots, its workers, their listeners.

Taken in the master, in any thread. What only the watcher's thread may touch is read there,
in one go; what the kernel says is read in the caller's. Nothing is asked of a worker, and
one that is stopped, or busy, is seen as well as any other.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Final, TypeVar

from mpcluster import listeners, registrar, watcher
from mpcluster.recruiting import require_master
from mpcluster.supervision import SlotState, SlotStatus, Supervisor, WorkerStatus

from . import connections
from .connections import Sockets
from .processes import Usage, age, usage
from .views import Listener, Master, Slot, Snapshot, Worker

__all__ = ["Listener", "Master", "Slot", "Snapshot", "Worker", "count_serving", "take"]

T = TypeVar("T")

#: Seconds that a look waits for the watcher, which may be in a callback of the program's.
PATIENCE: Final = 2.0


#: Connections of one worker that may be accepted and not counted yet: one a thread, for a moment.
UNDER_WAY: Final = 16


def take(
    supervisor: Supervisor, *, patience: float = PATIENCE, program: str | None = None
) -> Snapshot:
    """Look at a supervisor and its workers.

    What the kernel or a worker's program does not tell is None. Costs a millisecond or two a
    worker, more for those with much memory or many connections; and the kernel's walk over the
    machine's sockets.

    Args:
        supervisor: Of this process.
        patience: Seconds to wait for the watcher's thread.
        program: What it is to be called; the name of this process's script without it.

    Raises:
        TimeoutError: The watcher's thread has been in one callback all the while.
        NotMasterError: This is a worker, whose parent's workers are not its own.
    """
    require_master("snapshot.take()")
    kept = _ask(lambda: [(one.address, _listener(one)) for one in registrar.listeners()], patience)
    # Before what the workers have counted is read: none is open then that was not counted yet.
    sockets = connections.look(address for address, _ in kept)
    known = _ask(lambda: _Known(supervisor), patience)
    here = os.getpid()
    return Snapshot(
        known.time,
        known.clock,
        _master(here, sockets, program),
        known.under_way,
        known.failure,
        tuple(map(_slot, known.slots)),
        tuple(_worker(one, here, sockets) for one in known.workers),
        tuple(
            replace(one, waiting=sockets.waiting.get(address) if one.protocol == "tcp" else None)
            for address, one in kept
        ),
    )


def count_serving(supervisor: Supervisor, *, patience: float = PATIENCE) -> tuple[int, int]:
    """Return how many workers are ready and go on, and how many slots want one.

    Raises:
        TimeoutError: As :func:`take`.
    """

    def look() -> tuple[int, int]:
        closed = SlotState.CLOSED
        return (
            sum(worker.serves for worker in supervisor.workers()),
            sum(slot.state is not closed for slot in supervisor.status()),
        )

    return _ask(look, patience)


class _Known:
    """What the watcher's thread knows. Made in it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.time, self.clock = time.time(), time.monotonic()
        self.slots = supervisor.status()
        self.workers = supervisor.workers()
        self.under_way = supervisor.under_way()
        self.failure = supervisor.failure


def _ask(look: Callable[[], T], patience: float) -> T:
    """As :meth:`Watcher.ask`, for as long as that may take."""
    the_watcher = watcher.current()
    if the_watcher.in_thread():
        return look()
    answer: Future[T] = Future()

    def run() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(look())
            except BaseException as error:  # noqa: BLE001  # the caller's to raise
                answer.set_exception(error)

    the_watcher.call_soon(run)
    try:
        return answer.result(patience)
    except FutureTimeoutError:
        if answer.cancel() or not answer.done():
            raise TimeoutError(
                f"mpcluster's watcher has not answered for {patience:g} s: a callback of the "
                "program's (on 'message', 'death', …) has not returned for so long"
            ) from None
        return answer.result()


def _master(pid: int, sockets: Sockets, program: str | None) -> Master:
    return Master(
        pid,
        program or os.path.basename(sys.argv[0] if sys.argv else "") or "python",
        socket.gethostname(),
        age(pid),
        usage(pid),
        sockets.held_by(pid),
    )


def _listener(kept: listeners.Listener) -> Listener:
    family, kind, *_ = kept.key
    protocol = "udp" if kind == socket.SOCK_DGRAM else "tcp"
    if family == socket.AF_UNIX:
        protocol = "unix"
    users = sorted({route[0] for route in kept.users if route})
    return Listener(str(kept.address), protocol, kept.policy, tuple(users), None)


def _slot(status: SlotStatus) -> Slot:
    return Slot(
        status.slot,
        status.state.value,
        status.restarts,
        status.trouble,
        status.done.accepted,
        status.done.messages,
    )


def _worker(status: WorkerStatus, parent: int, sockets: Sockets) -> Worker:
    pid = status.pid
    held = None if pid is None else sockets.held_by(pid)
    accepted = status.done.accepted
    if accepted is not None and held and (not accepted or held > accepted + UNDER_WAY):
        accepted = None  # somebody accepts there who does not count: C code, with a listener
    return Worker(
        status.id,
        pid,
        status.slot,
        status.place,
        status.state.value,
        status.serves,
        status.uptime,
        status.ready_for,
        Usage() if pid is None else usage(pid, parent=parent),
        held,
        accepted,
        status.done.messages,
    )
