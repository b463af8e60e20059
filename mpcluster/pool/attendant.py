"""The pool's own thread, for when no other thread of the program does the work."""

from __future__ import annotations

import logging
import threading
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Attendant"]

logger = logging.getLogger("mpcluster")

#: Seconds that the attendant leaves the turn to threads that take it again and again.
STAND_BY: Final = 0.002
#: Seconds that the end of a pool waits for a callback that is running.
_PATIENCE: Final = 0.5


class Driven(Protocol):
    """What it attends to."""

    #: How often somebody has had the turn.
    rounds: int

    @property
    def has_followers(self) -> bool:
        """Does somebody wait for the turn?"""

    def has_work(self) -> bool:
        """Is something queued or under way?"""

    def try_to_drive(self, ready: Callable[[], bool]) -> None:
        """Drive until it is ready, if nobody else does."""

    def interrupt(self) -> None:
        """Let whoever drives look again."""

    def tell_quiet(self) -> None:
        """Call what waits for there being nothing left to do, if that is so."""


class Attendant:
    """The pool's own thread: drives when nobody waits, and runs callbacks.

    Started by the first :meth:`wake`; parked on a lock whenever there is nothing for it to do;
    ended by :meth:`stop`. It holds its driven weakly while parked, so that a pool that is
    dropped can be collected. A daemon. A forked child has none, and starts none.
    """

    def __init__(self, driven: Driven) -> None:
        self._driven = weakref.ref(driven)
        self._jobs: deque[Callable[[], object]] = deque()
        self._parked = allocate_lock()  # taken to park, released to wake
        self._parked.acquire()
        self._is_awake = False
        self._is_stopped = False
        self._is_driving = False
        self._is_patient = False
        self._is_busy = False
        # Guards the one start; taken by whoever wakes it first.
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def is_driving(self) -> bool:
        """Has it the turn?"""
        return self._is_driving

    def add(self, job: Callable[[], object]) -> None:
        """Run ``job()`` soon; never, when it is stopped. Any thread."""
        if self._is_stopped:
            return
        self._jobs.append(job)
        self.wake()
        if self._is_driving:
            driven = self._driven()
            if driven is not None:
                driven.interrupt()

    def wake(self) -> None:
        """Let it look for something to do at once. Any thread."""
        if self._is_patient:
            self._is_patient = False
            self._release()
        if not self._is_awake and not self._is_stopped:
            self._wake()

    def stand_by(self) -> None:
        """Somebody who drove has left, with work under way: drive if he does not come back."""
        if not self._is_awake and not self._is_stopped:
            self._is_patient = True
            self._wake()

    def _wake(self) -> None:
        self._is_awake = True
        if self._thread is None:
            self._start()
        self._release()

    def _release(self) -> None:
        try:
            self._parked.release()
        except RuntimeError:
            pass  # somebody else has

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="mpcluster-pool", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is about to end
                    return
                self._thread = thread

    def is_at_rest(self) -> bool:
        """Has it run every job?"""
        return not self._jobs and not self._is_busy

    def _run(self) -> None:
        while True:
            self._parked.acquire()
            if self._is_stopped:
                return
            driven = self._driven()
            if driven is None:
                return
            while self._attend(driven):
                pass
            if self._has_to_end():  # its wake-up may have been taken for another's
                return
            del driven

    def _has_to_end(self) -> bool:
        return self._is_stopped

    def _attend(self, driven: Driven) -> bool:
        """One round; is there more to do at once?"""
        jobs = self._jobs
        while jobs:
            self._is_busy = True
            job = jobs.popleft()
            try:
                job()
            except Exception:
                logger.exception("in a pool's own thread")
            del job
        self._is_busy = False
        driven.tell_quiet()
        if self._is_stopped:
            return False
        if self._is_patient:
            # Those who wait have the turn again and again: stay out of their way, without
            # their having to call each time.
            rounds = driven.rounds
            self._parked.acquire(timeout=STAND_BY)
            if driven.rounds != rounds and driven.has_work():
                return True
            self._is_patient = False
            return True
        if driven.has_work():
            self._is_driving = True
            driven.try_to_drive(
                lambda: (
                    bool(jobs) or self._is_stopped or driven.has_followers or not driven.has_work()
                )
            )
            self._is_driving = False
            if driven.has_work():
                self._is_patient = True
                return True
        self._is_awake = False
        if jobs or driven.has_work():
            self._is_awake = True
            return True
        return False

    def stop(self) -> None:
        """End the thread, and wait for it; unless this is it."""
        self._is_stopped = True
        self._jobs.clear()
        thread = self._thread
        try:
            self._parked.release()
        except RuntimeError:
            pass
        driven = self._driven()
        if driven is not None:
            driven.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
