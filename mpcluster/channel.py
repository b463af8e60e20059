"""One end of the line between a worker and its parent: any object, either way.

It takes over one end of a ``multiprocessing.Pipe()`` and never blocks in it: a message is
written by the thread that sends it, at once and in one call where the kernel has room; what
it has no room for waits in an :class:`~mpcluster.outbox.Outbox`, up to ``limit`` bytes.

Who does what::

    send()      any thread. Pickles, writes; waits only where too much waits already
    flush()     whoever learns that the descriptor is writable (``on_backlog`` tells him to
                look): the watcher. A sender that waits does it himself
    receive()   one thread at a time: the watcher, or the owner where there is none
    close()     any thread
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from mpcluster import descriptors, memfd, pickling, wire
from mpcluster.errors import ChannelClosedError, ChannelFullError, SerializationError
from mpcluster.inbox import Inbox
from mpcluster.outbox import NO_ROOM, NO_SIGNAL, Outbox, Outgoing
from mpcluster.pickling import Pickled, Segment
from mpcluster.wire import MAX_DESCRIPTORS, Kind, Received, plain_header

__all__ = ["Channel", "Kind", "Received"]

#: Bytes that gather behind a full kernel before a sender tries again to write them. Each
#: try costs a call; the watcher, or whoever waits, writes as soon as there is room.
_TRY_AGAIN: Final = 1 << 16
#: Bytes up to which a frame is joined and written in one piece: cheaper than two pieces.
_JOIN: Final = 1 << 14


class Channel:
    """Send and receive objects; see the module for who may call what.

    It is for the process that made it. A forked child has no use for its parent's channels:
    :mod:`mpcluster.descriptors` closes them right after the fork, and as no method is
    called on them there, a lock that was held at that moment does no harm.

    Args:
        connection: One end of a duplex ``Pipe()``. It is closed, and the channel has a
            descriptor of its own, owned in the sense of :mod:`mpcluster.descriptors`. Or the
            number of such a descriptor, which the channel takes over.
        label: Who is at the other end, for errors and the log: ``"worker 3 (pid 41)"``.
        limit: Bytes that may wait for the other side, and, apart, bytes of memfd memory
            that it has not yet taken over. One message of any size is let in when none
            waits.
        send_timeout: Seconds that a sender waits for a reader that takes nothing at all.
    """

    # `_lock` protects the outbox, the credit and the life of the descriptor. Under it: the
    # outbox's calls to the kernel, which never block. Never: pickling, user code, waiting.
    # `_acknowledged` is a condition over it, for senders that wait for credit alone.
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
        with descriptors.opening():
            if isinstance(connection, int):
                self._socket = socket.socket(socket.AF_UNIX, fileno=connection)
                descriptors.own(self._socket)
            else:
                number = connection.fileno()
                self._socket = socket.fromfd(number, socket.AF_UNIX, socket.SOCK_STREAM)
                descriptors.own(self._socket)
                descriptors.close(connection)
        self._socket.setblocking(False)  # noqa: FBT003
        self._send_now = self._socket.send
        self.limit = limit
        self.send_timeout = send_timeout
        #: Called by a sender, without a lock, when something waits that did not before.
        self.on_backlog: Callable[[Channel], object] | None = None
        #: Called by a sender that waits when something can be received, unless
        #: `read_elsewhere`: two sides that only send must not wait for each other. It has
        #: to receive and put aside; it must not run user code, for it may come nested.
        self.on_readable: Callable[[Channel], object] | None = None
        #: A watcher reads this channel, so a sender that waits does not.
        self.read_elsewhere = False
        self._lock = threading.Lock()
        self._acknowledged = threading.Condition(self._lock)
        self._turn = threading.RLock()
        self._outbox = Outbox()
        self._inbox = Inbox(self._socket, label)
        self._tried = 0  # the outbox's `entered` when it was last written
        self._told = False  # that the watcher knows of the backlog
        self._lent = 0  # bytes of memfd memory that the other side has not yet taken over
        self._returned = 0  # bytes that it ever has
        self._taking_in = False
        self._users = 0  # threads that use the descriptor outside the lock
        self._closed = False
        self._cut_off = False  # the other side reads no more

    def __repr__(self) -> str:
        state = "closed" if self._closed else "cut off" if self._cut_off else "open"
        return f"<Channel to {self.label}: {state}, {self._outbox.size} bytes wait>"

    def fileno(self) -> int:
        """The descriptor to watch; -1 when closed."""
        return self._socket.fileno()

    @property
    def label(self) -> str:
        """Who is at the other end, for errors and the log."""
        return self._inbox.label

    @label.setter
    def label(self, label: str) -> None:
        self._inbox.label = label

    @property
    def closed(self) -> bool:
        """Was :meth:`close` called here?"""
        return self._closed

    @property
    def eof(self) -> bool:
        """Is the other side gone, and everything that it sent received?"""
        return self._inbox.eof

    @property
    def broken(self) -> bool:
        """Did something come that is no message? It counts as the end."""
        return self._inbox.broken

    @property
    def wants_write(self) -> bool:
        """Does something wait for :meth:`flush`?"""
        return bool(self._outbox)

    # -- sending --------------------------------------------------------------------------

    def send(
        self,
        message: object,
        kind: Kind = Kind.USER,
        *,
        handed_over: bool = False,
        may_wait: bool = True,
    ) -> None:
        """Send any object. When this returns, it and what it refers to may be changed.

        Args:
            message: Anything that cloudpickle takes, with sockets and Connections in it;
                the sender may close his own copies of those as soon as this returns.
            kind: Whom it is for.
            handed_over: Return only when all of it is in the kernel, so that the process
                may end. (With a reader that stalls half-way through this very message for
                `send_timeout`, it stays queued.)
            may_wait: Without, the call never blocks; for threads that others depend on.

        Raises:
            SerializationError: It cannot travel; nothing was sent.
            ChannelFullError: The other side does not read; nothing was sent.
            ChannelClosedError: Either side has closed.
        """
        pickled = pickling.dump(message)
        segments, buffers, carried = pickled
        mark = None
        if len(segments) == 1 and len(segments[0]) <= _JOIN and not (buffers or carried):
            mark = self._write_small(plain_header(kind, len(segments[0])) + segments[0])
        if mark is None:
            frame = self._frame(pickled, kind, may_wait=may_wait)
            # An order or an answer that did not get through would leave the other side
            # waiting for ever. It is small, and those who send them must not wait.
            urgent = kind is Kind.CONTROL and not may_wait
            mark = self._enter(frame, may_wait=may_wait, urgent=urgent)
        if mark:
            self._follow(mark, handed_over=handed_over)

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
            if self._closed or self._cut_off or self._inbox.over:
                self._check_open()
            if self._outbox.size:
                return None
            try:
                sent = self._send_now(data, NO_SIGNAL)
            except BlockingIOError:
                return None
            except OSError as error:
                raise self._lost(error) from error
            if sent == len(data):
                return 0
            frame = Outgoing([data], len(data))
            frame.advance(sent)
            return self._outbox.put(frame)

    def _frame(self, pickled: Pickled, kind: Kind, *, may_wait: bool) -> Outgoing:
        """Put a message in its form: a memfd where that is cheaper, and there is room."""
        segments, buffers, carried = pickled
        if len(carried) >= MAX_DESCRIPTORS:
            text = f"a message carries {len(carried)} descriptors; {MAX_DESCRIPTORS - 1} can travel"
            raise SerializationError(text)
        sizes = [sum(map(len, segments)), *map(len, buffers)]
        size = sum(sizes)
        if size >= memfd.THRESHOLD:
            frame = self._memory_frame(pickled, sizes, kind, may_wait=may_wait)
            if frame is not None:
                return frame
        table = wire.table(sizes[1:])
        head = wire.header(kind, len(table) + size, buffers=len(buffers), descriptors=len(carried))
        pieces: list[Segment] = [head + table, *segments, *buffers]
        return Outgoing(pieces, len(head) + len(table) + size, carried)

    def _memory_frame(
        self, pickled: Pickled, sizes: list[int], kind: Kind, *, may_wait: bool
    ) -> Outgoing | None:
        segments, buffers, carried = pickled
        _, memory = memfd.layout(sizes)
        self._borrow(memory, may_wait=may_wait)
        fd = None
        try:
            fd = memfd.create([segments, *([buffer] for buffer in buffers)])
        finally:
            if fd is None:
                self._give_back(memory)
        if fd is None:
            return None
        head = wire.memory_frame(kind, sizes, 1 + len(carried))
        return Outgoing([head], len(head), carried, [fd], lent=memory)

    def _enter(self, frame: Outgoing, *, may_wait: bool, urgent: bool) -> int:
        """Write or queue a frame, when there is room for it; 0, or the mark to wait for."""
        try:
            while True:
                with self._lock:
                    self._check_open()
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

    # -- credit: memfd memory is the kernel's, and no buffer of the socket bounds it ----------

    def _borrow(self, size: int, *, may_wait: bool) -> None:
        while True:
            with self._lock:
                self._check_open()
                if self._has_credit(size):
                    self._lent += size
                    return
            self._wait(lambda: self._has_credit(size), may_wait=may_wait)

    def _has_credit(self, size: int) -> bool:
        return not self._lent or self._lent + size <= self.limit

    def _give_back(self, size: int) -> None:
        if size:
            with self._lock:
                self._lent = max(0, self._lent - size)
                self._returned += size
                self._acknowledged.notify_all()

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
                    moved, backlog = self._outbox.left + self._returned, bool(self._outbox)
                    if moved != seen:
                        seen, until = moved, time.monotonic() + self.send_timeout
                    left = until - time.monotonic()
                    if left <= 0:
                        raise self._full(f"for {self.send_timeout:g} s")
                    reading = self._reads_itself()
                    if mine and not backlog and not reading:
                        self._acknowledged.wait(left)
                        continue
                    self._users += mine
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

    # -- receiving ------------------------------------------------------------------------

    def receive(self, limit_bytes: int = 1 << 20) -> list[Received]:
        """All whole messages that are there. Never blocks; one thread at a time.

        An empty list means that there was none, or that it is over: :attr:`eof`,
        :attr:`broken` and :attr:`closed` tell. After a message that cannot be unpickled
        (:attr:`Received.error`) it goes on with the next.

        Args:
            limit_bytes: Read no more once the messages measure so much; what is left keeps
                the descriptor readable.
        """
        with self._lock:
            if self._closed:
                return []
            self._users += 1
        try:
            received = self._inbox.take(limit_bytes)
            if self._inbox.acknowledged or self._inbox.taken_over:
                self._settle()
        finally:
            self._leave()
        return received

    def _settle(self) -> None:
        """Credit, both ways."""
        acknowledged, self._inbox.acknowledged = self._inbox.acknowledged, 0
        self._give_back(acknowledged)
        taken_over, self._inbox.taken_over = self._inbox.taken_over, 0
        if not taken_over:
            return
        data = wire.acknowledgement(taken_over)
        with self._lock:
            if self._closed or self._cut_off:
                return
            # Whatever waits: it is small, and the other side may be waiting for it.
            self._outbox.put(Outgoing([data], len(data)))
            self._write()
        self._tell()

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """End both directions; drop what is queued. Idempotent, from any thread.

        What the other side has not read yet it can still read. A thread that waits in this
        channel is woken, and the last one inside closes the descriptor.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._outbox.clear()
            with contextlib.suppress(OSError):  # the other side was quicker
                self._socket.shutdown(socket.SHUT_RDWR)
            self._acknowledged.notify_all()
            self._users += 1
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            descriptors.close(self._socket)
            self._inbox.close()

    def _check_open(self) -> None:
        if self._closed:
            text = f"the channel to {self.label} is closed"
            raise ChannelClosedError(errno.EPIPE, text)
        if self._cut_off or self._inbox.eof or self._inbox.broken:
            text = f"{self.label} has closed its end of the channel, or is dead"
            raise ChannelClosedError(errno.EPIPE, text)

    def _lost(self, error: OSError) -> ChannelClosedError:
        """Nothing can be sent any more. Under the lock."""
        self._cut_off = True
        self._outbox.clear()
        self._acknowledged.notify_all()
        text = f"{self.label} has closed its end of the channel, or is dead ({error.strerror})"
        return ChannelClosedError(errno.EPIPE, text)

    def _full(self, how_long: str) -> ChannelFullError:
        waiting, lent = self._outbox.size, self._lent
        text = (
            f"{self.label} does not read: {waiting} bytes wait for it and {lent} bytes of shared "
            f"memory are not taken over, {how_long}"
        )
        return ChannelFullError(errno.EAGAIN, text)
