"""Who runs what, on this machine.

::

    submit()    ┌───────┐  feed()   ┌─────────────────── a Link a worker ────────────────────┐
    any thread ─► queue ├──────────►│ socket:   orders, many in one write        ──► worker  │
                └───▲───┘           │ ring:     answers in shared memory         ◄── worker  │
                    │ what a dead   │ doorbell: "there are answers", one epoll   ◄── worker  │
                    │ or slow worker│ socket:   answers too large for the ring   ◄── worker  │
                    │ had not begun └───────────────────────┬────────────────────────────────┘
                    └───────────────────────────────────────┤ drive(): whoever has the turn
      finish(), fail()  ◄───────────────────────────────────┘
      wake the waiting; callbacks go to the attendant

*Sending.* The thread that submits sends to an idle worker itself, and else leaves the call in
the queue. Under `_lock` it is decided which calls go to which link; pickling and writing are
done after it, by one thread a link at a time (`filling`).

*Receiving.* One thread has the *turn*: it waits on the epoll, takes the answers in, and feeds
those workers that have room again. A thread that waits for a result takes the turn if nobody
has it, so that a single call is two system calls and no other thread; others sleep, and are
woken when their result is there or the turn is free. Where nobody waits and something is
under way, the *attendant* drives: a thread of the pool's own, which runs callbacks too.

*How much a worker has.* As many calls as are two milliseconds of work, by the measured run
time of the function; one, as long as that is unknown, or when they are longer. A guess may be
wrong: when a worker has not come on for a tick, what lies behind its present call is taken
back (:mod:`mpcluster.pool.ring` says how that can be sure) and goes to the next that has room.

*Death.* A worker's death comes from the watcher's thread. Its ring tells which call it had
begun and not answered. That one fails, or is begun again if it may be; what lay behind it
goes back to the front of the queue.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import threading
import time
import weakref
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from mpcluster import descriptors
from mpcluster.errors import TaskCancelledError
from mpcluster.pool import records
from mpcluster.pool.attendant import Attendant
from mpcluster.pool.engine import Awaited
from mpcluster.pool.failures import (
    anew,
    died,
    name_of,
    overran,
    remote_error,
    unreadable,
    unsendable,
)
from mpcluster.pool.functions import Function, Functions
from mpcluster.pool.imap import Feed
from mpcluster.pool.link import Link
from mpcluster.pool.results import Call, Doomed
from mpcluster.pool.sending import write

__all__ = ["Dispatcher"]

logger = logging.getLogger("mpcluster")

#: Seconds after which a worker with more than one call is looked at.
TICK: Final = 0.002
#: Seconds of one wait, at most: a Ctrl-C that comes in the instant before it begins is
#: noticed only when it ends.
SLICE: Final = 0.5

#: Calls that gather in the queue before the submitting thread sends them to a busy worker.
TOGETHER: Final = 64
#: Seconds that a thread that waits looks into the ring, before it sleeps: to be put to sleep
#: and woken again costs a call of a short function more than all the rest of it.
SPIN: Final = 30e-6
_MOST_SPINS: Final = 64
_CORES: Final = len(os.sched_getaffinity(0))
_DOORBELL: Final = select.EPOLLIN | select.EPOLLET
_GONE: Final = select.EPOLLHUP | select.EPOLLERR


class Dispatcher:
    """The local engine: a queue, the links to the workers, and the waiting for answers.

    Args:
        on_death: Called by the attendant for each dead worker, to replace it:
            ``on_death(link)``.
        on_unfit: Called by the attendant when an initializer has raised.
    """

    # `_lock` guards the queue's taking, who is idle, and each link's bookkeeping. Taken by
    # any thread, for some microseconds; no call of a user's, no pickling and no call to the
    # kernel is made under it. Re-entrant, for signal handlers and finalizers.
    #
    # `_turn` belongs to the thread that drives. Never waited for: who cannot have it sleeps
    # on what he waits for. It is held during an epoll_wait, and while answers are unpickled.
    #
    # A forked child has no use for any of it: `mpcluster.descriptors` has closed the
    # descriptors, and the pool refuses every call there.

    def __init__(
        self,
        *,
        on_death: Callable[[Link], object],
        on_unfit: Callable[[Link, BaseException], object],
    ) -> None:
        self.links: list[Link] = []
        self._on_death = on_death
        self._on_unfit = on_unfit
        self._functions = Functions()
        self._queue: deque[Any] = deque()
        self._lock = threading.RLock()
        self._idle: list[Link] = []  # the last is taken first: its caches are warm
        self._hungry: dict[Link, None] = {}  # busy, with room for more
        self._busy: set[Link] = set()
        self._deep: set[Link] = set()  # with more than one call
        self._timed: set[Link] = set()  # with a call that has a limit of time
        self._deaths: deque[Link] = deque()
        self._next_tick = 0.0
        self.has_timeouts = False
        self.is_ending = False  #: the workers are being ended; nobody need be told
        self._error: BaseException | None = None  # it is over, or broken
        self._turn = allocate_lock()
        self._driver = 0
        self.rounds = 0  # how often somebody has had the turn
        self._followers: deque[Awaited] = deque()
        self._on_quiet: Callable[[], object] | None = None
        with descriptors.opening():
            self._epoll = select.epoll()
            descriptors.own(self._epoll.fileno())
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            descriptors.own(self._bell)
        self._epoll.register(self._bell, _DOORBELL)
        self._actions: dict[int, Callable[[int], object]] = {}
        self._is_over = False
        self._spins = _MOST_SPINS if _CORES > 1 else -(1 << 62)
        self._attendant = Attendant(self)
        _all.add(self)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} queue={len(self._queue)} idle={len(self._idle)} "
            f"busy={len(self._busy)}>"
        )

    # -- workers ---------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many workers there are, at least 1."""
        return len(self.links) or 1

    def add(self, link: Link) -> None:
        """A new worker: it may be given work from now on."""
        link.on_backlog = lambda: self._watch_socket(link)
        self._actions[link.doorbell] = lambda _: self._collect(link)
        self._actions[link.socket.fileno()] = lambda events: self._on_socket(link, events)
        self._epoll.register(link.doorbell, _DOORBELL)
        self._epoll.register(link.socket.fileno(), link.events)
        with self._lock:
            self.links.append(link)
            link.is_idle = True
            self._idle.append(link)
        if self._queue:
            self.feed()
            self.attend()

    def note_death(self, link: Link) -> None:
        """A worker's process has ended. Any thread."""
        if not (self._is_over or self.is_ending):
            self._deaths.append(link)
            self.interrupt()
            self.attend()

    def retire(self, link: Link) -> None:
        """Give a worker no more work; it ends when it has done what it has."""
        with self._lock:
            if not link.usable:
                return
            link.usable = False
            self._forget(link)
            back = link.take_back()
            self._requeue(back)
        link.say_goodbye()
        if back:
            self.feed()

    def _forget(self, link: Link) -> None:
        if link.is_idle:
            self._idle.remove(link)
            link.is_idle = False
        self._hungry.pop(link, None)

    # -- submitting ------------------------------------------------------------------------

    def known(self, function: Callable[..., Any]) -> Function:
        """The entry of a function, for the calls of it."""
        return self._functions.of(function)

    def submit(self, call: Call) -> None:
        """Run a call. Any thread; returns at once."""
        queue = self._queue
        queue.append(call)
        # A busy worker is not sent one by one what can go together: who drives will.
        if self._idle or (self._hungry and len(queue) >= TOGETHER):
            self.feed()
        if self._error is not None:
            self._drop_all(self._error)

    def submit_all(self, calls: Iterable[Any]) -> None:
        """Run these, and see to it that somebody drives."""
        self._queue.extend(calls)
        if self._idle or self._hungry:
            self.feed()
        if self._error is not None:
            self._drop_all(self._error)
        self.attend()

    def is_hungry(self) -> bool:
        """Is there a worker that has nothing to do?"""
        return bool(self._idle)

    def feed(self) -> None:
        """Send to every worker that has room what there is for it. Any thread."""
        link: Link | None = None
        while True:
            with self._lock:
                if link is not None:
                    link.filling = False
                    self._settle(link)
                found = self._pick()
            if found is None:
                return
            link, calls = found
            try:
                write(link, calls, self._fail_unsent)
            except BaseException:  # Ctrl-C
                link.filling = False
                raise
            del calls, found

    def _pick(self) -> tuple[Link, list[Call]] | None:
        """Decide which calls go where. Under the lock."""
        while self._queue:
            if self._idle:
                link = self._idle.pop()
                link.is_idle = False
            elif self._hungry:
                link, _ = self._hungry.popitem()
            else:
                return None
            if link.filling or not link.usable:
                continue
            under_way = link.under_way
            calls = self._take(len(under_way), link.quota)
            if not calls:
                if not under_way:
                    link.is_idle = True
                    self._idle.append(link)
                    if self._queue and self._idle:
                        return None  # nothing in it may go now
                continue
            number = link.next_number
            for call in calls:
                call.link = link
                call.number = number
                under_way[number] = call
                number += 1
            link.next_number = number
            known = calls[-1].known_as
            link.depth = known.depth
            link.quickest = known.mean
            link.filling = True
            if link.quota is not None:
                link.quota -= len(calls)
            self._busy.add(link)
            if len(under_way) > 1:
                self._deep.add(link)
            if self.has_timeouts and any(c.options.timeout is not None for c in calls):
                self._timed.add(link)
            return link, calls
        return None

    def _take(self, have: int, quota: int | None) -> list[Call]:
        """The next calls for a worker that has so many. Under the lock."""
        queue = self._queue
        calls: list[Any] = []
        share = -(-len(queue) // (len(self.links) or 1))
        if quota is not None:
            share = min(share, quota)
        while queue and len(calls) < share:
            entry = queue[0]
            room = entry.known_as.depth - have - len(calls)
            if room <= 0 and (have or calls):
                break
            if type(entry) is Feed:
                room = max(1, room)
                if quota is not None:
                    room = min(room, quota - len(calls))
                got = entry.take(room)
                if len(got) < room:
                    queue.popleft()
                    if got or not queue:
                        self.interrupt()  # the end of it may be what a consumer waits for
                elif len(queue) > 1:
                    queue.rotate(-1)  # its turn comes again after the others
                calls += got
                if got:
                    break
            else:
                queue.popleft()
                if not entry.is_over():
                    calls.append(entry)
        return calls

    def _requeue(self, calls: list[Call]) -> None:
        """Put back at the front, in their order. Under the lock."""
        self._queue.extendleft(reversed(calls))

    # -- sending -----------------------------------------------------------------------------

    def _fail_unsent(self, link: Link, call: Call, error: BaseException) -> None:
        if link.under_way.pop(call.number, None) is not None:
            call.fail(unsendable(error))
            self.interrupt()

    # -- receiving -----------------------------------------------------------------------------

    def wait(self, awaited: Awaited, deadline: float | None) -> None:
        """Wait until it is ready, or until ``deadline`` (monotonic seconds); drive meanwhile."""
        ready, turn = awaited.ready, self._turn
        while not ready() and not self._is_over:
            if turn.acquire(blocking=False):
                self._drive(ready, deadline)
            else:
                self._follow(awaited, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                return

    def _follow(self, awaited: Awaited, deadline: float | None) -> None:
        """Somebody else drives: sleep until it is ready, or he has left."""
        lock = awaited.enlist()
        self._followers.append(awaited)
        try:
            if self._attendant.is_driving:
                os.eventfd_write(self._bell, 1)  # it leaves the turn to who waits
            # Looked at once more after that, as he looks for followers after he has left.
            if not self._turn.locked() or awaited.ready():
                return
            seconds = SLICE
            if deadline is not None:
                seconds = max(0.0, min(SLICE, deadline - time.monotonic()))
            lock.acquire(timeout=seconds)
        finally:
            awaited.delist(lock)
            try:
                self._followers.remove(awaited)
            except ValueError:
                pass

    def _drive(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """With the turn: take in answers until it is ready; then pass the turn on."""
        self.rounds += 1
        self._driver = get_ident()
        try:
            while not ready() and not self._is_over:
                if self._deaths:
                    self._bury_all()
                    continue
                timeout = SLICE
                if deadline is not None:
                    timeout = max(0.0, min(SLICE, deadline - time.monotonic()))
                if self._deep or self._timed:
                    timeout = min(timeout, self._look_after())
                elif self._spins > 0 and len(self._busy) == 1 and self._spin():
                    continue
                events = self._epoll.poll(timeout)
                if self._spins < 0:
                    self._spins += 1
                    if not self._spins:
                        self._spins = 8
                for fd, event in events:
                    action = self._actions.get(fd)
                    if action is not None:
                        action(event)
                if self._queue and (self._idle or self._hungry):
                    self.feed()
                if not events and deadline is not None and time.monotonic() >= deadline:
                    return
        finally:
            self._driver = 0
            self._turn.release()
            self._pass_on()

    def _spin(self) -> bool:
        """Look into the one busy worker's ring for an instant; did an answer come?

        Where that fails too often (other work on this machine), it is left out for a while.
        """
        try:
            (link,) = self._busy
        except ValueError:  # another thread has just sent something
            return False
        if link.quickest > SPIN:
            return False
        if link.ring.wait(link.quickest + SPIN):
            self._spins = min(_MOST_SPINS, self._spins + 1)
            self._collect(link)
            return True
        self._spins -= 4
        if self._spins <= 0:
            self._spins = -_MOST_SPINS
        return False

    def _pass_on(self) -> None:
        """The turn is free: the next that waits may have it, or the attendant."""
        for follower in self._followers.copy():
            follower.poke()
            break
        if self._is_over:
            self._close()
        elif self._queue or self._busy or self._deaths:
            self._attendant.stand_by()

    def attend(self) -> None:
        """See to it that somebody drives. Any thread, after it has added something."""
        if not self._driver:
            self._attendant.wake()

    @property
    def has_followers(self) -> bool:
        """Does somebody wait for the turn?"""
        return bool(self._followers)

    def try_to_drive(self, ready: Callable[[], bool]) -> None:
        """Drive until it is ready, if nobody else does."""
        if self._turn.acquire(blocking=False):
            self._drive(ready, None)

    def tell_quiet(self) -> None:
        """Call what waits for there being nothing left to do, if that is so."""
        if self._on_quiet is not None and not self.has_work():
            self._on_quiet()
            self.interrupt()  # who waits in join() is to see that the attendant is at rest

    def call_later(self, job: Callable[[], object]) -> None:
        """Call ``job()`` in the attendant's thread."""
        self._attendant.add(job)

    def interrupt(self) -> None:
        """Let whoever drives look again."""
        driver = self._driver
        if driver and driver != get_ident() and not self._is_over:
            os.eventfd_write(self._bell, 1)

    def has_work(self) -> bool:
        """Is something queued or under way?"""
        return bool(self._queue or self._busy or self._deaths)

    def _collect(self, link: Link) -> None:
        """Take in what is in a worker's ring. With the turn."""
        under_way, loads = link.under_way, pickle.loads
        last: Function | None = None
        owner: Any = None
        arrived: list[tuple[int, tuple[bool, Any]]] = []
        count = spent = 0
        for kind, took, number, payload in link.ring.take():
            if kind != records.VALUE:
                self._take_odd(link, kind, number, payload)
                continue
            call = under_way.pop(number, None)
            if call is None:
                continue  # it was cancelled
            known = call.known_as
            if known is not last:
                if last is not None:
                    last.ran(count, spent * 1e-7)
                last, count, spent = known, 0, 0
            count += 1
            spent += took
            try:
                value = loads(payload)
            except BaseException as error:  # noqa: BLE001  # a user's __setstate__
                self._fail_unreadable(call, error)
                continue
            if call.owner is None:
                call.finish(value)
                continue
            if call.owner is not owner:
                if arrived:
                    owner.put_all(arrived)
                    arrived = []
                owner = call.owner
            arrived.append((call.index, (True, value)))
        call = value = None
        if arrived:
            owner.put_all(arrived)
            del arrived
        if last is not None:
            last.ran(count, spent * 1e-7)
        with self._lock:
            self._settle(link)

    @staticmethod
    def _fail_unreadable(call: Call, error: BaseException) -> None:
        call.fail(unreadable(error))
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _take_odd(self, link: Link, kind: int, number: int, payload: Any) -> None:
        """An answer that is no value."""
        if kind == records.UNFIT:
            link.usable = False
            error = remote_error(records.as_bytes(payload))
            self._attendant.add(lambda: self._on_unfit(link, error))
            return
        if kind == records.FULL:
            self._attendant.add(lambda: self.retire(link))
            return
        call = link.under_way.pop(number, None)
        if call is None:
            return
        if kind == records.ERROR:
            call.fail(remote_error(records.as_bytes(payload)))
        else:  # both had seen each other: taken back, and not known to be
            call.link = None
            with self._lock:
                self._requeue([call])

    def _on_socket(self, link: Link, events: int) -> None:
        """Answers that were too large for the ring, or room for what waits. With the turn."""
        if events & select.EPOLLOUT:
            link.flush()
            self._watch_socket(link)
        if events & ~select.EPOLLOUT and self._read(link):
            with self._lock:
                self._settle(link)

    def _read(self, link: Link) -> bool:
        """Take in what is there on the socket; was there anything?"""
        found = link.stream.next_records()
        for kind, _, number, payload in found:
            if kind != records.VALUE:
                self._take_odd(link, kind, number, payload)
                continue
            call = link.under_way.pop(number, None)
            if call is None:
                records.drop(payload)
                continue
            call.known_as.ran(1, time.monotonic() - link.began_at)
            try:
                value = records.load(payload)
            except BaseException as error:  # noqa: BLE001  # a user's __setstate__
                self._fail_unreadable(call, error)
            else:
                call.finish(value)
            call = value = None
        if link.stream.over:
            # Its death follows, or has been told of already.
            self._actions.pop(link.socket.fileno(), None)
            self._epoll.unregister(link.socket.fileno())
        return bool(found)

    def _watch_socket(self, link: Link) -> None:
        try:
            self._epoll.modify(link.socket.fileno(), link.events)
        except (OSError, ValueError):
            pass  # closed meanwhile

    def _settle(self, link: Link) -> None:
        """What is under way there has changed. Under the lock."""
        left = len(link.under_way)
        if left:
            if left == 1:
                self._deep.discard(link)
            if not link.usable or link.filling or link.quota == 0:
                return
            if 2 * left <= link.depth:
                self._hungry[link] = None
            return
        self._busy.discard(link)
        self._deep.discard(link)
        self._timed.discard(link)
        if link.usable and not link.filling and not link.is_idle:
            if link.quota == 0:
                self._attendant.add(lambda: self.retire(link))
            else:
                self._hungry.pop(link, None)
                link.is_idle = True
                self._idle.append(link)
        if self._on_quiet is not None and not self.has_work():
            self._on_quiet()

    # -- looking after the slow ---------------------------------------------------------------

    def _look_after(self) -> float:
        """Take back what lies behind a slow call, end what has overrun; seconds until the next.

        With the turn.
        """
        now = time.monotonic()
        wait = SLICE
        if self._deep:
            if now >= self._next_tick:
                self._next_tick = now + TICK
                for link in list(self._deep):
                    self._look_at(link)
            wait = TICK
        for link in list(self._timed):
            wait = min(wait, self._time(link, now))
        return wait

    def _look_at(self, link: Link) -> None:
        begun = link.begun
        if begun != link.begun_at_tick:
            link.begun_at_tick = begun
            return
        self._collect(link)  # finished, and not told of
        with self._lock:
            if len(link.under_way) > 1 and not link.filling:
                self._requeue(link.take_back())
                self._settle(link)
                self._hungry.pop(link, None)  # not the same again

    def _time(self, link: Link, now: float) -> float:
        """Seconds until the call that a worker runs overruns its limit; ends it if it has."""
        begun = link.begun
        call = link.under_way.get(begun)
        if call is None:
            limits = [c.options.timeout for c in list(link.under_way.values())]
            return min((limit for limit in limits if limit is not None), default=SLICE)
        limit = call.options.timeout
        if limit is None:
            return SLICE
        left = link.began_at + limit - now
        if left > 0:
            return left
        if link.execution is None and link.begun == begun:
            self._execute(link, call, overran(link, limit))
        return SLICE

    def _execute(self, link: Link, call: Call | None, error: BaseException) -> None:
        """End a worker for the sake of what it runs."""
        with self._lock:
            link.usable = False
            link.execution = call, error
            self._forget(link)
        link.process.kill()

    def cancel(self, call: Any) -> bool:
        """Do not run a call, or end the worker that does; False if it is finished."""
        for part in call.parts():
            self._cancel_part(part)
        self.interrupt()
        return True

    def _cancel_part(self, call: Call) -> None:
        with self._lock:
            link = call.link
            if link is None:
                return  # in the queue: it is passed over there
            if link.under_way.get(call.number) is not call:
                return
            running = link.begun >= call.number and not link.is_closed
            if running:
                del link.under_way[call.number]
                link.usable = False
                link.execution = None, TaskCancelledError("cancelled")
                self._forget(link)
            else:
                doomed = Doomed(call, link)
                link.under_way[call.number] = doomed
                self._requeue(link.take_back())
                if call.number in link.under_way:  # it may be begun yet
                    self._timed.add(link)
                self._settle(link)
        if running:
            link.process.kill()

    def is_running(self, call: Any) -> bool:
        """Is a worker busy with it?"""
        return any(
            part.link is not None and part.link.begun >= part.number for part in call.parts()
        )

    # -- death ---------------------------------------------------------------------------------

    def _bury_all(self) -> None:
        while self._deaths:
            self._bury(self._deaths.popleft())

    def _bury(self, link: Link) -> None:
        """A worker is dead: what it had finished counts, what it ran fails. With the turn."""
        if link.is_closed:
            return
        self._collect(link)
        while not link.stream.over and self._read(link):
            pass
        with self._lock:
            begun = link.begun
            was_ready = link.is_ready
            left = sorted(link.under_way.items())
            link.under_way.clear()
            link.usable = False
            self._forget(link)
            if link in self.links:
                self.links.remove(link)
            ran = [call for number, call in left if number <= begun]
            back = [call for number, call in left if number > begun]
            victims = []
            for call in ran:
                call.link = None
                if self._may_go_on(link, call):
                    back.insert(0, call)
                else:
                    victims.append(call)
            for call in back:
                call.link = None
            self._requeue(back)
            self._settle(link)
        self._actions.pop(link.doorbell, None)
        self._actions.pop(link.socket.fileno(), None)
        link.close()
        link.was_ready = was_ready
        for call in victims:
            call.fail(self._cause_of_death(link, call))
        self._attendant.add(lambda: self._on_death(link))
        if self._error is not None:
            self._drop_all(self._error)

    def _may_go_on(self, link: Link, call: Call) -> bool:
        """Shall a call that a dead worker ran be begun anew?"""
        if link.execution is not None:
            return link.execution[0] is not call  # it was meant for another
        call.deaths += 1
        return call.deaths <= call.options.retries

    def _cause_of_death(self, link: Link, call: Call) -> BaseException:
        if link.execution is not None:
            return link.execution[1]
        return died(link, f"while it ran {name_of(call)}")

    # -- the end -------------------------------------------------------------------------------

    def when_quiet(self, callback: Callable[[], object]) -> None:
        """Call ``callback()``, under the lock, whenever nothing is left to do."""
        self._on_quiet = callback

    def is_quiet(self) -> bool:
        """Is nothing left to do, callbacks included?"""
        return not self.has_work() and self._attendant.is_at_rest()

    def fail_all(self, error: BaseException) -> None:
        """From now on every call gets ``error``, those that are here too."""
        self._error = error
        self._drop_all(error)

    def _drop_all(self, error: BaseException) -> None:
        with self._lock:
            calls = list(self._queue)
            self._queue.clear()
            for link in self.links:
                calls += link.under_way.values()
                link.under_way.clear()
                self._settle(link)
        for call in calls:
            call.drop(anew(error))
        self.interrupt()

    def cancel_queued(self) -> None:
        """Cancel what has not been sent to a worker."""
        with self._lock:
            calls = list(self._queue)
            self._queue.clear()
        for call in calls:
            call.cancel_unsent()
        self.interrupt()

    def unfinished(self) -> dict[int, Any]:
        """What is queued or under way."""
        with self._lock:
            calls = list(self._queue)
            for link in self.links:
                calls += link.under_way.values()
        return dict(enumerate(calls))

    def counts(self) -> dict[str, int]:
        """How many workers and calls are in which state."""
        with self._lock:
            return {
                "idle": len(self._idle),
                "busy": len(self._busy),
                "queued": len(self._queue),
                "under_way": sum(len(link.under_way) for link in self.links),
            }

    def stop(self, error: BaseException) -> None:
        """End it; what is not finished gets ``error``. The workers are not its affair."""
        if self._is_over:
            return
        self.fail_all(error)
        self._attendant.stop()
        self.interrupt()
        self._is_over = True
        if self._driver != get_ident() and self._turn.acquire(timeout=SLICE):
            try:  # with the turn, so that nobody looks into a ring that is being unmapped
                self._close()
            finally:
                self._turn.release()
        # Else whoever drives does, when he leaves.

    def _close(self) -> None:
        with self._lock:
            links, self.links = self.links, []
            for link in [*links, *self._deaths]:
                link.close()
            # A result that a program keeps holds this, and must not hold dead workers by it.
            for kept in (self._deaths, self._actions, self._idle, self._hungry):
                kept.clear()
            for links_in_use in (self._busy, self._deep, self._timed):
                links_in_use.clear()
            if not self._epoll.closed:
                with descriptors.opening():
                    descriptors.disown(self._epoll.fileno())
                    self._epoll.close()
                descriptors.close(self._bell)


_all: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
# Those of the processes before this one, kept: their epoll objects would otherwise close
# numbers that mean something else here.
_inherited: list[Dispatcher] = []


def _after_fork_in_child() -> None:
    _inherited.extend(_all)
    _all.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
