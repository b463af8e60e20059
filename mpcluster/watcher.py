"""One thread that waits for everything that can happen to this process's workers.

A process has at most one :class:`Watcher`. It waits on one epoll for descriptors (pidfds,
channels), for timers, and for calls that other threads hand to it, and runs what they
lead to one at a time. Whatever belongs to the watching side (the table of workers, the
registry of listeners, the users' callbacks) is touched in this thread alone and so needs
no lock.

The thread is started by the first :meth:`Watcher.add`, :meth:`~Watcher.call_soon` or
:meth:`~Watcher.call_later`; it is woken by the epoll, to which an eventfd belongs; it ends
after :data:`LINGER` seconds with nothing to watch, and is started anew when there is
something again. It is a daemon: it never keeps a program alive.

A forked child has no such thread. Its first :func:`current` gives it a watcher of its own;
its parent's descriptors are closed by :mod:`mpcluster.descriptors`. The child may well be
forked *by* this thread, inside a callback: then the child's main thread stands where the
watcher's stood, and never comes back into the loop.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from mpcluster import descriptors, perprocess
from mpcluster.events import report

__all__ = [
    "LINGER",
    "THREAD_NAME",
    "Timer",
    "Watcher",
    "current",
    "in_thread",
    "parents_bell",
    "was_calling",
]

#: Seconds that the thread stays when it has nothing to watch: long enough that a program
#: that starts and joins one process after another does not start a thread for each.
LINGER: Final = 1.0

#: Seconds of one wait: an epoll takes no infinite number, nor a year.
LONGEST: Final = 3600.0

T = TypeVar("T")

THREAD_NAME: Final = "mpcluster-watcher"

READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
WRITABLE: Final = select.EPOLLOUT


class Timer:
    """A call at a later time, until it is cancelled."""

    __slots__ = ("_call", "due")

    def __init__(self, due: float, call: Callable[[], object]) -> None:
        self.due = due
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Do not call any more; harmless when it is too late."""
        self._call = None

    @property
    def is_cancelled(self) -> bool:
        """Is there nothing to call (any more)?"""
        return self._call is None

    def take(self) -> Callable[[], object] | None:
        """Return what to call, at most once."""
        call, self._call = self._call, None
        return call


class Watcher:
    """An epoll and the thread that waits on it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        with descriptors.opening():
            self._epoll = select.epoll()
            try:
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                self._epoll.close()
                raise
            descriptors.own(self._epoll.fileno())
            descriptors.own(self._wake_fd)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._calls: deque[Callable[[], object]] = deque()
        # What to call once if anybody wakes the thread, or it wakes by itself. Any thread puts
        # in, the thread takes out: one entry in one step.
        self._when_woken: dict[Callable[[], object], None] = {}
        # Is the present wait one of LINGER at most? The thread says no before it looks what it
        # has to wait for: whoever has put something in and then reads yes was in time for it.
        # Yes where there is no thread, too, for the next one looks first.
        self._is_napping = True
        #: How often the thread was woken.
        self.rings = 0
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = itertools.count()
        # Guards the one decision that two threads could take differently: is there a
        # thread that will see what was just added? Tried by any thread that adds, and taken
        # by the watcher when it is about to end. Only a thread is started under it. Whoever
        # finds it taken goes on: its holder sees to a thread that sees everything. (It may
        # be held by the very thread, beneath a signal handler.)
        self._life = threading.Lock()
        #: Changed by the thread alone; a fork keeps what it was.
        self.calls_under_way = 0
        self._thread: threading.Thread | None = None
        self._thread_ident: int | None = None

    def __repr__(self) -> str:
        running = "running" if self._thread is not None else "idle"
        return f"<{type(self).__name__} {running} watching={len(self._callbacks)}>"

    # -- any thread ------------------------------------------------------------------------

    def in_thread(self) -> bool:
        """Does the caller run in this watcher's thread, in a callback?"""
        return threading.get_ident() == self._thread_ident and os.getpid() == self._pid

    def add(self, fd: int, callback: Callable[[int], object], events: int = READABLE) -> None:
        """Call ``callback(events)`` in the thread whenever ``fd`` is ready.

        A descriptor that is ready already is reported at once; one that stays ready is
        reported again.
        """
        self._callbacks[fd] = callback
        try:
            self._epoll.register(fd, events)
        except BaseException:
            del self._callbacks[fd]
            raise
        self._ensure_thread()

    def modify(self, fd: int, events: int) -> None:
        """Wait for other ``events`` of ``fd``; ignored if it is not watched (any more)."""
        if fd in self._callbacks:
            try:
                self._epoll.modify(fd, events)
            except OSError:
                pass  # removed, or closed, by another thread in the meantime

    def remove(self, fd: int) -> None:
        """Watch ``fd`` no more; harmless when it is not watched.

        To be called before the descriptor is closed: an epoll registration belongs to the
        open file description and outlives the number.
        """
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if not self.in_thread():
                os.eventfd_write(self._wake_fd, 1)  # perhaps there is nothing left to wait for

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call ``call()`` in the thread, after what is under way there."""
        self._calls.append(call)
        self._wake()

    def ask(self, call: Callable[[], T]) -> T:
        """Call ``call()`` in the thread; return what it returns, or raise what it raises."""
        if self.in_thread():
            return call()
        from concurrent.futures import Future  # here: who only starts and joins asks nothing

        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  # the caller's to raise
                future.set_exception(error)

        self.call_soon(run)
        return future.result()

    def call_idly(self, call: Callable[[], object]) -> None:
        """Call ``call()`` in the thread when that is next awake; nobody is woken for it."""
        self._calls.append(call)

    def when_woken(self, call: Callable[[], object]) -> bool:
        """Call ``call()`` once in the thread, when somebody wakes that or after LINGER seconds.

        Somebody may be a child, by :attr:`bell`: so what a child says need not be watched before
        it rings. Was the thread woken before this call, :attr:`rings` has grown. Nobody is woken
        by it, and the same call twice is one.

        Returns:
            False if it may be later than that, for the thread sleeps on something else.
        """
        self._when_woken[call] = None
        self._ensure_thread()
        return self._is_napping

    @property
    def bell(self) -> int:
        """An eventfd: who writes to it, in a child maybe, wakes the thread."""
        return self._wake_fd

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call ``call()`` in the thread in ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, call)
        self.call_soon(
            lambda: heapq.heappush(self._timers, (timer.due, next(self._timer_numbers), timer))
        )
        return timer

    def discard(self) -> None:
        """Close what it holds; only for one that was never used."""
        descriptors.disown(self._epoll.fileno())
        self._epoll.close()
        descriptors.close(self._wake_fd)

    def is_running(self) -> bool:
        """Is there a thread now? (It may be about to end for want of work.)"""
        return self._thread is not None

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)
        self._ensure_thread()

    def _ensure_thread(self) -> None:
        # What needs the thread was added before this line. A thread about to end clears
        # `_thread` before it looks for work a last time, so either this sees None, or the
        # thread sees the work.
        if self._thread is None and self._life.acquire(blocking=False):
            try:
                if self._thread is None:
                    self._start_thread()
            finally:
                self._life.release()

    def _start_thread(self) -> None:
        self._thread = thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        """Wait and call until there has been nothing to watch for LINGER seconds."""
        me = threading.current_thread()
        while True:
            self._thread_ident = threading.get_ident()
            while self._wait_and_call() or self._has_work():
                pass
            self._is_napping = True
            self._thread_ident = None  # the next thread of the program may get the same
            self._thread = None
            if not self._has_work():
                return
            with self._life:
                if self._thread is not None:
                    # Somebody has started another in the meantime.
                    return  # type: ignore[unreachable]
                self._thread = me

    def _has_work(self) -> bool:
        return bool(self._callbacks or self._calls or self._timers or self._when_woken)

    def _timeout(self) -> float | None:
        if self._calls:
            return 0
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)  # nobody stays awake for it
        if self._timers:
            longest = LINGER if self._when_woken else LONGEST
            return min(max(0.0, self._timers[0][0] - time.monotonic()), longest)
        return None if self._callbacks and not self._when_woken else LINGER

    def _wait_and_call(self) -> bool:
        """One round; returns whether there was anything to do."""
        self._is_napping = False
        timeout = self._timeout()
        self._is_napping = timeout is not None and timeout <= LINGER
        ready = self._epoll.poll(timeout)
        if not ready:
            self._look_up()
        for fd, events in ready:
            if fd == self._wake_fd:
                self._drain_wake()
                self.rings += 1  # before the look
                self._look_up()
                continue
            callback = self._callbacks.get(fd)
            if callback is not None:  # else: removed by a callback of this very round
                self._call(callback, events)
            del callback  # whose it is may be dropped by its owner from now on
        for _ in range(len(self._calls)):
            self._call(self._calls.popleft())
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            due = heapq.heappop(self._timers)[2].take()
            if due is not None:
                self._call(due)
        return bool(ready)

    def _look_up(self) -> None:
        for call in tuple(self._when_woken):
            del self._when_woken[call]
            self._call(call)

    def _drain_wake(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass

    def _call(self, call: Callable[..., object], *args: object) -> None:
        self.calls_under_way += 1
        try:
            call(*args)
        except BaseException as error:  # noqa: BLE001
            report("in the watcher", error, call)
        finally:
            self.calls_under_way -= 1


def current() -> Watcher:
    """Return this process's watcher, making it at the first call."""
    found: Watcher | None = perprocess.mine().get(__name__)
    if found is not None:
        return found
    # A signal handler that comes while one is being made makes the one that counts.
    made = Watcher()
    found = perprocess.mine().setdefault(__name__, made)
    if found is not made:
        made.discard()
    return found


def in_thread() -> bool:
    """Does the caller run in this process's watcher, in a callback?"""
    return current().in_thread()


def parents_bell() -> int:
    """In a worker: its parent's :attr:`Watcher.bell`, which the fork has kept for it.

    -1 where another process has forked it, whose child it is not.
    """
    parents: Watcher | None = perprocess.before().get(__name__)
    return -1 if parents is None else parents.bell


def was_calling() -> bool:
    """In a child: did the fork catch its parent's watcher in the middle of a call?"""
    parents: Watcher | None = perprocess.before().get(__name__)
    return parents is not None and parents.calls_under_way > 0
