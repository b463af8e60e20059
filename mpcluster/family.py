"""The children of this process: who lives, and who hears what happens to them.

One :class:`Family` a process. A worker's own callbacks hear of an event first, then the
process's, which get the worker as first argument. What nobody has a callback for is kept
(:class:`mpcluster.events.KeptEvents`) for the first that subscribes. Everything is
delivered in the watcher's thread; a forked child begins with a family of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from mpcluster import above, perprocess, watcher
from mpcluster.configuration import Settings
from mpcluster.events import Callback, Emitter, KeptEvents, call, report, report_callback
from mpcluster.forking import EndingError
from mpcluster.logs import logger
from mpcluster.wire import Kind

if TYPE_CHECKING:
    from mpcluster.process import ClusterProcess
    from mpcluster.wire import Received

__all__ = ["CLUSTER_EVENTS", "WORKER_EVENTS", "Family", "current"]

WORKER_EVENTS: Final = ("fork", "online", "listening", "message", "disconnect", "death")
CLUSTER_EVENTS: Final = WORKER_EVENTS

#: Dead workers whose events are kept for a late subscriber. Each has a pidfd, so this must
#: be far below the usual limit of 1024 descriptors.
MOST_DEAD_KEPT: Final = 128


#: Seconds that the end of the master waits for forks that are under way.
FORK_PATIENCE: Final = 1.0


#: Seconds of one wait in C: a Ctrl-C that comes in the instant before it begins (which is
#: long, when another thread wants the interpreter) is noticed only when it ends.
SLICE: Final = 0.5


_EXPECTED: Final = (EndingError,)
_USER: Final = Kind.USER


class Holder(Protocol):
    """Who starts workers by itself: a supervisor."""

    def stop(self, timeout: float | None = None) -> None:
        """Start none any more, and have those that are there leave; returns at once."""


class Family:
    """This process's workers and the callbacks for all of them."""

    def __init__(self) -> None:
        self.workers: dict[int, ClusterProcess] = {}
        self.settings = Settings()
        self.emitter = Emitter(CLUSTER_EVENTS, self.subscribed)
        self.ids = itertools.count(1)
        self._kept = KeptEvents()
        self._dead_kept: deque[int | None] = deque()  # the dead of whom something is kept
        # Those that have lived and died with nobody to hear of it, by id, the last 128. Any thread
        # puts in and takes out, one entry in one step.
        self._unheard: dict[int, weakref.ref[ClusterProcess]] = {}
        self._was_heard = False  # somebody has subscribed, and has gone, maybe
        self._warned_of_loss = False
        self._silent = False
        # Guards what follows: the watcher takes it when a death has been told, any thread to
        # wait for that. Nothing of a user's is called under it.
        self._told = threading.Condition()
        self._awaited: list[tuple[frozenset[int], Callable[[], object]]] = []
        self._promised = 0  # new subscribers to whom nothing has been handed over yet
        self._forking: set[int] = set()  # the threads that fork a worker right now
        self._untold: set[int] = set()  # dead, `death` not yet delivered to the end
        self._held: set[Holder] = set()  # by supervisors that will fork again

    def __repr__(self) -> str:
        return f"<{type(self).__name__} living={sorted(self.workers)} {self._kept!r}>"

    # -- events ----------------------------------------------------------------------------

    def subscribed(self, _event: str, worker: ClusterProcess | None = None) -> None:
        """Somebody has a new callback, for one worker or for all: hand over what was kept."""
        self._was_heard = self._was_heard or worker is None
        key = None if worker is None else worker.id
        if worker is not None and key is None:
            return  # not started: nothing can have happened to it
        the_watcher = watcher.current()
        if the_watcher.is_running() or len(self._kept) or self._unheard:
            with self._told:
                self._promised += 1
            the_watcher.call_soon(lambda: self._keep_promise(key))

    def _keep_promise(self, key: int | None) -> None:
        try:
            for worker in list(self.workers.values()):
                if key is None or worker.id == key:
                    worker.attend()
            for unheard in list(self._unheard):
                if key is None or unheard == key:
                    self._tell_of_unheard(unheard)
            self._hand_over(key)
        finally:
            with self._told:
                self._promised -= 1
                self._told.notify_all()

    def _tell_of_unheard(self, key: int) -> None:
        reference = self._unheard.pop(key, None)
        worker = None if reference is None else reference()
        if worker is not None:
            worker.tell_of_past()

    def bury_unheard(self, worker: ClusterProcess) -> None:
        """Take out a dead worker of which nobody wanted to hear; somebody may yet. Any thread."""
        key = worker.id
        assert key is not None
        self.workers.pop(key, None)
        self._unheard[key] = weakref.ref(worker)
        while len(self._unheard) > MOST_DEAD_KEPT:
            self._unheard.pop(min(self._unheard), None)
        if worker.made_emitter is not None or self.hears_anything():
            # Its subscriber has come in just now, and looked for it here in vain.
            watcher.current().call_soon(lambda: self._tell_of_unheard(key))

    def rouse(self) -> None:
        """Let the watcher look after every worker, heard or not. Any thread."""
        for worker in list(self.workers.values()):
            worker.rouse()

    def living(self) -> dict[int, ClusterProcess]:
        """Those that live, by id. Any thread."""
        for worker in list(self.workers.values()):
            worker.look_after_unheard()
        return dict(self.workers)

    def emit(self, worker: ClusterProcess, event: str, *args: object, weight: int = 0) -> None:
        """Deliver an event of ``worker``, or keep it if nobody listens yet.

        Args:
            weight: Its size in bytes while it is kept.
        """
        if self._silent:
            return
        if worker.overseer is not None:
            worker.overseer(worker, event, *args)
        if not self._kept.entries and self._deliver(worker, event, args):
            return  # as nearly all
        key = worker.id
        if not self.hears(worker, event):
            kept = self._kept.keep(
                key, worker, event, args, weight=weight, weakly=not worker.is_forked
            )
            if event == "message" and not kept and not self._warned_of_loss:
                self._warned_of_loss = True
                logger().info("nobody has subscribed to 'message': the oldest are dropped")
            if event == "death":
                self._keep_of_the_dead(key)
            return
        self._hand_over_what_is_earlier(worker)
        self._deliver(worker, event, args)

    def tell_messages(self, worker: ClusterProcess, arrived: deque[Received]) -> None:
        """Deliver the users' messages that stand first in ``arrived``.

        This loop is what a message costs here. Whoever subscribes or leaves meanwhile counts
        from the next message on.
        """
        its, everybodys = worker.emitter, self.emitter
        first: tuple[Callback, ...] | None = None
        then: tuple[Callback, ...] | None = None
        its_version = everybodys_version = -1
        while arrived:
            received = arrived.popleft()
            kind, message, size, error = received
            if kind is not _USER or error is not None:
                arrived.appendleft(received)
                return
            while its.version != its_version or everybodys.version != everybodys_version:
                its_version, everybodys_version = its.version, everybodys.version
                first, then = its.lasting("message"), everybodys.lasting("message")
                self._hand_over_what_is_earlier(worker)
            if first is None or then is None or not (first or then) or self._silent:
                self.emit(worker, "message", message, weight=size)
                continue
            if worker.overseer is not None:
                worker.overseer(worker, "message", message)
            for callback in first:
                try:
                    callback(message)
                except EndingError:
                    pass
                except BaseException as raised:  # noqa: BLE001
                    report_callback(callback, raised)
            for callback in then:
                try:
                    callback(worker, message)
                except EndingError:
                    pass
                except BaseException as raised:  # noqa: BLE001
                    report_callback(callback, raised)

    def _deliver(self, worker: ClusterProcess, event: str, args: tuple[object, ...]) -> bool:
        """Call those who hear it; was there anybody?"""
        its_own, everybodys = _taken(worker, event), self.emitter.take(event)
        for callback in its_own:
            call(callback, *args, expected=_EXPECTED)
        for callback in everybodys:
            call(callback, worker, *args, expected=_EXPECTED)
        if not (its_own or everybodys):
            return False
        if event == "death":
            # Told to the end. But what it has said is its work, and nobody has heard it.
            self._kept.forget(worker.id, but="message")
            if self._kept.events(worker.id):
                self._keep_of_the_dead(worker.id)
        return True

    def _hand_over_what_is_earlier(self, worker: ClusterProcess) -> None:
        """Its subscriber may be as new as the event that comes next."""
        key = worker.id
        if any(self.hears(worker, earlier) for earlier in self._kept.events(key)):
            self._hand_over(key)

    def hears(self, worker: ClusterProcess, event: str) -> bool:
        """Has anybody a callback for this event of this worker? Any thread."""
        made = worker.made_emitter
        return (made is not None and made.has(event)) or self.emitter.has(event)

    def hears_anything(self) -> bool:
        """Has anybody a callback for every worker? Any thread."""
        return self._was_heard and any(map(self.emitter.has, CLUSTER_EVENTS))

    def _hand_over(self, key: int | None) -> None:
        """Deliver, in order, what is kept and has a callback by now."""
        for worker, event, args in self._kept.take(self.hears, key):
            self._deliver(worker, event, args)

    def _keep_of_the_dead(self, key: int | None) -> None:
        """Keep on what is kept of this one; the longest dead goes for it."""
        self._dead_kept.append(key)
        if len(self._dead_kept) > MOST_DEAD_KEPT:
            self._kept.forget(self._dead_kept.popleft())

    def forget(self, worker: ClusterProcess) -> None:
        """Keep nothing for a worker object that was closed. Any thread."""
        if worker.id is None:
            return
        key = worker.id
        self._unheard.pop(key, None)
        if len(self._kept):
            watcher.current().call_idly(lambda: self._kept.forget(key))

    # -- the end of the master ---------------------------------------------------------------

    def silence(self) -> None:
        """The process ends: deliver nothing more, and let no worker be forked any more.

        Returns when those that other threads were just forking are there to be ended.
        """
        with self._told:
            self._silent = True
            me = threading.get_ident()
            self._told.wait_for(lambda: not (self._forking - {me}), FORK_PATIENCE)

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Around the fork of a worker and its entry in `workers`.

        Raises:
            EndingError: The process ends.
        """
        me = threading.get_ident()
        with self._told:
            if self._silent:
                raise EndingError("this master is about to end and forks no worker any more")
            self._forking.add(me)
        try:
            yield
        finally:
            with self._told:
                self._forking.discard(me)
                self._told.notify_all()

    # -- supervisors -----------------------------------------------------------------------

    @property
    def holders(self) -> list[Holder]:
        """Those who will fork again."""
        with self._told:
            return list(self._held)

    def hold(self, holder: Holder) -> None:
        """Workers will be forked again by ``holder``: a wait for the last one goes on."""
        with self._told:
            self._held.add(holder)

    def let_go(self, holder: Holder) -> None:
        """That is over."""
        with self._told:
            self._held.discard(holder)
            self._told.notify_all()

    # -- deaths ----------------------------------------------------------------------------

    def bury(self, worker: ClusterProcess, *, crashed: bool) -> None:
        """Take a dead worker out and tell of its death. In the watcher's thread."""
        key = worker.id
        assert key is not None
        self._untold.add(key)
        self.workers.pop(key, None)
        try:
            try:
                above.current.gone(worker, crashed=crashed)
            except Exception as error:  # noqa: BLE001  # whatever it meets, the death is told
                report(f"at the end of {worker.name}", error, worker)
            self.emit(worker, "death")
        finally:
            with self._told:
                self._untold.discard(key)
                self._told.notify_all()
            self._call_due()

    def _call_due(self) -> None:
        with self._told:
            due = [callback for ids, callback in self._awaited if not self._remaining(ids)]
            self._awaited = [entry for entry in self._awaited if self._remaining(entry[0])]
        for callback in due:
            call(callback)

    def _remaining(self, ids: frozenset[int]) -> bool:
        return bool(ids & (self.workers.keys() | self._untold))

    def after_deaths(self, ids: Iterable[int], callback: Callable[[], object]) -> None:
        """Call ``callback()`` in the watcher's thread once all of ``ids`` are gone. Any thread."""
        self.rouse()
        with self._told:
            self._awaited.append((frozenset(ids), callback))
        watcher.current().call_soon(self._call_due)

    def wait_told(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until ``done()``, asked again after each death that was told of.

        Not for the watcher's thread, which would wait for itself.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.rouse()
            with self._told:
                left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
                if self._told.wait_for(done, left) or left < SLICE:
                    return done()

    def settle(self) -> None:
        """The watcher is through with one that is dead: who waits for it shall look."""
        with self._told:
            self._told.notify_all()

    def is_settled(self) -> bool:
        """Has every death been told of to the end, to late subscribers too?

        Not while a supervisor holds on: it will fork again.
        """
        return not self._untold and not self._promised and not self._held


def _taken(worker: ClusterProcess, event: str) -> tuple[Callable[..., object], ...]:
    return () if worker.made_emitter is None else worker.made_emitter.take(event)


def current() -> Family:
    """Return the family of this process."""
    # Made at the first use: most children never need one, and a fork should cost them little.
    found: Family | None = perprocess.mine().get(__name__)
    return found or perprocess.mine().setdefault(__name__, Family())
