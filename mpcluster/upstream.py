"""A worker's channel to its parent: what it sends, asks and hears.

Nobody reads the channel until somebody wants to know what comes: a subscription, a request,
a worker that shares ports. From then on the worker's watcher reads it. So a plain
``ClusterProcess`` has no thread of ours unless it asks for one; what is sent to it waits
in the channel. The line itself is made when it is first needed: a child that neither
sends nor listens, as most plain processes, is started in less time without.
"""

from __future__ import annotations

import itertools
import logging
import select
import threading
from _thread import allocate_lock  # gevent's waits in its loop, which this reply is no part of
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from mpcluster import messages, watcher
from mpcluster.channel import Channel
from mpcluster.configuration import Settings
from mpcluster.errors import ChannelClosedError
from mpcluster.wire import Kind, Received

__all__ = ["Upstream"]

logger = logging.getLogger("mpcluster")
_CONTROL = Kind.CONTROL


class Upstream:
    """The line to the parent, in a worker.

    Args:
        connection: This side's end of it.
        settings: Those that the worker was forked with.
        handle: Called in the watcher's thread with each message but the replies, in order,
            and with ``None`` once the parent is gone.
    """

    def __init__(
        self,
        connection: Connection[Any, Any] | int,
        settings: Settings,
        handle: Callable[[Received | None], object],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._handle = handle
        # Guards the one making of the channel, the one start of reading, and what is watched
        # and closed. Taken by whoever is the first to send, subscribe or ask, and by who
        # reads; no signal handler of ours takes it. A child of this worker has a line of its
        # own.
        self._starting = threading.Lock()
        self._made: Channel | None = None
        self._attending = False
        self._lane = -1  # the descriptor that is watched for it
        # Held by the one thread that reads: the watcher, or a sender that waits and reads
        # meanwhile because nobody else does, or did when it began to wait. Never waited for.
        self._reading = threading.Lock()
        self._inbox: deque[Received | None] = deque()
        self._handling = False
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[object]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else 'open'}>"

    # -- any thread ------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Is the line closed, as far as this side has noticed?"""
        return self._made is not None and self._made.closed

    def attend(self) -> None:
        """From now on let the watcher read what comes. Idempotent; not for signal handlers."""
        channel = self._channel()
        with self._starting:
            if self._attending or channel.closed:
                return
            self._attending = True
            channel.read_elsewhere = True
            watcher.current().add(channel.fileno(), self._on_ready)
        self._watch_lane(channel)
        if self._inbox:
            watcher.current().call_soon(self._handle_inbox)  # a sender has read it

    def send(self, message: object, kind: Kind = Kind.USER) -> None:
        """Hand a message to the kernel, whole; in the watcher's thread, queue what waits.

        Raises:
            SerializationError, ChannelClosedError, ChannelFullError: As ``Channel.send``.
        """
        (self._made or self._channel()).send(message, kind, handed_over=True)

    def tell(self, message: object) -> None:
        """Send a control message; a parent that is gone is no error here."""
        try:
            self.send(message, Kind.CONTROL)
        except ChannelClosedError:
            pass

    def request(self, body: object) -> object:
        """Ask the root master and wait for its answer, in whatever thread this is.

        Raises:
            The error that the master answered with.
            ChannelClosedError: The line closed before an answer came.
        """
        future: Future[object] = Future()
        unanswered = allocate_lock()
        unanswered.acquire()
        future.add_done_callback(lambda _: unanswered.release())
        try:
            self.request_then(body, (), future)
            if watcher.current().in_thread():
                self._read_until(future)
            unanswered.acquire()
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            future.cancel()
            raise
        return future.result()

    def request_then(self, body: object, route: messages.Route, future: Future[object]) -> None:
        """Ask the root master on behalf of ``route`` below this worker; ``future`` gets it."""
        number = next(self._numbers)
        self._replies[number] = future
        self.attend()
        try:
            self.send(messages.Request(number, body, route), Kind.CONTROL)
        except BaseException:
            self._replies.pop(number, None)
            raise

    def flush(self) -> None:
        """Hand what is queued to the kernel, before the process ends."""
        channel = self._made
        if channel is not None and not channel.closed and channel.wants_write:
            poll = select.poll()
            poll.register(channel.fileno(), select.POLLOUT)
            while not channel.flush() and poll.poll(1000):
                pass

    def _channel(self) -> Channel:
        if self._made is None:
            with self._starting:
                if self._made is None:
                    channel = Channel(
                        self._connection,
                        label="the master",
                        limit=self._settings.channel_limit,
                        send_timeout=self._settings.send_timeout,
                    )
                    channel.opens_lane = True
                    channel.on_backlog = self._want_write
                    channel.on_readable = self._on_readable
                    channel.must_not_wait = watcher.in_thread
                    self._made = channel
        return self._made

    def _want_write(self, channel: Channel) -> None:
        self.attend()
        watcher.current().modify(channel.fileno(), watcher.READABLE | watcher.WRITABLE)

    def _on_readable(self, _channel: Channel) -> None:
        """A sender waits, and something has come. In the sender's thread."""
        self._take_in()
        if self._attending:  # since it began to wait
            watcher.current().call_soon(self._handle_inbox)

    # -- the watcher's thread --------------------------------------------------------------

    def _on_ready(self, events: int) -> None:
        channel = self._channel()
        if events & watcher.WRITABLE:
            # In this order: a sender that finds no room in between asks for it anew.
            watcher.current().modify(channel.fileno(), watcher.READABLE)
            if not channel.flush():
                self._want_write(channel)
        if events & watcher.READABLE:
            self._take_in()
            self._handle_inbox()

    def _on_lane(self, _events: int) -> None:
        self._take_in(by_lane=True)
        self._handle_inbox()

    def _take_in(self, *, by_lane: bool = False) -> None:
        """Read what is there, unless another thread does so right now."""
        if self._reading.acquire(blocking=False):
            try:
                self._read(self._channel(), by_lane=by_lane)
            finally:
                self._reading.release()

    def _watch_lane(self, channel: Channel) -> None:
        """It has come, or it has ended: that is no reason to wake up for ever."""
        with self._starting:
            now = channel.lane_fileno()
            if now != self._lane and self._attending:
                watcher.current().remove(self._lane)
                self._lane = now
                if now >= 0:
                    watcher.current().add(now, self._on_lane)

    def _read(self, channel: Channel, *, by_lane: bool) -> None:
        """Replies go to who waits for them; the rest waits for its turn."""
        for received in channel.receive(by_lane=by_lane):
            if received.kind is _CONTROL and isinstance(received.message, messages.Reply):
                self._resolve(received.message)
            else:
                self._inbox.append(received)
        if channel.lane_fileno() != self._lane:
            self._watch_lane(channel)
        if channel.eof and not channel.closed:
            with self._starting:
                watcher.current().remove(channel.fileno())
                watcher.current().remove(self._lane)
                channel.close()
            for number in list(self._replies):
                error = ChannelClosedError("the master is gone; nobody answers this request")
                self._resolve(messages.Reply(number, error=error))
            self._inbox.append(None)

    def _resolve(self, reply: messages.Reply) -> None:
        future = self._replies.pop(reply.number, None)
        if future is None:
            logger.warning("an answer to no question of this worker: %r", reply)
        elif future.cancelled():
            self._give_back(reply.value)
        elif reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply.value)

    def _give_back(self, value: object) -> None:
        """Nobody waits for this answer any more: let go of the listener in it."""
        if isinstance(value, messages.Bound):
            if value.socket is not None:
                value.socket.close()
            self.tell(messages.Release(value.key))

    def _read_until(self, future: Future[object]) -> None:
        """A callback asks: read on in here, and leave all but replies for afterwards."""
        channel = self._channel()
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN | select.POLLOUT)
        if channel.lane_fileno() >= 0:
            poll.register(channel.lane_fileno(), select.POLLIN)
        while not future.done():
            channel.flush()
            if not channel.wants_write:
                poll.modify(channel.fileno(), select.POLLIN)
            poll.poll()
            self._take_in()
        watcher.current().call_soon(self._handle_inbox)

    def _handle_inbox(self) -> None:
        if self._handling:
            return  # a callback's own request brought us here: its caller goes on
        self._handling = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False
