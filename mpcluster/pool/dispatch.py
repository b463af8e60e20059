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

*Runs.* Calls of one function with plain arguments that go to a worker together are one record
and one pickle (:mod:`mpcluster.pool.sending`), and so are their values, which the worker adds
one by one to an answer that stays open (:mod:`mpcluster.pool.ring`). Those of an imap are one
entry on this side, too (:mod:`mpcluster.pool.runs`). Each is begun, taken back, lost and
answered for by itself: the worker says which it has begun before it begins it.

*How much a worker has.* As many calls as are two milliseconds of work, by the measured run
time of the function; one, as long as that is unknown, or when they are longer. A guess may be
wrong: when a worker has not come on for a tick, what lies behind its present call is taken
back (:mod:`mpcluster.pool.ring` says how that can be sure) and goes to the next that has room.
Very short calls wake no more workers than there are processors, as long as those come on.

*Death.* A worker's death comes from the watcher's thread. Its ring tells which call it had
begun and not answered. That one fails, or is begun again if it may be; what lay behind it
goes back to the front of the queue.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from mpcluster.pool.burial import Burial
from mpcluster.pool.calls import Call
from mpcluster.pool.engine import Awaited
from mpcluster.pool.failures import anew, unsendable
from mpcluster.pool.functions import Function, Functions
from mpcluster.pool.intake import Intake
from mpcluster.pool.link import Link
from mpcluster.pool.overseer import Overseer
from mpcluster.pool.roster import Roster
from mpcluster.pool.runs import Feed
from mpcluster.pool.sending import write
from mpcluster.pool.turn import DOORBELL, Duties, Turn

__all__ = ["Dispatcher"]

#: Calls that gather in the queue before the submitting thread sends them to a busy worker.
TOGETHER: Final = 64


class Dispatcher:
    """The local engine: a roster of workers, and the turn of who takes their answers in.

    Args:
        on_death: Called by the attendant for each dead worker, to replace it:
            ``on_death(link)``.
        on_unfit: Called by the attendant when an initializer has raised.
    """

    def __init__(
        self,
        *,
        on_death: Callable[[Link], object],
        on_unfit: Callable[[Link, BaseException], object],
    ) -> None:
        self._functions = Functions()
        self._roster = roster = Roster(on_end_of_feed=self.interrupt, on_spent=self._retire_later)
        self._queue, self._idle, self._hungry = roster.queue, roster.idle, roster.hungry
        self._turn = turn = Turn(roster)
        self._intake = intake = Intake(roster, turn, on_unfit, self.retire)
        self._overseer = overseer = Overseer(roster, intake.collect, turn.interrupt)
        self._burial = Burial(roster, turn, intake, on_death)
        turn.duties = Duties(
            self._bury, overseer.look_after, intake.collect, self.feed, self._close
        )
        self.is_ending = False  #: the workers are being ended; nobody need be told
        self._error: BaseException | None = None  # it is over, or broken
        _all.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._roster!r}>"

    # -- workers ---------------------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """The workers' lines."""
        return self._roster.links

    @property
    def slots(self) -> int:
        """How many workers there are, at least 1."""
        return len(self._roster.links) or 1

    @property
    def has_timeouts(self) -> bool:
        """May a call have a limit of time?"""
        return self._roster.has_timeouts

    @has_timeouts.setter
    def has_timeouts(self, has: bool) -> None:
        self._roster.has_timeouts = has

    def add(self, link: Link) -> None:
        """A new worker: it may be given work from now on."""
        turn, intake, number = self._turn, self._intake, link.socket.fileno()
        link.on_backlog = lambda: turn.change(number, link.events)
        turn.watch(link.doorbell, DOORBELL, lambda _: intake.collect(link))
        turn.watch(number, link.events, lambda events: intake.on_socket(link, events))
        self._roster.add(link)
        if self._queue:
            self.feed()
            self.attend()

    def note_death(self, link: Link) -> None:
        """A worker's process has ended. Any thread."""
        if not (self._turn.is_over or self.is_ending):
            self._roster.deaths.append(link)
            self._turn.interrupt()
            self._turn.attend()

    def retire(self, link: Link) -> None:
        """Give a worker no more work; it ends when it has done what it has."""
        with self._roster.lock:
            if not link.usable:
                return
            link.usable = False
            self._roster.forget(link)
            back = link.take_back()
            self._roster.requeue(back)
        link.say_goodbye()
        if back:
            self.feed()

    def _retire_later(self, link: Link) -> None:
        self._turn.attendant.add(lambda: self.retire(link))

    def _bury(self) -> None:
        self._burial.bury_all()
        if self._error is not None:
            self._drop(self._roster.take_all(), self._error)

    # -- submitting ------------------------------------------------------------------------

    def known(self, function: Callable[..., Any]) -> Function:
        """The entry of a function, for the calls of it."""
        return self._functions.of(function)

    def submit(self, call: Call | Feed) -> None:
        """Run a call, or those of a feed. Any thread; returns at once."""
        queue = self._queue
        queue.append(call)
        # A busy worker is not sent one by one what can go together: who drives will.
        if self._idle or (self._hungry and len(queue) >= TOGETHER):
            self.feed()
        if self._error is not None:
            self._drop(self._roster.take_all(), self._error)

    def submit_all(self, calls: Iterable[Any]) -> None:
        """Run these, and see to it that somebody drives."""
        self._queue.extend(calls)
        if self._idle or self._hungry:
            self.feed()
        if self._error is not None:
            self._drop(self._roster.take_all(), self._error)
        self._turn.attend()

    def feed(self) -> None:
        """Send to every worker that has room what there is for it. Any thread."""
        link: Link | None = None
        while True:
            with self._roster.lock:
                if link is not None:
                    link.filling = False
                    self._roster.settle(link)
                found = self._roster.pick() if self._queue else None
            if found is None:
                return
            link, calls = found
            try:
                write(link, calls, self._fail_unsent)
            except BaseException:  # Ctrl-C
                link.filling = False
                raise
            del calls, found

    def _fail_unsent(self, link: Link, number: int, error: BaseException) -> None:
        with self._roster.lock:
            call = link.claim(number)
        if call is not None:
            call.fail(unsendable(error))
            self._turn.interrupt()

    def cancel(self, call: Any) -> bool:
        """Do not run a call, or end the worker that does; False if it is finished."""
        return self._overseer.cancel(call)

    def is_running(self, call: Any) -> bool:
        """Is a worker busy with it?"""
        return self._overseer.is_running(call)

    # -- waiting -----------------------------------------------------------------------------

    def wait(self, awaited: Awaited, deadline: float | None) -> None:
        """Wait until it is ready, or until ``deadline`` (monotonic seconds); drive meanwhile."""
        self._turn.wait(awaited, deadline)

    def attend(self) -> None:
        """See to it that somebody drives. Any thread, after it has added something."""
        self._turn.attend()

    def interrupt(self) -> None:
        """Let whoever drives look again."""
        self._turn.interrupt()

    def call_later(self, job: Callable[[], object]) -> None:
        """Call ``job()`` in the attendant's thread."""
        self._turn.attendant.add(job)

    # -- looking -------------------------------------------------------------------------------

    def unfinished(self) -> dict[int, Any]:
        """What is queued or under way."""
        return self._roster.unfinished()

    def counts(self) -> dict[str, int]:
        """How many workers and calls are in which state."""
        return self._roster.counts()

    # -- the end -------------------------------------------------------------------------------

    def when_quiet(self, callback: Callable[[], object]) -> None:
        """Call ``callback()``, under the lock, whenever nothing is left to do."""
        self._roster.on_quiet = callback

    def is_quiet(self) -> bool:
        """Is nothing left to do, callbacks included?"""
        return not self._roster.has_work() and self._turn.attendant.is_at_rest()

    def fail_all(self, error: BaseException) -> None:
        """From now on every call gets ``error``, those that are here too."""
        self._error = error
        self._drop(self._roster.take_all(), error)

    def _drop(self, calls: list[Any], error: BaseException) -> None:
        for call in calls:
            call.drop(anew(error))
        self._turn.interrupt()

    def cancel_queued(self) -> None:
        """Cancel what has not been sent to a worker."""
        for call in self._roster.take_queued():
            call.cancel_unsent()
        self._turn.interrupt()

    def stop(self, error: BaseException) -> None:
        """End it; what is not finished gets ``error``. The workers are not its affair."""
        if not self._turn.is_over:
            self.fail_all(error)
            self._turn.end()

    def _close(self) -> None:
        with self._roster.lock:
            self._roster.close()
            self._turn.close()


_all: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
# Those of the processes before this one, kept: their epoll objects would otherwise close
# numbers that mean something else here.
_inherited: list[Dispatcher] = []


def _after_fork_in_child() -> None:
    _inherited.extend(_all)
    _all.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
