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

from mpcluster import wire
from mpcluster.outbox import Outgoing
from mpcluster.sender import Sender
from mpcluster.wire import Kind, Received

__all__ = ["Channel", "Kind", "Received"]


class Channel(Sender):
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

    def __repr__(self) -> str:
        state = "closed" if self._line.closed else "cut off" if self._cut_off else "open"
        return f"<Channel to {self.label}: {state}, {self._outbox.size} bytes wait>"

    def fileno(self) -> int:
        """The descriptor to watch; -1 when closed."""
        return self._socket.fileno()

    def lane_fileno(self) -> int:
        """The lane's descriptor to watch, too; -1 where there is none, or at its end."""
        lane = self._inbox.lane
        return -1 if lane is None or lane.over or self._line.closed else lane.fd

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
        return self._line.closed

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

    # -- receiving ------------------------------------------------------------------------

    def receive(self, limit_bytes: int = 1 << 20, *, by_lane: bool = False) -> list[Received]:
        """All whole messages that are there. Never blocks; one thread at a time.

        An empty list means that there was none, or that it is over: :attr:`eof`,
        :attr:`broken` and :attr:`closed` tell. After a message that cannot be unpickled
        (:attr:`Received.error`) it goes on with the next.

        Args:
            limit_bytes: Read no more once the messages measure so much; what is left keeps
                the descriptor readable.
            by_lane: Look at the lane alone: only its descriptor is readable.
        """
        with self._lock:
            if self._line.closed:
                return []
            self._line.enter()
        try:
            received = self._inbox.take(limit_bytes, by_lane=by_lane)
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
            if self._line.closed or self._cut_off:
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
            if self._line.closed:
                return
            self._outbox.clear()
            self._line.shut()
            self._credit.wake()
            self._line.enter()
        self._leave()
