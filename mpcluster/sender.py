"""The sending half of a channel: written at once, queued, or waited for.

A message is written by the thread that sends it, in one call where the kernel has room; what
it has no room for waits in an :class:`~mpcluster.outbox.Outbox`, up to ``limit`` bytes.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, cast

from mpcluster import descriptors, frames, pickling, refusals, wire
from mpcluster.credit import Credit
from mpcluster.errors import ChannelClosedError, ChannelFullError
from mpcluster.inbox import Inbox
from mpcluster.lane import Lane
from mpcluster.line import Line
from mpcluster.outbox import NO_ROOM, NO_SIGNAL, Outbox, Outgoing
from mpcluster.pickling import Pickled
from mpcluster.wire import Kind, plain

__all__ = ["Sender"]

#: Bytes that gather behind a full kernel before a sender tries again to write them. Each
#: try costs a call; the watcher, or whoever waits, writes as soon as there is room.
_TRY_AGAIN: Final = 1 << 16
#: Small messages after which a lane is made for those to come.
_LANE_AFTER: Final = 64
#: Bytes up to which a frame is joined and written in one piece: cheaper than two pieces.
_JOIN: Final = 1 << 14


class Sender:
    """All of a :class:`~mpcluster.channel.Channel` that a sender meets; see there.

    Attributes:
        limit: Bytes that may wait for the other side.
        send_timeout: Seconds that a sender waits for a reader that takes nothing at all.
    """

    # `_lock` protects the outbox, the credit and the line. Under it: calls to the kernel
    # that never block. Never: pickling, user code, waiting (the credit's condition, for
    # senders that wait for credit alone, gives it up). But a signal handler may come there, and
    # send: so it is re-entrant, and what such a one sends is `_late`, and goes out with the call
    # that it has interrupted.
    #
    # `_turn` belongs to the one sender that waits for room; others that wait queue for it.
    # So one thread polls, flushes and, where nobody else reads, takes in. It is taken
    # before `_lock`, never under it. Re-entrant, as taking in may lead to a send.

    def __init__(
        self,
        connection: Connection[Any, Any] | int,
        *,
        label: str,
        limit: int = 64 << 20,
        send_timeout: float = 30.0,
    ) -> None:
        self._line = Line(connection)
        self._socket = self._line.socket
        self._send_now = self._socket.send
        self.limit = limit
        self.send_timeout = send_timeout
        #: Called by a sender, without a lock, when something waits that did not before.
        self.on_backlog: Callable[[Any], object] | None = None
        #: Called by a sender that waits when something can be received, unless
        #: `read_elsewhere`: two sides that only send must not wait for each other. It has
        #: to receive and put aside; it must not run user code, for it may come nested.
        self.on_readable: Callable[[Any], object] | None = None
        #: Asked by a sender before it waits: is this thread one that others depend on? Then
        #: it gets the error instead. Asked no sooner, for most messages need not wait.
        self.must_not_wait: Callable[[], bool] = lambda: False
        #: A watcher reads this channel, so a sender that waits does not.
        self.read_elsewhere = False
        self._lock = threading.RLock()
        # As threading.Condition asks it.
        self._is_inside = cast("Callable[[], bool]", self._lock._is_owned)  # type: ignore[attr-defined]  # noqa: SLF001
        self._late: deque[tuple[bytes | Pickled, Kind, bool]] = deque()
        self._turn = threading.RLock()
        self._credit = Credit(limit, self._lock)
        self._outbox = Outbox()
        self._inbox = Inbox(self._socket, label)
        #: May it open a lane? The other side has to watch that, too.
        self.opens_lane = False
        self._lane: Lane | None = None
        self._small = 0  # messages sent by the socket that a lane would have taken
        # Bytes written to the socket past the outbox; with those that it has written, the
        # position in the socket's stream, which counts from the LANE frame on.
        self._direct = 0
        self._tried = 0  # the outbox's `entered` when it was last written
        self._told = False  # that the watcher knows of the backlog
        self._taking_in = False
        self._cut_off = False  # the other side reads no more

    def send(
        self,
        message: object,
        kind: Kind = Kind.USER,
        *,
        handed_over: bool = False,
        may_wait: bool = True,
    ) -> None:
        """Send any object. When this returns, it and what it refers to may be changed.

        What a signal handler sends that came in the midst of this very call, goes out after it.

        Args:
            message: Anything that cloudpickle takes, with sockets and Connections in it;
                the sender may close his own copies of those as soon as this returns.
            kind: Whom it is for.
            handed_over: Return only when all of it is in the kernel, so that the process
                may end; not in a thread that must not wait. (With a reader that stalls
                half-way through this very message for `send_timeout`, it stays queued.)
            may_wait: Without, the call never blocks, as where :attr:`must_not_wait` says so.

        Raises:
            SerializationError: It cannot travel; nothing was sent.
            ChannelFullError: The other side does not read; nothing was sent.
            ChannelClosedError: Either side has closed.
        """
        pickled = pickling.dump_plain(message)
        if self._is_inside():
            self._late.append((pickled, kind, handed_over))
            return
        try:
            mark = None
            if type(pickled) is bytes and len(pickled) <= _JOIN:
                mark = self._write_small(plain(kind, pickled))
                if mark == 0:
                    return  # as nearly all
            may_wait = may_wait and not self.must_not_wait()
            self._send_slowly(pickled, kind, mark, handed_over=handed_over, may_wait=may_wait)
        finally:
            while self._late:
                pickled, kind, handed_over = self._late.popleft()
                may_wait = not self.must_not_wait()
                self._send_slowly(pickled, kind, None, handed_over=handed_over, may_wait=may_wait)

    def _send_slowly(
        self,
        pickled: bytes | Pickled,
        kind: Kind,
        mark: int | None,
        *,
        handed_over: bool,
        may_wait: bool,
    ) -> None:
        """What there was no room for at once, or is no small message."""
        if mark is None:
            parts = pickled if isinstance(pickled, tuple) else ([pickled], [], [])
            frame = frames.of(
                parts, kind, lambda size: self._borrow(size, may_wait=may_wait), self._give_back
            )
            # An order or an answer that did not get through would leave the other side
            # waiting for ever. It is small, and those who send them must not wait.
            urgent = kind is Kind.CONTROL and not may_wait
            mark = self._enter(frame, may_wait=may_wait, urgent=urgent)
        if mark:
            self._follow(mark, handed_over=handed_over and not self.must_not_wait())

    def flush(self) -> bool:
        """Write what the kernel takes now; is nothing left? Never blocks."""
        with self._lock:
            self._write()
            return not self._outbox

    def _write_small(self, data: bytes) -> int | None:
        """The usual case: a small message, nothing waits, one call.

        Returns:
            0: it is through. A mark: the rest is queued. None: it has to queue.
        """
        with self._lock:
            if self._line.closed or self._cut_off or self._inbox.over:
                self._check_open()
            outbox, lane = self._outbox, self._lane
            if outbox.size:
                return None
            if lane is not None:
                if lane.write(data, self._direct + outbox.written):
                    return 0
                self._leave_lane(lane)
                if outbox:
                    return None
            try:
                sent = self._send_now(data, NO_SIGNAL)
            except OSError as error:
                if error.errno in NO_ROOM:
                    return None
                raise self._lost(error) from error
            self._direct += sent
            if sent == len(data):
                self._small += 1
                return self._open_lane() if self._small == _LANE_AFTER and self.opens_lane else 0
            frame = Outgoing([data], len(data))
            frame.advance(sent)
            return outbox.put(frame)

    def _open_lane(self) -> int:
        """Make one and send its other end; as :meth:`_start`. Under the lock."""
        try:
            lane = Lane()
        except OSError:
            return 0  # too many descriptors: the socket does as well
        data = wire.lane()
        frame = Outgoing([data], len(data), (), [lane.give_reading_end()])
        try:
            mark = self._start(frame)
        except ChannelClosedError:
            frame.drop()
            lane.close()
            return 0  # the next message says so; this one was sent
        self._lane = lane
        self._direct = -self._outbox.written - self._outbox.size
        return mark

    def _leave_lane(self, lane: Lane) -> None:
        """The next frame goes by the socket, where nothing waits. Under the lock."""
        data = lane.leave()
        if data:
            self._start(Outgoing([data], len(data)))

    def _enter(self, frame: Outgoing, *, may_wait: bool, urgent: bool) -> int:
        """Write or queue a frame, when there is room for it; 0, or the mark to wait for."""
        try:
            while True:
                with self._lock:
                    self._check_open()
                    if self._lane is not None and not self._outbox:
                        self._leave_lane(self._lane)
                    if not self._outbox:
                        return self._start(frame)
                    if urgent or self._fits(frame.size):
                        mark = self._outbox.put(frame)
                        if self._outbox.entered - self._tried >= _TRY_AGAIN:
                            self._write()
                        return mark
                self._wait(lambda: self._fits(frame.size), may_wait=may_wait)
        except BaseException:
            self._give_back(frame.lent)
            frame.drop()
            raise

    def _fits(self, size: int) -> bool:
        return not self._outbox or self._outbox.size + size <= self.limit

    def _start(self, frame: Outgoing) -> int:
        """Write a frame that nothing waits before. Under the lock."""
        try:
            frame.write(self._socket)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise self._lost(error) from error
        self._direct += frame.sent
        return 0 if frame.sent == frame.size else self._outbox.put(frame)

    def _write(self) -> None:
        """Write what waits. Under the lock."""
        self._tried = self._outbox.entered
        try:
            self._outbox.write(self._socket)
        except OSError as error:
            self._lost(error)
        if not self._outbox:
            self._told = False

    def _follow(self, mark: int, *, handed_over: bool) -> None:
        """Something of ours waits: see to it that it is written."""
        try:
            if handed_over:
                self._wait(lambda: self._outbox.left >= mark, may_wait=True)
        except ChannelFullError:
            with self._lock:
                withdrawn = self._outbox.withdraw(mark)
            if withdrawn is None:
                return  # it has begun, so the rest stays
            self._give_back(withdrawn.lent)
            raise
        finally:
            self._tell()

    def _tell(self) -> None:
        """Let the watcher know, once, that there is something to flush."""
        if self._outbox and not self._told and self.on_backlog is not None:
            self._told = True
            self.on_backlog(self)

    def _borrow(self, size: int, *, may_wait: bool) -> None:
        while True:
            with self._lock:
                self._check_open()
                if self._credit.covers(size):
                    self._credit.lent += size
                    return
            self._wait(lambda: self._credit.covers(size), may_wait=may_wait)

    def _give_back(self, size: int) -> None:
        if size:
            with self._lock:
                self._credit.give_back(size)

    # -- waiting --------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], *, may_wait: bool) -> None:
        """Return when ``done()``, which is asked under the lock.

        Raises:
            ChannelFullError: The other side has taken nothing for `send_timeout`.
        """
        if not may_wait:
            raise self._full("and this thread must not wait for it")
        seen, until = -1, 0.0
        while True:
            mine = self._turn.acquire(timeout=self.send_timeout)
            try:
                with self._lock:
                    self._check_open()
                    self._write()
                    if done():
                        return
                    self._check_open()
                    moved, backlog = self._outbox.left + self._credit.returned, bool(self._outbox)
                    if moved != seen:
                        seen, until = moved, time.monotonic() + self.send_timeout
                    left = until - time.monotonic()
                    if left <= 0:
                        raise self._full(f"for {self.send_timeout:g} s")
                    reading = self._reads_itself()
                    if mine and not backlog and not reading:
                        self._credit.wait(left)
                        continue
                    if mine:
                        self._line.enter()
                if mine:
                    self._poll(left, write=backlog, read=reading)
            finally:
                if mine:
                    self._turn.release()

    def _poll(self, seconds: float, *, write: bool, read: bool) -> None:
        """Wait for the kernel; take in what has come. The caller is a counted user."""
        try:
            poll = select.poll()
            poll.register(self._socket, write * select.POLLOUT | read * select.POLLIN)
            if read and self._inbox.lane is not None and not self._inbox.lane.over:
                poll.register(self._inbox.lane.fd, select.POLLIN)
            events = poll.poll(seconds * 1000)
            if read and self.on_readable and any(e & ~select.POLLOUT for _, e in events):
                self._taking_in = True
                try:
                    self.on_readable(self)
                finally:
                    self._taking_in = False
        finally:
            self._leave()

    def _reads_itself(self) -> bool:
        return not (self.on_readable is None or self.read_elsewhere or self._taking_in)

    # -- the end, as a sender meets it ---------------------------------------------------------

    def _leave(self) -> None:
        with self._lock:
            last = self._line.leave()
        if last:
            self._line.close()
            self._inbox.close()
            if self._inbox.lane is not None:
                descriptors.close(self._inbox.lane.fd)
            if self._lane is not None:
                self._lane.close()

    def _check_open(self) -> None:
        if self._line.closed:
            raise refusals.closed(self._inbox.label)
        if self._cut_off or self._inbox.eof or self._inbox.broken:
            raise refusals.gone(self._inbox.label)

    def _lost(self, error: OSError) -> ChannelClosedError:
        """Nothing can be sent any more. Under the lock."""
        self._cut_off = True
        self._outbox.clear()
        self._credit.wake()
        return refusals.gone(self._inbox.label, error)

    def _full(self, how_long: str) -> ChannelFullError:
        return refusals.full(self._inbox.label, self._outbox.size, self._credit.lent, how_long)
