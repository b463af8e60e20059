"""The channel to one worker, from its parent's side: what it says, and what it is told.

Made, and imported, when a worker says more than that it runs, or is told something; until
then :mod:`mpcluster.life` holds the bare descriptor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpcluster import above, messages, watcher
from mpcluster.address import Address
from mpcluster.channel import Channel
from mpcluster.configuration import Settings
from mpcluster.errors import ChannelClosedError
from mpcluster.events import report
from mpcluster.logs import logger
from mpcluster.states import Step
from mpcluster.wire import Kind, Received

if TYPE_CHECKING:
    from mpcluster.life import Life
    from mpcluster.process import ClusterProcess

__all__ = ["Downstream"]


class Downstream:
    """What is said between a worker and its parent.

    Args:
        life: The worker's. It is told the worker's steps, and forgets this at the end.
        process: The worker.
        fd: This side's end of the line; taken over.
        label: Who is at the other end.
        tell_messages: Delivers the users' messages that stand first in what has arrived.
        settings: Those that the worker was forked with.
    """

    def __init__(
        self,
        life: Life,
        process: ClusterProcess,
        fd: int,
        *,
        label: str,
        tell_messages: Callable[[ClusterProcess, deque[Received]], object],
        settings: Settings,
    ) -> None:
        self.channel = Channel(
            fd, label=label, limit=settings.channel_limit, send_timeout=settings.send_timeout
        )
        self.channel.read_elsewhere = True
        self.channel.opens_lane = True
        self.channel.on_backlog = self._want_write
        self.channel.must_not_wait = watcher.in_thread
        self._life = life
        self._process = process
        self._tell_messages = tell_messages
        # What has come and is not yet told. A callback may close this worker's process,
        # which tells the rest and the end within: order holds for it too.
        self._arrived: deque[Received] = deque()
        self._lane = -1  # the descriptor that is watched for it

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.channel!r}>"

    # -- any thread ------------------------------------------------------------------------

    def send(self, message: object) -> None:
        """Send a user's message; errors as ``Channel.send``."""
        self.channel.send(message)

    # -- the watcher's thread ------------------------------------------------------------------

    def order(self, message: object) -> bool:
        """Send a control message; False if the worker has closed its end."""
        try:
            self.channel.send(message, Kind.CONTROL, may_wait=False)
        except ChannelClosedError:
            return False
        return True

    def on_ready(self, events: int) -> None:
        """Write what waits, take in what has come."""
        if events & watcher.WRITABLE:
            # In this order: a sender that finds no room in between asks for it anew.
            watcher.current().modify(self.channel.fileno(), watcher.READABLE)
            if not self.channel.flush():
                self._want_write(self.channel)
        if events & watcher.READABLE:
            self.take_in()

    def _on_lane(self, _events: int) -> None:
        self.take_in(by_lane=True)

    def take_in(self, *, by_lane: bool = False) -> bool:
        """Handle what is there on the channel; returns whether there was anything."""
        try:
            batch = self.channel.receive(by_lane=by_lane)
        except Exception as error:  # noqa: BLE001
            # Ours to mend, and no reason to stop watching this worker, or to spin.
            report(f"the {self.channel} failed; it is closed", error, self._process)
            self._life.lose_channel()
            return False
        if self.channel.lane_fileno() != self._lane:
            self._watch_lane()
        arrived = self._arrived
        arrived += batch
        while arrived:
            self._tell_messages(self._process, arrived)
            if arrived:
                self._handle(arrived.popleft())
        if self.channel.eof:
            self._life.lose_channel()
        return bool(batch)

    def _watch_lane(self) -> None:
        """It has come, or it has ended: that is no reason to wake up for ever."""
        watcher.current().remove(self._lane)
        self._lane = self.channel.lane_fileno()
        if self._lane >= 0:
            watcher.current().add(self._lane, self._on_lane)

    def close(self) -> None:
        """Close the channel."""
        watcher.current().remove(self._lane)
        self.channel.close()

    def end(self) -> None:
        """The channel is closed, and the worker's death about to be told."""
        self.channel.on_backlog = None

    def _want_write(self, channel: Channel) -> None:
        watcher.current().modify(channel.fileno(), watcher.READABLE | watcher.WRITABLE)

    def _handle(self, received: Received) -> None:
        message = received.message
        if received.error is not None:
            report(f"a message of {self.channel.label}", received.error, self._process)
        else:
            try:
                self._follow(message)
            except Exception as error:  # noqa: BLE001
                report(f"control message {message!r} of {self.channel.label}", error, self._process)

    def _follow(self, message: object) -> None:
        """Do what a control message says."""
        if isinstance(message, messages.Online):
            self._life.come_online()
        elif isinstance(message, messages.Listening):
            self._life.step(Step.LISTEN)
            self._life.emit("listening", Address.of(message.family, message.sockname))
        elif isinstance(message, messages.Leaving):
            self._life.ask_to_leave(None)
        elif isinstance(message, messages.Ready):
            self._tell_overseer("ready")
        elif isinstance(message, messages.Pong):
            self._tell_overseer("pong", message.number)
        elif isinstance(message, messages.Parked):
            self._tell_overseer("parked")
        elif isinstance(message, messages.Spent):
            self._tell_overseer("spent", message.tasks)
        elif isinstance(message, messages.Request | messages.Release | messages.Gone):
            above.current.answer(self._process, message)
        else:
            logger().warning("unknown control message of %s: %r", self.channel.label, message)

    def _tell_overseer(self, event: str, *args: object) -> None:
        if self._process.overseer is not None:
            self._process.overseer(self._process, event, *args)
