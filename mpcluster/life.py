"""A worker's life as its parent takes it in.

Messages on the channel, the end of the channel, the end of the process: all of it comes to
the watcher's thread, which advances the state and tells the family. What the worker had
sent is delivered before its death is told, for at the moment of death all of it lies in
this side's end of the channel.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpcluster import family, messages, watcher
from mpcluster.address import Address
from mpcluster.channel import Channel
from mpcluster.configuration import Settings
from mpcluster.errors import ChannelClosedError
from mpcluster.events import report
from mpcluster.family import Family
from mpcluster.popen import Popen
from mpcluster.states import Step, WorkerState, advance
from mpcluster.wire import Kind, Received

if TYPE_CHECKING:
    from mpcluster.process import ClusterProcess

__all__ = ["Life"]

logger = logging.getLogger("mpcluster")

#: Seconds after which a worker is told a second time that it shall leave; then twice that.
FIRST_KNOCK: Final = 0.1

#: Seconds that `close()` waits for the watcher when that is in a callback.
CLOSE_PATIENCE: Final = 1.0


class Life:
    """One started worker, from its parent's side.

    Args:
        process: Whose life it is.
        popen: The forked child.
        settings: Those that it was forked with.
        relatives: Who is told what happens.
    """

    def __init__(
        self, process: ClusterProcess, popen: Popen, settings: Settings, relatives: Family
    ) -> None:
        self.state = advance(WorkerState.NEW, Step.START)
        #: It was asked to leave, by its parent or by itself.
        self.asked_to_leave = False
        self.channel = Channel(
            popen.connection,
            label=f"worker {process.id} (pid {popen.pid})",
            limit=settings.channel_limit,
            send_timeout=settings.send_timeout,
        )
        self.channel.read_elsewhere = True
        self.channel.on_backlog = self._want_write
        self._process = process  # until its death is told: no circle is left to collect
        self._name = process.name
        self._popen = popen
        self._settings = settings
        self._family = relatives
        self._fork_told = False
        self._timers: list[watcher.Timer] = []
        # What has come and is not yet told. A callback may close this worker's process,
        # which tells the rest and the end within: order holds for it too.
        self._arrived: deque[Received] = deque()
        # Guards the read-and-replace of `state`, which the program's threads (DRAIN) and
        # the watcher (all else) do. Nothing is called under it. Re-entrant for the sake of
        # signal handlers, which may well call `disconnect()`.
        self._stepping = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}: {self.state.value}>"

    # -- any thread ------------------------------------------------------------------------

    def begin(self) -> None:
        """Watch it from now on. The last step of its start: `fork` is told next."""
        self._popen.watch()
        # In the watcher's thread, so that neither can lead to the end of this life before
        # the other is there.
        watcher.current().call_soon(self._begin_watching)

    def _begin_watching(self) -> None:
        if self.state is WorkerState.DEAD:
            return  # the callback that started it has joined and closed it, too
        the_watcher = watcher.current()
        the_watcher.add(self._popen.sentinel, self._on_end)
        # Something may have been queued before anybody would have written it.
        events = watcher.READABLE | watcher.WRITABLE
        the_watcher.add(self.channel.fileno(), self._on_ready, events)
        self._tell_of_fork()

    def ask_to_leave(self, timeout: float | None) -> None:
        """Once: let the worker know that it shall go; after ``timeout`` seconds, make it."""
        with self._stepping:
            if self.asked_to_leave:
                return
            self.asked_to_leave = True
            self.state = advance(self.state, Step.DRAIN)
        watcher.current().call_soon(lambda: self._begin_to_leave(timeout))

    def is_over(self) -> bool:
        """Has its death been told, or is it being told?"""
        return self.state is WorkerState.DEAD

    def wait_until_told(self) -> None:
        """Let the watcher finish with this dead worker, so that it holds it no longer."""
        the_watcher = watcher.current()
        if the_watcher.in_thread():
            self._on_end(0)
            return
        for _ in range(3):  # the round under way may have looked before the end
            told = self.state is WorkerState.DEAD
            passed = threading.Event()
            the_watcher.call_soon(passed.set)
            # A callback may be running there that waits for this very thread.
            if not passed.wait(CLOSE_PATIENCE) or told:
                return

    # -- asking it to leave ----------------------------------------------------------------

    def _begin_to_leave(self, timeout: float | None) -> None:
        if self.state is not WorkerState.DEAD:
            if timeout is not None:
                self._after(timeout, self._terminate_then_kill)
            family.upward.leaving(self._process, self._tell_to_leave)

    def _tell_to_leave(self) -> None:
        try:
            self.channel.send(messages.Disconnect(), Kind.CONTROL, may_wait=False)
        except ChannelClosedError:
            return  # it has closed its end; the end of the process follows
        self._knock(FIRST_KNOCK)

    def _knock(self, seconds: float) -> None:
        """A program that does not listen starts to; in ``seconds`` it is told so again.

        A signal that comes in the instant before its main thread waits for something in C is
        noticed there only when the wait is over.
        """
        self._popen.send_signal(signal.SIGURG)
        self._timers = [timer for timer in self._timers if not timer.is_cancelled]
        self._after(seconds, lambda: self._knock(2 * seconds))

    def _terminate_then_kill(self) -> None:
        self._popen.send_signal(signal.SIGTERM)
        self._after(self._settings.kill_timeout, lambda: self._popen.send_signal(signal.SIGKILL))

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._timers.append(watcher.current().call_later(seconds, call))

    # -- the watcher's thread ------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        with self._stepping:
            self.state = advance(self.state, step)

    def _want_write(self, channel: Channel) -> None:
        watcher.current().modify(channel.fileno(), watcher.READABLE | watcher.WRITABLE)

    def _on_ready(self, events: int) -> None:
        self._tell_of_fork()
        if events & watcher.WRITABLE:
            # In this order: a sender that finds no room in between asks for it anew.
            watcher.current().modify(self.channel.fileno(), watcher.READABLE)
            if not self.channel.flush():
                self._want_write(self.channel)
        if events & watcher.READABLE:
            self._take_in()

    def _take_in(self) -> bool:
        """Handle what is there on the channel; returns whether there was anything."""
        try:
            batch = self.channel.receive()
        except Exception as error:  # noqa: BLE001
            # Ours to mend, and no reason to stop watching this worker, or to spin.
            report(f"the {self.channel} failed; it is closed", error, self._process)
            self._lose_channel()
            return False
        self._arrived += batch
        while self._arrived:
            self._handle(self._arrived.popleft())
        if self.channel.eof:
            self._lose_channel()
        return bool(batch)

    def _on_end(self, _events: int) -> None:
        """The process has ended: first what it had sent, then its end."""
        if self.is_over():
            return
        self._tell_of_fork()
        while not self.channel.closed and self._take_in():
            pass
        self._lose_channel()
        if self.is_over():
            return  # a callback has closed it, and this was gone through within
        self._popen.poll()
        watcher.current().remove(self._popen.sentinel)
        self._popen.release()
        try:
            self._process.is_alive()  # multiprocessing forgets it, and its descriptor goes
        except ValueError:
            pass  # closed
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._step(Step.DIE)
        process = self._process
        del self._process
        self.channel.on_backlog = None
        crashed = self._popen.returncode != 0 and not self.asked_to_leave
        self._family.bury(process, crashed=crashed)

    def _tell_of_fork(self) -> None:
        if not self._fork_told:
            self._fork_told = True
            self._emit("fork")

    def _lose_channel(self) -> None:
        if not self.channel.closed:
            watcher.current().remove(self.channel.fileno())
            self.channel.close()
            self._step(Step.DISCONNECT)
            self._emit("disconnect")

    def _handle(self, received: Received) -> None:
        message = received.message
        if received.error is not None:
            report(f"a message of {self.channel.label}", received.error, self._process)
        elif received.kind is Kind.USER:
            self._emit("message", message, weight=received.size)
        else:
            try:
                self._follow(message)
            except Exception as error:  # noqa: BLE001
                report(f"control message {message!r} of {self.channel.label}", error, self._process)

    def _follow(self, message: object) -> None:
        """Do what a control message says."""
        if isinstance(message, messages.Online):
            self._step(Step.COME_ONLINE)
            self._emit("online")
        elif isinstance(message, messages.Listening):
            self._step(Step.LISTEN)
            self._emit("listening", Address.of(message.family, message.sockname))
        elif isinstance(message, messages.Leaving):
            self.ask_to_leave(None)
        elif isinstance(message, messages.Ready):
            self._tell_overseer("ready")
        elif isinstance(message, messages.Pong):
            self._tell_overseer("pong", message.number)
        elif isinstance(message, messages.Spent):
            self._tell_overseer("spent", message.tasks)
        elif isinstance(message, messages.Request | messages.Release | messages.Gone):
            family.upward.answer(self._process, message)
        else:
            logger.warning("unknown control message of %s: %r", self.channel.label, message)

    def _tell_overseer(self, event: str, *args: object) -> None:
        if self._process.overseer is not None:
            self._process.overseer(self._process, event, *args)

    def order(self, message: messages.Reply | messages.Ping) -> None:
        """Answer or ask this worker; one that is gone needs none."""
        try:
            self.channel.send(message, Kind.CONTROL, may_wait=False)
        except ChannelClosedError:
            pass

    def _emit(self, event: str, *args: object, weight: int = 0) -> None:
        self._family.emit(self._process, event, *args, weight=weight)
