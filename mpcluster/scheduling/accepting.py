"""The master accepts: the common part of ``round_robin``, ``least_connections``, ``ip_hash``.

::

    kernel's backlog ──accept──► waiting ──pick, pass──► passed ──ACCEPTED──► the worker's alone
                                    ▲                        │
                                    └────── taken back ──────┘  it drains, died, closed its
                                                                listener, or lets it lie

The master keeps its copy of a connection until the worker's *program* has accepted it. One
that was passed and not accepted is never lost with the worker: it goes to another, or waits
in the master for a replacement, for as long as the listener waits for one.

Whether the master accepts at all is decided here and seen to by :mod:`~.door`, who is whom by
:mod:`~.takers`, who lets a connection lie by :mod:`~.patience`, and what travels by :mod:`~.line`.

Everything runs in the master's watcher thread and does no more than a bounded number of
calls a round, none of which blocks.
"""

from __future__ import annotations

import abc
import itertools
import logging
import socket
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from mpcluster import descriptors
from mpcluster.messages import Route
from mpcluster.scheduling import line
from mpcluster.scheduling.base import MASTER, Kept, Policy
from mpcluster.scheduling.door import Door
from mpcluster.scheduling.patience import Patience
from mpcluster.scheduling.taker import Connection, Taker
from mpcluster.scheduling.takers import Takers
from mpcluster.scheduling.timers import Timers
from mpcluster.scheduling.waiting import Waiting

__all__ = ["Accepting"]

_log = logging.getLogger("mpcluster")

#: Connections that are accepted, and words of a worker that are heard, in one round.
AT_ONCE: Final = 32


class Accepting(Policy):
    """Accepts in the master, and passes each connection to the worker of :meth:`pick`.

    A policy of one's own is a subclass with that one method. It may set:

    * ``sticky``: each connection belongs to one worker, be that free or not.
    * ``in_turn``: workers get equally many. The one whose turn it is is waited for, if it is
      not free, until it lets connections lie; up to 4 are passed to it ahead.
    * ``counts``: workers tell when a connection ends, so that :attr:`Taker.open` is right.
      It costs the worker a system call a connection. (A limit counts by itself.)
    """

    sticky: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False

    def __init__(self, kept: Kept) -> None:
        if kept.max_connections is not None:
            self.counts = True
        self._watch = kept.watch
        self._timers = Timers(kept.call_later)
        self._takers = Takers(kept.max_connections, in_turn=self.in_turn)
        self._patience = Patience(self._takers, self._timers, self._deal)
        self._door = Door(kept, self._timers, self._on_clients, self._deal)
        self._direct: set[Route] = set()  # they accept from the listener itself
        self._waiting = Waiting(self._takers)
        self._turns = itertools.count(1)
        self._closed = self._has_let_go = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._door} {self._waiting.held} waiting {self._takers}>"

    # -- for subclasses --------------------------------------------------------------------

    @abc.abstractmethod
    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        """Choose who gets a connection. Quick, and without a side effect.

        Args:
            peer: The client's address, as ``accept()`` has it.
            takers: At least one, in the order of their slots: those that are free; of a
                ``sticky`` policy all that take connections, and what is picked may wait;
                ``in_turn``, the one whose turn it is.

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
        self._door.listen(backlog)
        ours, theirs = line.open_pair()
        taker = self._takers.enter(route, ours, theirs)
        self._watch.add(ours.fileno(), lambda _: self._on_words(taker))
        return theirs

    def add_direct(self, route: Route, backlog: int | None) -> socket.socket:
        """Let ``route`` accept from the listener itself, beside the master.

        For loops that accept in C. What they take, nobody deals: as ``shared``.
        """
        self._door.listen(backlog)
        self._direct.add(route)
        return self._door.socket

    def remove(self, route: Route, *, crashed: bool) -> bool:
        """Forget a user; what it was passed and has not accepted goes to others."""
        self._direct.discard(route)
        taker = self._takers.get(route)
        if taker is not None:
            self._waiting.requeue(taker)
            self._take_back(taker)
            # Whoever took these out of the line is gone, or has closed it, before it could
            # say so: nobody has read a byte from them.
            self._return(taker, list(taker.passed))
            if not crashed and not taker.draining:
                self._give_up_slot(taker)
            self._dismiss(taker)
        self._deal()
        return not self._takers and not self._direct

    def drain(self, route: Route) -> list[socket.socket]:
        """Pass ``route`` nothing more, and take back what its program has not accepted."""
        taker = self._takers.get(route)
        if taker is not None and not taker.draining:
            taker.draining = True
            self._waiting.requeue(taker)  # first: what is taken back is older
            self._take_back(taker)
            self._give_up_slot(taker)
            self._deal()
        return []

    def let_go(self) -> None:
        """Accept nothing more; what waits here is dealt on."""
        self._has_let_go = True
        self._deal()

    @property
    def in_hand(self) -> int:
        """Those that wait here, and those that were passed and not accepted yet."""
        return self._waiting.held + sum(len(taker.passed) for taker in self._takers)

    def close(self) -> None:
        """Close the listener and every line; connections that wait here end with a reset."""
        if self._closed:
            return
        self._closed = True
        self._timers.close()
        for taker in list(self._takers):
            self._waiting.requeue(taker)
            self._take_back(taker)
            # Of these the program may have one by now: it only loses the master's copy.
            for connection in taker.passed.values():
                descriptors.close(connection.fd)
            self._dismiss(taker)
        self._waiting.reset()
        self._door.close()

    def _dismiss(self, taker: Taker) -> None:
        self._takers.remove(taker)
        self._patience.forget(taker)
        self._watch.remove(taker.ours.fileno())
        descriptors.close(taker.ours)
        descriptors.close(taker.theirs)

    def _give_up_slot(self, leaving: Taker) -> None:
        if self._takers.give_up_slot(leaving) and self.sticky:
            for taker in self._takers:
                self._waiting.requeue(taker)

    # -- dealing ---------------------------------------------------------------------------

    def _deal(self) -> None:
        """Something has changed: pass on what waits here, then accept again if that may be."""
        if self._closed:
            return
        for taker in self._patience.overdue(self._waiting):
            self._take_back(taker)
        self._pass_on()
        self._door.tend(wanted=self._may_accept())

    def _on_clients(self) -> None:
        """Clients wait in the kernel's queue; what was said before they came is heard first."""
        for taker in self._takers:
            if taker.passed or self.counts:
                self._listen_to(taker)
        for _ in range(AT_ONCE):
            connection = self._door.accept() if self._may_accept() else None
            if connection is None:
                break
            self._waiting.add(connection)
            self._pass_on()
        self._door.tend(wanted=self._may_accept())

    def _may_accept(self) -> bool:
        if self._closed or self._has_let_go or self._door.resting or self._waiting:
            return False
        if self.sticky:
            return self._waiting.has_room and bool(self._takers.taking())
        return bool(self._takers.ready())

    def _pass_on(self) -> None:
        if self._door.resting:
            return
        if self.sticky:
            takers = self._takers.taking()
            while takers and self._waiting:
                taker = self._picked(self._waiting.first.peer, takers)
                taker.queue.append(self._waiting.take())
            for taker in takers:
                while taker.queue and taker.is_free and self._pass(taker, taker.queue[0]):
                    taker.queue.popleft()
            return
        while self._waiting and (ready := self._takers.ready()):
            connection = self._waiting.first
            if self._pass(self._picked(connection.peer, ready), connection):
                self._waiting.take()

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
            self._patience.let_be(taker)
            return False
        taker.turn = number
        taker.passed[number] = connection
        if not self.sticky:
            self._patience.look_soon()
        return True

    # -- what workers say ------------------------------------------------------------------

    def _on_words(self, taker: Taker) -> None:
        self._listen_to(taker)
        self._deal()

    def _listen_to(self, taker: Taker) -> None:
        for _ in range(AT_ONCE):
            if not self._hear(taker):
                break

    def _hear(self, taker: Taker) -> bool:
        """One word of a worker; was there any?"""
        try:
            word, number = line.hear(taker.ours)
        except BlockingIOError:
            return False
        if word in {line.ACCEPTED, line.COUNTED}:
            accepted = taker.accepted(number, counted=word == line.COUNTED)
            if accepted is not None:
                descriptors.close(accepted.fd)
            if taker.passed:
                self._patience.look_soon()  # at the next one
        elif word == line.ENDED:
            taker.open = max(0, taker.open - number)
        elif word == line.REFUSED:
            self._return(taker, [number])
            self._patience.let_be(taker)
        elif word == line.LISTEN:
            taker.listening = True
            try:
                self._door.listen(number)
            except OSError as error:
                _log.warning("%s: listen(%d): %s", self, number, error)
        else:
            _log.warning("worker %s says what is no word: %r", taker.route, word)
        return True

    # -- taking back -----------------------------------------------------------------------

    def _take_back(self, taker: Taker) -> None:
        """Take out of the line what its program has not taken out of it."""
        numbers = line.recall(taker.theirs)
        # Only now: what was not there was taken out by the program, which may have said so.
        while self._hear(taker):
            pass
        self._return(taker, numbers)

    def _return(self, taker: Taker, numbers: Iterable[int]) -> None:
        """These, passed to ``taker``, wait for somebody again; oldest first."""
        self._waiting.put_back([taker.passed.pop(one) for one in numbers if one in taker.passed])
