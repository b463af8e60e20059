"""A pool's end of the line to one worker: what is under way there, and how it gets there."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from mpcluster import descriptors
from mpcluster.outbox import NO_ROOM, NO_SIGNAL, Outbox, Outgoing
from mpcluster.pool import ring
from mpcluster.pool.calls import Call
from mpcluster.pool.records import Stream
from mpcluster.pool.ring import Ring
from mpcluster.pool.runs import Run
from mpcluster.pool.stock import Stock
from mpcluster.pool.worker import Berth

__all__ = ["Line", "Link"]

#: Bytes that one call writes; the kernel's buffer takes about as much.
_AT_ONCE: Final = 1 << 17


class Line:
    """The descriptors that join a worker to its pool, made before it is forked."""

    def __init__(self) -> None:
        with descriptors.opening():
            self.ours, self.theirs = socket.socketpair()
            descriptors.own(self.ours)
            descriptors.own(self.theirs)
            made: list[socket.socket | int] = [self.ours, self.theirs]
            try:
                self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                descriptors.own(self.doorbell)
                made.append(self.doorbell)
                self.memory = Ring.create()
            except BaseException:  # no more descriptors, or no memory
                for one in made:
                    descriptors.close(one)
                raise
        self.ours.setblocking(False)  # noqa: FBT003

    @property
    def berth(self) -> Berth:
        """The worker's end, for a child that inherits it."""
        return Berth(self.theirs.fileno(), self.doorbell, self.memory)

    @property
    def inherited(self) -> tuple[int, int, int]:
        """What the worker must have."""
        return self.theirs.fileno(), self.doorbell, self.memory

    def close_theirs(self) -> None:
        """The worker has its end. Idempotent."""
        memory, self.memory = self.memory, -1
        if memory >= 0:
            descriptors.close(self.theirs)
            descriptors.close(memory)

    def abandon(self) -> None:
        """There is no worker."""
        self.close_theirs()
        descriptors.close(self.ours)
        descriptors.close(self.doorbell)


class Link:
    """One worker, as the dispatcher sees it.

    Attributes:
        under_way: The calls that were sent and not answered, by the number of the order; a
            run by that of the first that is not answered.
        usable: It may be given work. Guarded, as the next three, by the dispatcher's lock.
        is_idle: It stands in the dispatcher's list of idle links.
        filling: A thread is about to send it something; no other does.
        quota: How many more calls it may get, None for any number.
    """

    def __init__(self, line: Line, process: Any, quota: int | None, kept: int) -> None:
        self.process = process
        self.pid: int = process.pid
        self.ring = Ring(line.memory)
        line.close_theirs()
        self.doorbell = line.doorbell
        self.socket = line.ours
        label = f"worker {process.name} (pid {process.pid})"
        cells = self._cells = self.ring.cells
        self.stream = Stream(self.socket, label, cells, ring.ANSWERS_BACK)
        #: By the one who fills.
        self.stock = Stock(cells, ring.ORDERS_BACK, kept)
        self.under_way: dict[int, Call] = {}
        self.known: set[int] = set()  # functions that the worker knows
        self.usable = True
        self.is_idle = False
        self.filling = False
        self.quota = quota
        self.depth = 1
        self.quickest = 0.0  # seconds that what it was given last takes, as far as is known
        self.is_closed = False
        #: The order for whose sake the worker was killed, and the error that it gets.
        self.execution: tuple[int | None, BaseException] | None = None
        self.run_of: Any = None  #: the function of the run that is being answered
        self.was_ready = False  #: it was, when it died
        self.begun_at_tick = -1
        self.window = 0  # orders before this were taken back, and may still lie in the worker
        self.next_number = 1
        #: Called when something waits for the socket to become writable.
        self.on_backlog: Callable[[], object] | None = None
        self._outbox = Outbox()
        # Held by whoever writes: the thread that fills it, or the one that learns that there
        # is room. Never waited under: the calls to the kernel below do not block.
        self._writing = threading.RLock()

    def __repr__(self) -> str:
        state = "idle" if self.is_idle else "usable" if self.usable else "leaving"
        return f"<Link to pid {self.pid}: {state}, {self.load} under way>"

    @property
    def load(self) -> int:
        """How many calls it has: the one that it does, and what lies behind that."""
        if not self.under_way:
            return 0
        # Asked for each call; so no function is called for it.
        begun = 1 << 62 if self.is_closed else self._cells[ring.BEGUN]
        behind = self.next_number - (begun + 1 if begun >= self.window else self.window)
        return 1 + behind if behind > 0 else 1

    @property
    def begun(self) -> int:
        """Number of the order that the worker has begun last."""
        return int(self.ring.cells[ring.BEGUN]) if not self.is_closed else 1 << 62

    @property
    def began_at(self) -> float:
        """When that was, in seconds of the monotonic clock."""
        return int(self.ring.cells[ring.SINCE]) * 1e-9

    @property
    def is_ready(self) -> bool:
        """Has it got through its initializer?"""
        return self.is_closed or bool(self.ring.cells[ring.READY])

    # -- taking back -----------------------------------------------------------------------

    def take_back(self) -> list[Call]:
        """Take back what the worker has not begun. Under the dispatcher's lock.

        See :mod:`mpcluster.pool.ring`. Only one lot at a time: the worker must have come
        past the last before the next.
        """
        begun = self.begun
        if begun < self.window - 1:
            return []
        cells = self.ring.cells
        cells[ring.FROM] = begun + 1
        cells[ring.TO] = self.window = self.next_number
        self.ring.fence()
        begun = self.begun
        back = []
        for number, call in sorted(self.under_way.items()):
            if number + call.count <= begun + 1:
                continue
            if number > begun:
                if self.under_way.pop(number, None) is None:
                    continue  # it is just being claimed
            elif type(call) is Run:  # it is in the middle of it
                call = call.cut(begun + 1 - number)  # noqa: PLW2901
            call.link = None
            back.append(call)
            if self.quota is not None:
                self.quota += call.count
        return back

    # -- claiming --------------------------------------------------------------------------

    def claim(self, number: int, count: int = 1) -> Call | None:
        """Take order ``number``, which is answered, out of what is under way.

        Of a run, as many as ``count`` from there on. Under the dispatcher's lock, so that
        nobody sees a run that is being taken apart; but see :meth:`claim_single`.
        """
        call = self.under_way.pop(number, None)
        if call is None:
            run = self.find(number)
            if run is None:
                return None
            assert type(run) is Run
            call = run.cut(number - run.number)
        if call.count > count:
            assert type(call) is Run
            rest = call.cut(count)
            self.under_way[rest.number] = rest
        return call

    def claim_single(self, number: int) -> Call | None:
        """Likewise, if it is a call by itself; otherwise None. Needs no lock."""
        call = self.under_way.get(number)
        if call is None or type(call) is Run:
            return None
        return self.under_way.pop(number, None)

    def find(self, number: int) -> Call | None:
        """The call, or the run, to which an order belongs. Under the dispatcher's lock."""
        found = self.under_way.get(number)
        if found is not None:
            return found
        for call in self.under_way.values():
            if call.number < number < call.number + call.count:
                return call
        return None

    # -- writing ---------------------------------------------------------------------------

    def write(self, pieces: Sequence[bytes | Outgoing]) -> None:
        """Send, or queue what the kernel has no room for. Never blocks.

        A worker that is gone is no error here: its death is told elsewhere.
        """
        with self._writing:
            if self.is_closed:
                for piece in pieces:
                    if type(piece) is Outgoing:
                        piece.drop()
                return
            if not self._outbox.size and Outgoing not in map(type, pieces):
                self._write_bytes(b"".join(pieces) if len(pieces) > 1 else pieces[0])  # type: ignore[arg-type]
                return
            for piece in pieces:
                self._outbox.put(
                    piece if type(piece) is Outgoing else Outgoing([piece], len(piece))  # type: ignore[list-item,arg-type]
                )
            self._flush()

    def _write_bytes(self, data: bytes) -> None:
        try:
            sent = self.socket.send(data, NO_SIGNAL)
        except OSError as error:
            if error.errno not in NO_ROOM:
                return
            sent = 0
        if sent < len(data):
            outgoing = Outgoing([data], len(data))
            outgoing.advance(sent)
            self._outbox.put(outgoing)
            self._flush()

    def flush(self) -> None:
        """The socket has become writable."""
        with self._writing:
            if not self.is_closed:
                self._flush()

    def _flush(self) -> None:
        try:
            self._outbox.write(self.socket)
        except OSError:
            self._outbox.clear()
        if self._outbox and self.on_backlog is not None:
            self.on_backlog()

    @property
    def events(self) -> int:
        """What to wait for at the socket."""
        return select.EPOLLIN | (select.EPOLLOUT if self._outbox else 0)

    def say_goodbye(self) -> None:
        """No more orders: the worker ends when it has done those that it has."""
        with self._writing, contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of everything; the worker is dead."""
        with self._writing:
            if self.is_closed:
                return
            self.is_closed = True
            self.on_backlog = None  # it holds this link, and so a dead process
            self._outbox.clear()
            self.stream.close()
            self.stock.close()
            descriptors.close(self.socket)
            descriptors.close(self.doorbell)
            self.ring.close()
