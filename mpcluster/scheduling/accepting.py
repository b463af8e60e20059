"""The master accepts: the common part of ``round_robin``, ``least_connections``, ``ip_hash``.

::

    kernel's backlog ──accept──► waiting ──pick, pass──► passed ──ACCEPTED──► the worker's alone
                                    ▲                        │
                                    └────── taken back ──────┘  it drains, died, closed its
                                                                listener, or lets it lie

The master keeps its copy of a connection until the worker's *program* has accepted it. One
that was passed and not accepted is never lost with the worker: it goes to another, or waits
in the master for a replacement, for as long as the listener waits for one.

While no worker may be passed one the listener is not watched at all: clients wait in the
kernel's queue, and nothing wakes the master. (Node's master accepts without bound there, and
with ``maxConnections`` asks a full worker 7,000 times a second.)

A worker is passed one connection at a time. If its program lets that lie for some tenths of
a second while another is free, the other gets it: a worker that is stopped, or busy with a
long request in the thread that accepts, delays nobody but its own clients.

Everything runs in the master's watcher thread and does no more than a bounded number of
calls a round, none of which blocks.
"""

from __future__ import annotations

import _socket
import abc
import contextlib
import errno
import functools
import itertools
import logging
import math
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Final

from mpcluster import descriptors
from mpcluster.messages import Route
from mpcluster.scheduling import line
from mpcluster.scheduling.base import MASTER, Kept, Policy, Timer
from mpcluster.scheduling.taker import Connection, Taker

__all__ = ["Accepting"]

_log = logging.getLogger("mpcluster")

#: Connections that are accepted, and words of a worker that are heard, in one round.
AT_ONCE: Final = 32

#: Seconds without accepting after the kernel had no descriptor or memory for one more.
REST: Final = 0.1

#: Seconds until a worker that had no descriptor left is passed a connection again.
RECOVERY: Final = 0.5

#: Seconds between two looks at who lets a connection lie; it has, if it lay there twice.
TICK: Final = 0.1

#: Looks until one that did is tried again.
PATIENCE: Final = 10

#: Connections of a sticky policy that may wait for busy workers; each costs a descriptor.
MOST_WAITING: Final = 128

#: For a listener whose server has not yet said how many may wait.
_BACKLOG: Final = socket.SOMAXCONN

#: What accept(2) says of a connection that is no more; the next one is another matter.
_OF_ONE: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        getattr(errno, "ENONET", errno.EPROTO),
    }
)

_accept: Callable[[socket.socket], tuple[int, object]] = _socket.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001


class Accepting(Policy):
    """Accepts in the master, and passes each connection to the worker of :meth:`pick`.

    A policy of one's own is a subclass with that one method. It may set:

    * ``sticky``: each connection belongs to one worker, be that free or not.
    * ``counts``: workers tell when a connection ends, so that :attr:`Taker.open` is right.
      It costs the worker a system call a connection. (A limit counts by itself.)
    """

    sticky: ClassVar[bool] = False

    def __init__(self, kept: Kept) -> None:
        self._socket = kept.socket
        self._socket.setblocking(False)  # noqa: FBT003  # the description is the master's alone
        self._call_later, self._watch = kept.call_later, kept.watch
        self._limit = math.inf if kept.max_connections is None else kept.max_connections
        if kept.max_connections is not None:
            self.counts = True
        self._takers: dict[Route, Taker] = {}  # in the order of their slots
        self._direct: set[Route] = set()  # they accept from the listener itself
        self._waiting: deque[Connection] = deque()
        self._turns = itertools.count(1)
        self._timers: dict[object, Timer] = {}
        self._listens = self._watched = self._resting = self._told_of_rest = False
        self._closed = False

    def __repr__(self) -> str:
        state = "resting" if self._resting else "accepting" if self._watched else "not accepting"
        return f"<{type(self).__name__} {state} {self._held} waiting {list(self._takers.values())}>"

    # -- for subclasses --------------------------------------------------------------------

    @abc.abstractmethod
    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        """Choose who gets a connection. Quick, and without a side effect.

        Args:
            peer: The client's address, as ``accept()`` has it.
            takers: At least one, in the order of their slots: those that are free; of a
                ``sticky`` policy all that take connections, and what is picked may wait.

        Returns:
            One of ``takers``.
        """

    # -- Policy ----------------------------------------------------------------------------

    def add(self, route: Route, offered: socket.socket, backlog: int | None) -> socket.socket:  # noqa: ARG002
        """Give ``route`` the end of a line; the master itself, the listener.

        It is passed nothing before its program has called ``listen()``.
        """
        if route == MASTER:
            return self.add_direct(route, backlog)
        self._listen(backlog)
        ours, theirs = line.open_pair()
        taker = Taker(route, self._slot_for_new(), ours, theirs, self._limit)
        self._enter(taker)
        self._watch.add(ours.fileno(), lambda _: self._on_words(taker))
        return theirs

    def add_direct(self, route: Route, backlog: int | None) -> socket.socket:
        """Let ``route`` accept from the listener itself, beside the master.

        For loops that accept in C. What they take, nobody deals: as ``shared``.
        """
        self._listen(backlog)
        self._direct.add(route)
        return self._socket

    def remove(self, route: Route, *, crashed: bool) -> bool:
        """Forget a user; what it was passed and has not accepted goes to others."""
        self._direct.discard(route)
        taker = self._takers.get(route)
        if taker is not None:
            self._requeue(taker)
            self._take_back(taker)
            # Whoever took these out of the line is gone, or has closed it, before it could
            # say so: nobody has read a byte from them.
            self._return(taker, list(taker.passed))
            self._dismiss(taker, inherits=not crashed)
        self._deal()
        return not self._takers and not self._direct

    def drain(self, route: Route) -> list[socket.socket]:
        """Pass ``route`` nothing more, and take back what its program has not accepted."""
        taker = self._takers.get(route)
        if taker is not None and not taker.draining:
            taker.draining = True
            self._requeue(taker)  # first: what is taken back is older
            self._take_back(taker)
            self._move_in(taker)
            self._deal()
        return []

    def close(self) -> None:
        """Close the listener and every line; connections that wait here end with a reset."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._unwatch()
        for taker in list(self._takers.values()):
            self._take_back(taker)
            # Of these the program may have one by now: it only loses the master's copy.
            for connection in taker.passed.values():
                descriptors.close(connection.fd)
            self._dismiss(taker, inherits=False)
        for connection in self._waiting:
            _reset(connection)
        self._waiting.clear()
        descriptors.close(self._socket)

    # -- who takes part --------------------------------------------------------------------

    def _enter(self, taker: Taker) -> None:
        self._takers[taker.route] = taker
        self._takers = dict(sorted(self._takers.items(), key=lambda item: item[1].slot))

    def _slot_for_new(self) -> int:
        """The first that is free: a predecessor's, if one has died."""
        taken = {taker.slot for taker in self._takers.values()}
        return next(slot for slot in itertools.count() if slot not in taken)

    def _move_in(self, leaving: Taker) -> None:
        """One that leaves by will may have its replacement here already: the last in line.

        So after a rolling reload the slots are taken as before, each by the new one.
        """
        others = [one for one in self._takers.values() if one is not leaving and not one.draining]
        last = max(others, key=lambda taker: taker.slot, default=leaving)
        if last.slot <= leaving.slot:
            return
        leaving.slot, last.slot = last.slot, leaving.slot
        self._enter(last)
        if self.sticky:
            for taker in self._takers.values():
                self._requeue(taker)

    def _dismiss(self, taker: Taker, *, inherits: bool) -> None:
        if inherits and not taker.draining:
            self._move_in(taker)
        self._requeue(taker)
        del self._takers[taker.route]
        self._cancel(taker)
        self._watch.remove(taker.ours.fileno())
        descriptors.close(taker.ours)
        descriptors.close(taker.theirs)

    # -- the listener ----------------------------------------------------------------------

    def _listen(self, backlog: int | None) -> None:
        """Listen from the first asker on; as in Node, the last ``listen`` sets the backlog."""
        if backlog is not None or not self._listens:
            self._socket.listen(_BACKLOG if backlog is None else backlog)
            self._listens = True

    def _tend(self) -> None:
        """Watch the listener while a connection could be dealt with, and only then."""
        if not self._may_accept():
            self._unwatch()
        elif not self._watched:
            self._watched = True
            self._watch.add(self._socket.fileno(), lambda _: self._on_clients())

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._watch.remove(self._socket.fileno())

    def _may_accept(self) -> bool:
        if self._closed or self._resting or self._waiting:
            return False
        if self.sticky:
            return self._held < MOST_WAITING and any(one.takes for one in self._takers.values())
        return any(one.is_free for one in self._takers.values())

    @property
    def _held(self) -> int:
        return len(self._waiting) + sum(len(taker.queue) for taker in self._takers.values())

    def _on_clients(self) -> None:
        """Clients wait in the kernel's queue."""
        for _ in range(AT_ONCE):
            if not self._may_accept():
                break
            connection = self._accept()
            if connection is None:
                break
            self._waiting.append(connection)
            self._pass_on()
        self._tend()

    def _accept(self) -> Connection | None:
        try:
            with descriptors.opening():
                fd, peer = _accept(self._socket)
                descriptors.own(fd)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _OF_ONE:
                self._rest(error)
            return None
        self._told_of_rest = False
        return Connection(fd, peer)

    def _rest(self, error: OSError) -> None:
        """No descriptor, no memory: to ask at once again would be to spin."""
        if not self._told_of_rest:
            self._told_of_rest = True
            _log.warning(
                "the master cannot accept connections now, they wait in the kernel's queue: %s",
                error,
            )
        self._resting = True
        self._later(self._rest, REST, self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        self._deal()

    # -- dealing ---------------------------------------------------------------------------

    def _deal(self) -> None:
        """Something has changed: pass on what waits here, then accept again if that may be."""
        if self._closed:
            return
        self._reclaim()
        self._pass_on()
        self._tend()

    def _pass_on(self) -> None:
        if self._resting:
            return
        if self.sticky:
            self._sort()
            for taker in self._takers.values():
                while taker.queue and taker.is_free and self._pass(taker, taker.queue[0]):
                    taker.queue.popleft()
            return
        while self._waiting:
            free = self._free()
            if not free:
                return
            taker = self._picked(self._waiting[0].peer, free)
            if self._pass(taker, self._waiting[0]):
                self._waiting.popleft()

    def _sort(self) -> None:
        """Of a sticky policy: put each connection into the queue of the worker it belongs to."""
        takers = [taker for taker in self._takers.values() if taker.takes]
        while takers and self._waiting:
            connection = self._waiting.popleft()
            self._picked(connection.peer, takers).queue.append(connection)

    def _requeue(self, taker: Taker) -> None:
        """It may not be whom they belong to any more."""
        self._waiting.extendleft(reversed(taker.queue))
        taker.queue.clear()

    def _free(self) -> list[Taker]:
        free = [taker for taker in self._takers.values() if taker.is_free]
        return [taker for taker in free if not taker.slow] or free

    def _picked(self, peer: object, takers: list[Taker]) -> Taker:
        try:
            taker = self.pick(peer, takers)
            if any(taker is one for one in takers):
                return taker
            _log.error("%r picked %r, which is none of %r", self, taker, takers)
        except Exception:  # noqa: BLE001  # a policy of the user's own; the port must go on
            _log.exception("%s.pick() failed", type(self).__name__)
        return takers[0]

    def _pass(self, taker: Taker, connection: Connection) -> bool:
        number = next(self._turns)
        try:
            line.hand_over(taker.ours, number, connection.peer, connection.fd)
        except OSError as error:  # e.g. ETOOMANYREFS: descriptors under way count, too
            _log.warning("a connection could not be passed to worker %s: %s", taker.route, error)
            self._shorten(taker)
            return False
        taker.turn = number
        taker.passed[number] = connection
        if not self.sticky:
            self._later(self._tick, TICK, self._tick)
        return True

    # -- what workers say ------------------------------------------------------------------

    def _on_words(self, taker: Taker) -> None:
        for _ in range(AT_ONCE):
            if not self._hear(taker):
                break
        self._deal()

    def _hear(self, taker: Taker) -> bool:
        """One word of a worker; was there any?"""
        try:
            said = taker.ours.recv(line.WORD.size)
        except BlockingIOError:
            return False
        try:
            word, number = line.WORD.unpack(said)
        except struct.error:
            _log.warning("worker %s says what is no word: %r", taker.route, said)
        else:
            self._follow(taker, word, number)
        return True

    def _follow(self, taker: Taker, word: bytes, number: int) -> None:
        if word in {line.ACCEPTED, line.COUNTED}:
            taker.slow = False
            connection = taker.passed.pop(number, None)
            if connection is not None:
                descriptors.close(connection.fd)
                taker.open += word == line.COUNTED
        elif word == line.ENDED:
            taker.open = max(0, taker.open - number)
        elif word == line.REFUSED:
            self._return(taker, [number])
            self._shorten(taker)
        elif word == line.LISTEN:
            taker.listening = True
            try:
                self._listen(number)
            except OSError as error:
                _log.warning("%s: listen(%d): %s", self, number, error)
        else:
            _log.warning("worker %s says an unknown word: %r", taker.route, word)

    def _shorten(self, taker: Taker) -> None:
        """Let it be for a while: it, or the kernel, has no room for one more."""
        taker.short = True
        self._later(taker, RECOVERY, functools.partial(self._recover, taker))

    def _recover(self, taker: Taker) -> None:
        taker.short = False
        self._deal()

    # -- taking back -----------------------------------------------------------------------

    def _take_back(self, taker: Taker) -> None:
        """Take out of the line what its program has not taken out of it."""
        numbers = []
        with contextlib.suppress(BlockingIOError):
            while (passed := line.take(taker.theirs)) is not None:
                line.close(passed.fd)  # a second copy
                numbers.append(passed.number)
        # Only now: what was not there was taken out by the program, which may have said so.
        while self._hear(taker):
            pass
        self._return(taker, numbers)

    def _return(self, taker: Taker, numbers: Iterable[int]) -> None:
        """These, passed to ``taker``, wait for somebody again; oldest first."""
        back = [taker.passed.pop(number) for number in numbers if number in taker.passed]
        self._waiting.extendleft(reversed(back))

    def _reclaim(self) -> None:
        """Take from who lets a connection lie, if somebody is there to whom it can go."""
        for taker in self._takers.values():
            if taker.slow and taker.passed:
                others = sum(one.is_free and not one.slow for one in self._takers.values())
                if others <= len(self._waiting):
                    return
                self._take_back(taker)
                taker.patience = PATIENCE
                self._later(self._tick, TICK, self._tick)

    def _tick(self) -> None:
        """Look who lets a connection lie, as long as there is somebody who might."""
        again = False
        for taker in self._takers.values():
            oldest = next(iter(taker.passed), None)
            if oldest is not None and oldest == taker.seen:
                taker.slow = True  # no need to look again: an end of that is told
            elif oldest is not None:
                again = True
            elif taker.slow:
                taker.patience -= 1
                taker.slow = taker.patience > 0
                again = again or taker.slow
            taker.seen = oldest
        self._deal()
        if again:
            self._later(self._tick, TICK, self._tick)

    # -- timers ----------------------------------------------------------------------------

    def _later(self, key: object, seconds: float, call: Callable[[], None]) -> None:
        """Call it once, unless it is to be called already."""
        if key not in self._timers and not self._closed:

            def due() -> None:
                del self._timers[key]
                call()

            self._timers[key] = self._call_later(seconds, due)

    def _cancel(self, key: object) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()


def _reset(connection: Connection) -> None:
    """End it as closing the listener would have ended it."""
    descriptors.disown(connection.fd)
    with contextlib.suppress(OSError), socket.socket(fileno=connection.fd) as client:
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
