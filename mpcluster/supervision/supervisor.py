"""``Supervisor``: keeps slots filled with workers.

The :class:`~.fleet.Fleet` decides; this one hears what happens, passes it on and does what
is ordered. Both are touched in the watcher's thread alone: what a program asks for from
another thread is handed over to it. Timers (backoff, readiness, limits, heartbeat) are the
watcher's, too, so a supervisor has no thread and no lock of its own. A forked child has no
use for its parent's supervisors: their timers and callbacks stay behind with the thread.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar, overload

from mpcluster import arguments, family, watcher
from mpcluster.errors import ReloadAbortedError, SupervisionError
from mpcluster.events import Callback, Emitter, call, report
from mpcluster.forking import EndingError
from mpcluster.logs import logger
from mpcluster.post import Post
from mpcluster.process import ClusterProcess
from mpcluster.tally import Tally

from .checkup import Checkup
from .fleet import Fleet
from .ledger import Ledger
from .orders import Fail, Finish, Kill, Later, Order, Retire, Roll, Start
from .rules import Rules
from .status import SlotStatus, WorkerStatus, slots_of, workers_of

__all__ = ["EVENTS", "SlotStatus", "Supervisor"]

C = TypeVar("C", bound=Callback)

EVENTS: Final = ("ready", "reload", "failed", "stopped")


class Supervisor:
    """Keeps a number of slots filled with workers. Made by :func:`mpcluster.supervise`.

    Args:
        make: Makes the process for a worker, not yet started.
        workers: How many slots.
        rules: What to keep to.
    """

    def __init__(self, make: Callable[[], ClusterProcess], workers: int, rules: Rules) -> None:
        self.rules = rules
        self._make = make
        self._fleet = Fleet(rules, workers)
        self._family = family.current()
        self._processes: dict[int, ClusterProcess] = {}
        self._ledger = Ledger()
        self._deadlines: dict[int, watcher.Timer] = {}  # of those who are not ready yet
        self._checkup = Checkup(rules, self._fleet, self._processes, self._do)
        self._reloads: dict[Roll, Future[None]] = {}
        self._emitter = Emitter(EVENTS)
        self._drain_timeout = rules.drain_timeout
        self._over = threading.Event()
        self._failure: str | None = None
        self._family.hold(self)
        self._tell(self._begin)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._fleet!r}>"

    # -- any thread --------------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why it has given up; None if it has not."""
        return self._failure

    def status(self) -> list[SlotStatus]:
        """Return every slot as it is now, by number."""
        return watcher.current().ask(lambda: slots_of(self._fleet, self._ledger, time.monotonic()))

    def workers(self) -> list[WorkerStatus]:
        """Return every living worker as it is now, those included that come or leave."""
        return watcher.current().ask(
            lambda: workers_of(self._fleet, self._processes, self._ledger, time.monotonic())
        )

    def under_way(self) -> str | None:
        """Return what is just done to the slots, ``"reload"`` for instance; None: nothing."""
        return watcher.current().ask(lambda: self._fleet.at_work)

    def scale(self, workers: int) -> None:
        """Have so many slots from now on; those with the highest numbers are drained.

        Args:
            workers: 0 or more.

        Raises:
            TypeError, ValueError: It is no such number.
        """
        arguments.check_count("workers", workers, least=0)
        self._tell(lambda: self._fleet.scale(workers))

    def reload(self) -> Future[None]:
        """Replace every worker, slot by slot: the new one is ready before the old one leaves.

        Asked for while a reload is under way, another one follows that.

        Returns:
            Done when every slot has a new worker, and no old one takes a new connection: each
            has said so, or has ended. They may still finish what they have. Its exception is a
            ReloadAbortedError if a replacement did not get ready: the slots that were left
            serve on as they are.
        """
        done: Future[None] = Future()

        def begin() -> list[Order]:
            if self._over.is_set() or self._failure is not None:
                done.set_exception(ReloadAbortedError("the supervisor has stopped"))
                return []
            roll, orders = self._fleet.reload()
            present = self._reloads.setdefault(roll, done)
            if present is not done:
                present.add_done_callback(lambda _: _copy(present, done))
            return orders

        self._tell(begin)
        return done

    def keep_all(self) -> None:
        """Replace nobody for its age or size until :meth:`replace_again`."""
        watcher.current().call_soon(self._checkup.end)

    def replace_again(self) -> None:
        """Look at age and size again."""
        watcher.current().call_soon(self._checkup.begin)

    def stop(self, timeout: float | None = None) -> None:
        """Drain every worker and start none any more. Returns at once; see :meth:`wait`.

        Args:
            timeout: Seconds that they have for it; ``drain_timeout`` where it is None.

        Raises:
            TypeError, ValueError: ``timeout`` is no number of seconds.
        """
        arguments.check_timeout(timeout)

        def close() -> list[Order]:
            if timeout is not None:
                self._drain_timeout = timeout
            return self._fleet.close()

        self._tell(close)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped and its last worker is gone.

        Args:
            timeout: Seconds; None waits for as long as it takes.

        Returns:
            False if that is not so at the end of ``timeout``.

        Raises:
            SupervisionError: It has given up: its workers do not stay alive.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._over.is_set():
            # In slices: a Ctrl-C that comes just before a wait in C is noticed after it.
            left = family.SLICE if deadline is None else deadline - time.monotonic()
            if not self._over.wait(min(family.SLICE, max(0.0, left))) and left <= 0:
                return False
        if self._failure is not None:
            raise SupervisionError(self._failure)
        return True

    @overload
    def on(self, event: str) -> Callable[[C], C]: ...
    @overload
    def on(self, event: str, callback: C) -> C: ...
    def on(self, event: str, callback: Callback | None = None) -> object:
        """Call ``callback`` on each ``event``, in the watcher's thread; without it, a decorator.

        ===========  ==========================  ===========================================
        event        arguments                   when
        ===========  ==========================  ===========================================
        ``ready``    worker                      a worker is ready
        ``reload``   the error, or None          a reload is over
        ``failed``   the reason                  it has given up
        ``stopped``                              its last worker is gone
        ===========  ==========================  ===========================================
        """
        if callback is None:
            return lambda function: self._emitter.add(event, function)
        return self._emitter.add(event, callback)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        self._emitter.discard(event, callback)

    def _tell(self, decide: Callable[[], list[Order]]) -> None:
        watcher.current().call_soon(lambda: self._do(decide()))

    # -- the watcher's thread: what happens ---------------------------------------------------

    def _begin(self) -> list[Order]:
        self._checkup.begin()
        return self._fleet.fill()

    def _heard(self, worker: ClusterProcess, event: str, *args: object) -> None:
        """A worker's event, or what it says to its supervisor."""
        if event == "message":  # of all that is heard the most, and nothing follows from it
            assert worker.id is not None
            self._ledger.message(worker.id)
            return
        try:
            self._do(self._decide(worker, event, *args))
        except Exception as error:  # noqa: BLE001  # ours to mend; the others are still watched
            report(f"the supervisor at {event!r} of {worker.name}", error, self)

    def _decide(self, worker: ClusterProcess, event: str, *args: Any) -> list[Order]:
        key = worker.id
        assert key is not None
        if event == "death":
            return self._died(worker, key)
        if self._is_ready_by(event):
            orders = self._fleet.got_ready(key, time.monotonic())
            timer = self._deadlines.pop(key, None)
            if timer is not None:
                timer.cancel()
                self._emit("ready", worker)
            return orders
        if event == "pong":
            self._checkup.answered(key)
        elif event == "parked":
            return self._fleet.parked(key)
        elif event == "spent":
            return self._checkup.spent(key, args[0])
        return []

    def _is_ready_by(self, event: str) -> bool:
        if event in {"online", "listening"}:
            return self.rules.ready == event or (event, self.rules.ready) == ("listening", "auto")
        return event == "ready" and self.rules.ready in {"explicit", "auto"}

    def _died(self, worker: ClusterProcess, key: int) -> list[Order]:
        self._processes.pop(key, None)
        self._checkup.forget(key)
        self._ledger.end(key)
        timer = self._deadlines.pop(key, None)
        if timer is not None:
            timer.cancel()
        member = self._fleet.members.get(key)
        ending = _ending(worker)
        if member is not None:
            level = logging.INFO if member.was_ended else logging.WARNING
            logger().log(level, "%s %s", member.name, ending)
        crashed = worker.exitcode != 0
        return self._fleet.died(key, ending, crashed=crashed, now=time.monotonic())

    # -- what is to be done -------------------------------------------------------------------

    def _do(self, orders: list[Order]) -> None:
        pending = list(orders)
        while pending:
            pending[:0] = self._carry_out(pending.pop(0))
        if self._fleet.is_over:
            self._end()

    def _carry_out(self, order: Order) -> list[Order]:
        match order:
            case Start(slot):
                return self._start(slot)
            case Retire(worker):
                self._process(worker.id).disconnect(self._drain_timeout)
            case Kill(worker, reason):
                logger().warning("worker %s (pid %s) %s", worker.id, worker.pid, reason)
                self._process(worker.id).disconnect(0)
            case Later(seconds, slot):
                logger().warning("slot %d is tried again in %.3g s", slot, seconds)
                watcher.current().call_later(seconds, lambda: self._do(self._fleet.due(slot)))
            case Finish(roll, failure):
                self._finish(roll, failure)
            case Fail(reason):
                logger().error("%s", reason)
                self._failure = reason
                self._emit("failed", reason)
                return self._fleet.close()
        return []

    def _process(self, key: int | None) -> ClusterProcess:
        assert key is not None
        return self._processes[key]

    def _start(self, slot: int) -> list[Order]:
        try:
            process = self._make()
            process.overseer = self._heard
            tally = Tally()
            process.post = Post(
                slot,
                self._checkup.differing(self.rules.max_tasks),
                has_pulse=self.rules.heartbeat is not None,
                tally=tally,
            )
            process.start()
        except EndingError:
            return self._fleet.close()
        except Exception as error:  # noqa: BLE001  # the system's no, or a bad argument of make()
            logger().warning("no worker could be forked for slot %d: %r", slot, error)
            return self._fleet.could_not_start(slot, f"could not be forked: {error}")
        assert process.id is not None
        key = process.id
        self._processes[key] = process
        self._checkup.add(key)
        self._ledger.begin(key, slot, tally)
        self._deadlines[key] = watcher.current().call_later(
            self.rules.ready_timeout, lambda: self._overdue(process, key)
        )
        return self._fleet.started(slot, process, time.monotonic())

    def _overdue(self, process: ClusterProcess, key: int) -> None:
        orders = self._fleet.ready_overdue(key)
        if not orders:
            logger().warning(
                "worker %d (pid %s) is not ready after %g s: it has neither listened nor called "
                "cluster.ready(). It goes on; a program that does neither wants ready='online'",
                key,
                process.pid,
                self.rules.ready_timeout,
            )
        self._do(orders)

    def _finish(self, roll: Roll, failure: str | None) -> None:
        if failure is not None:
            logger().warning("the %s is given up: %s", roll.reason, failure)
        future = self._reloads.pop(roll, None)
        if future is None:
            return
        error = (
            None
            if failure is None
            else ReloadAbortedError(
                f"the reload was given up, and the workers that were left serve on: {failure}"
            )
        )
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        self._emit("reload", error)

    def _end(self) -> None:
        if self._over.is_set():
            return
        self._checkup.end()
        self._emit("stopped")
        self._over.set()
        self._family.let_go(self)

    def _emit(self, event: str, *args: object) -> None:
        for callback in self._emitter.take(event):
            call(callback, *args, expected=(EndingError,))


def _ending(worker: ClusterProcess) -> str:
    sig = worker.exit_signal
    if sig is None:
        return f"exited with {worker.exitcode}"
    return f"was killed by {sig.name if isinstance(sig, signal.Signals) else sig}"


def _copy(source: Future[None], target: Future[None]) -> None:
    error = source.exception()
    if error is None:
        target.set_result(None)
    else:
        target.set_exception(error)
