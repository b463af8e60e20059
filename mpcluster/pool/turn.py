"""The turn: which thread waits for the workers' answers, and takes them in.

One thread at a time has it. One that waits for a result takes it if nobody has it, so that a
single call is two system calls and no other thread; others sleep, and are woken when their
result is there or the turn is free. Where nobody waits, the attendant takes it.
"""

from __future__ import annotations

import os
import select
import time
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from mpcluster import descriptors
from mpcluster.pool.attendant import Attendant
from mpcluster.pool.engine import Awaited

if TYPE_CHECKING:
    from mpcluster.pool.link import Link
    from mpcluster.pool.roster import Roster

__all__ = ["DOORBELL", "SLICE", "Duties", "Turn"]

#: Seconds of one wait, at most: a Ctrl-C that comes in the instant before it begins is
#: noticed only when it ends.
SLICE: Final = 0.5
#: Seconds that a thread that waits looks into the ring, before it sleeps: to be put to sleep
#: and woken again costs a call of a short function more than all the rest of it.
SPIN: Final = 30e-6
_MOST_SPINS: Final = 64
_CORES: Final = len(os.sched_getaffinity(0))
DOORBELL: Final = select.EPOLLIN | select.EPOLLET


class Duties(NamedTuple):
    """What the thread that has the turn does, beside waiting."""

    bury: Callable[[], object]  #: the dead
    look_after: Callable[[], float]  #: the slow; seconds until the next time
    collect: Callable[[Link], object]  #: the answers of one worker
    feed: Callable[[], object]  #: those that have room
    close: Callable[[], object]  #: everything, at the end


class Turn:
    """Who drives, and what he waits on.

    Attributes:
        rounds: How often somebody has had the turn.
        is_over: Nobody shall have it any more.
        attendant: Drives when nobody else does.
    """

    # `_held` belongs to the thread that drives. Never waited for, but at the very end: who
    # cannot have it sleeps on what he waits for. It is held during an epoll_wait, and while
    # answers are unpickled. A forked child has no use for it: `mpcluster.descriptors` has
    # closed the descriptors.

    def __init__(self, roster: Roster) -> None:
        self.duties: Duties
        self.rounds = 0
        self.is_over = False
        self._roster = roster
        self._held = allocate_lock()
        self._driver = 0
        self._followers: deque[Awaited] = deque()
        with descriptors.opening():
            self._epoll = select.epoll()
            descriptors.own(self._epoll.fileno())
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            descriptors.own(self._bell)
        self._epoll.register(self._bell, DOORBELL)
        self._actions: dict[int, Callable[[int], object]] = {}
        self._spins = _MOST_SPINS if _CORES > 1 else -(1 << 62)
        self.attendant = Attendant(self)

    # -- what is waited on ---------------------------------------------------------------------

    def watch(self, fd: int, events: int, action: Callable[[int], object]) -> None:
        """From now on ``action(events)`` is called, by who has the turn.

        Raises:
            ValueError: It is all over.
        """
        self._actions[fd] = action
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events there."""
        try:
            self._epoll.modify(fd, events)
        except (OSError, ValueError):
            pass  # closed meanwhile

    def unwatch(self, fd: int) -> None:
        """No more of it; it stays open."""
        self._actions.pop(fd, None)
        self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """No more of it; it is about to be closed."""
        self._actions.pop(fd, None)

    # -- having it -----------------------------------------------------------------------------

    def wait(self, awaited: Awaited, deadline: float | None) -> None:
        """Wait until it is ready, or until ``deadline`` (monotonic seconds); drive meanwhile."""
        ready, turn = awaited.ready, self._held
        while not self.is_over:
            if turn.acquire(blocking=False):
                if self._drive(ready, deadline):
                    return
            else:
                self._follow(awaited, deadline)
                if ready():
                    return
            if deadline is not None and time.monotonic() >= deadline:
                return

    def _follow(self, awaited: Awaited, deadline: float | None) -> None:
        """Somebody else drives: sleep until it is ready, or he has left."""
        lock = awaited.enlist()
        self._followers.append(awaited)
        try:
            if self.attendant.is_driving:
                os.eventfd_write(self._bell, 1)  # it leaves the turn to who waits
            # Looked at once more after that, as he looks for followers after he has left.
            if not self._held.locked() or awaited.ready():
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

    def _drive(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """With the turn: take in answers until it is ready; then pass the turn on.

        Returns:
            Is it ready?
        """
        roster = self._roster
        self.rounds += 1
        self._driver = get_ident()
        try:
            while not self.is_over:
                if ready():
                    return True
                if roster.deaths:
                    self.duties.bury()
                    continue
                timeout = SLICE
                if deadline is not None:
                    timeout = max(0.0, min(SLICE, deadline - time.monotonic()))
                if roster.deep or roster.timed:
                    timeout = min(timeout, self.duties.look_after())
                elif self._spins > 0 and len(roster.busy) == 1 and self._spin():
                    continue
                events = self._epoll.poll(timeout)
                self._handle(events)
                if not events and deadline is not None and time.monotonic() >= deadline:
                    return False
            return ready()
        finally:
            self._driver = 0
            self._held.release()
            if self._followers or self.is_over or roster.queue or roster.busy or roster.deaths:
                self._pass_on()

    def _handle(self, events: list[tuple[int, int]]) -> None:
        """Do what has come, and feed who has room by that."""
        if self._spins < 0:
            self._spins += 1
            if not self._spins:
                self._spins = 8
        for fd, event in events:
            action = self._actions.get(fd)
            if action is not None:
                action(event)
        roster = self._roster
        if roster.queue and (roster.idle or roster.hungry):
            self.duties.feed()

    def _spin(self) -> bool:
        """Look into the one busy worker's ring for an instant; did an answer come?

        Where that fails too often (other work on this machine), it is left out for a while.
        """
        try:
            (link,) = self._roster.busy
        except ValueError:  # another thread has just sent something
            return False
        if link.quickest > SPIN:
            return False
        if link.ring.wait(link.quickest + SPIN):
            self._spins = min(_MOST_SPINS, self._spins + 1)
            self.duties.collect(link)
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
        if self.is_over:
            self.duties.close()
        elif self._roster.queue or self._roster.busy or self._roster.deaths:
            self.attendant.stand_by()

    def attend(self) -> None:
        """See to it that somebody drives. Any thread, after it has added something."""
        if not self._driver:
            self.attendant.wake()

    @property
    def has_followers(self) -> bool:
        """Does somebody wait for the turn?"""
        return bool(self._followers)

    def try_to_drive(self, ready: Callable[[], bool]) -> None:
        """Drive until it is ready, if nobody else does."""
        if self._held.acquire(blocking=False):
            self._drive(ready, None)

    def tell_quiet(self) -> None:
        """Call what waits for there being nothing left to do, if that is so."""
        if self._roster.on_quiet is not None and not self._roster.has_work():
            self._roster.on_quiet()
            self.interrupt()  # who waits in join() is to see that the attendant is at rest

    def interrupt(self) -> None:
        """Let whoever drives look again."""
        driver = self._driver
        if driver and driver != get_ident() and not self.is_over:
            os.eventfd_write(self._bell, 1)

    def has_work(self) -> bool:
        """Is something queued or under way?"""
        return self._roster.has_work()

    def end(self) -> None:
        """Close everything, now or when whoever drives leaves."""
        self.attendant.stop()
        self.interrupt()
        self.is_over = True
        if self._driver != get_ident() and self._held.acquire(timeout=SLICE):
            try:  # with the turn, so that nobody looks into a ring that is being unmapped
                self.duties.close()
            finally:
                self._held.release()

    def close(self) -> None:
        """Wait on nothing any more. Under the roster's lock."""
        self._actions.clear()
        if not self._epoll.closed:
            with descriptors.opening():
                descriptors.disown(self._epoll.fileno())
                self._epoll.close()
            descriptors.close(self._bell)
