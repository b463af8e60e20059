"""A worker's own side: its channel to the parent, and how it leaves.

Exists in a worker only, once. Nobody reads the channel until somebody wants to know what
comes: a subscription, a request, a worker that shares ports. From then on the worker's
watcher reads it. So a plain ``ClusterProcess`` has no thread of ours unless it asks for
one; what is sent to it waits in the channel.

Two things must reach a worker whose program does not listen: being asked to leave, and
the end of its own drain. Both come as ``SIGURG``, whose handler runs in the main thread
and interrupts what that waits for; the signal's default is to be ignored, and no program
loses anything if one comes too many.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final, TypeVar, overload

from mpcluster import drain, interpreter, messages, pickling, watcher
from mpcluster.channel import Channel
from mpcluster.configuration import Settings
from mpcluster.errors import ChannelClosedError
from mpcluster.events import Callback, Emitter, KeptEvents, call, report
from mpcluster.wire import Kind, Received, plain_header

__all__ = ["Worker", "current", "enter"]

logger = logging.getLogger("mpcluster")

C = TypeVar("C", bound=Callback)

EVENTS: Final = ("message", "disconnect")


def _frame(message: object) -> bytes:
    segments, _, _ = pickling.dump(message)
    pickle = b"".join(segments)
    return plain_header(Kind.CONTROL, len(pickle)) + pickle


#: The frame of Online, made once: the child that sends it has pickled nothing yet.
_ONLINE: Final = _frame(messages.Online())

#: Seconds that the main thread gets to follow a SystemExit before the process just ends.
EXIT_GRACE: Final = 1.0


class Worker:
    """This process, as a worker: ``cluster.worker``.

    Attributes:
        id: Its number in its parent's ``workers``.
    """

    def __init__(self, number: int, connection: Connection[Any, Any], settings: Settings) -> None:
        self.id = number
        self.route: messages.Route = (number,)
        self._connection = connection
        self._settings = settings
        self._emitter = Emitter(EVENTS, self._subscribed)
        self._kept = KeptEvents()
        # Guards the one start of reading. Taken by whoever subscribes or asks first.
        self._starting = threading.RLock()
        self._attending = False
        self._made: Channel | None = None
        self._making = False  # guarded by `_starting`, and asked by the signal handler
        self._called = False  # the handler came while the channel was being made
        # Held by the one thread that reads: the watcher, or a sender that waits and reads
        # meanwhile because nobody else does, or did when it began to wait. Never waited for.
        self._reading = threading.Lock()
        self._inbox: deque[Received] = deque()
        self._handling = False
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[object]] = {}
        self._leaving = False
        self._exit_wanted = False
        self._in_program = False
        self._exitcode = 0  # what the program itself ends with
        self._gone = threading.Event()

    def __repr__(self) -> str:
        link = "connected" if self.is_connected else "disconnected"
        return f"<{type(self).__name__} {self.id} pid={self.pid} {link}>"

    # -- public ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id of this worker."""
        return os.getpid()

    @property
    def is_connected(self) -> bool:
        """Is the channel to the master open?"""
        return not self._channel.closed

    def send(self, message: object) -> None:
        """Send any cloudpickle-able object to the master.

        Returns when the kernel has all of it: the process may end at once, by
        ``os._exit`` too, and the message arrives.

        Raises:
            SerializationError: It cannot be pickled; the channel lives on.
            ChannelClosedError: The channel is closed.
            ChannelFullError: The master has read nothing for ``send_timeout`` seconds.
        """
        self._send(message, Kind.USER)

    @overload
    def on(self, event: str) -> Callable[[C], C]: ...
    @overload
    def on(self, event: str, callback: C) -> C: ...
    def on(self, event: str, callback: Callback | None = None) -> object:
        """Call ``callback(message)`` on ``message``, ``callback()`` on ``disconnect``.

        ``disconnect`` comes when the parent asks this worker to leave; whoever subscribes
        to it takes the leaving into his own hands. Without a callback: a decorator.
        """
        if callback is None:
            return lambda function: self._emitter.add(event, function)
        return self._emitter.add(event, callback)

    @overload
    def once(self, event: str) -> Callable[[C], C]: ...
    @overload
    def once(self, event: str, callback: C) -> C: ...
    def once(self, event: str, callback: Callback | None = None) -> object:
        """As :meth:`on`, for the next time only."""
        if callback is None:
            return lambda function: self._emitter.add(event, function, once=True)
        return self._emitter.add(event, callback, once=True)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        self._emitter.discard(event, callback)

    def disconnect(self) -> Worker:
        """Drain and leave: as if the parent had asked for it. Returns at once.

        A second call changes nothing.
        """
        self._tell(messages.Leaving())
        self.attend()
        watcher.current().call_soon(self._leave)
        return self

    def kill(self) -> None:
        """Leave at once, with exit code 0 and counted as asked for; does not return."""
        self._tell(messages.Leaving())
        self._end_process(0)

    @property
    def _channel(self) -> Channel:
        # Made when it is first needed: a child that neither sends nor listens, as most
        # plain processes, is started in less time without.
        if self._made is None:
            self._make_channel()
        assert self._made is not None
        return self._made

    def _make_channel(self) -> None:
        with self._starting:
            if self._made is None:
                self._making = True
                channel = Channel(
                    self._connection,
                    label="the master",
                    limit=self._settings.channel_limit,
                    send_timeout=self._settings.send_timeout,
                )
                channel.on_backlog = self._want_write
                channel.on_readable = self._on_readable
                self._made = channel
                self._making = False
        if self._called:
            self.attend()

    # -- for the layers above ----------------------------------------------------------------

    def attend(self) -> None:
        """From now on let the watcher read the channel. Any thread; idempotent."""
        with self._starting:
            channel = self._channel  # made in here, maybe, and attended to by a signal
            if self._attending or channel.closed:
                return
            self._attending = True
            channel.read_elsewhere = True
            watcher.current().add(channel.fileno(), self._on_ready)
        if self._inbox:
            watcher.current().call_soon(self._handle_inbox)  # a sender has read it

    def tell(self, message: object) -> None:
        """Send a control message; a master that is gone is no error here."""
        self._tell(message)

    def request(self, body: object) -> object:
        """Ask the root master and wait for its answer, in whatever thread this is.

        Raises:
            The error that the master answered with.
            ChannelClosedError: The channel closed before an answer came.
        """
        future: Future[object] = Future()
        self.request_then(body, (), future)
        if watcher.current().in_thread():
            self._read_until(future)
        return future.result()

    def request_then(self, body: object, route: messages.Route, future: Future[object]) -> None:
        """Ask the root master on behalf of ``route`` below this worker; ``future`` gets it."""
        number = next(self._numbers)
        self._replies[number] = future
        self.attend()
        try:
            self._send(messages.Request(number, body, route), Kind.CONTROL)
        except BaseException:
            del self._replies[number]
            raise

    def say_online(self) -> None:
        """Tell the parent that this process runs; the first thing on the channel."""
        try:
            fd = self._connection.fileno()
            os.write(fd, _ONLINE)
            # The signal that goes with it came, maybe, before there was a handler.
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            spoken_to = poll.poll(0)
        except OSError:
            return  # the parent is gone already
        if spoken_to:
            self.attend()

    def run_program(self, run: Callable[[], object]) -> None:
        """Run what this process is for. Only in here may a SystemExit be raised from outside."""
        try:
            self._in_program = True
            run()
            self._in_program = False
        except BaseException as error:
            self._in_program = False
            if not drain.ended_cleanly(error):
                self._exitcode = _exitcode_of(error)
                raise

    def flush(self) -> None:
        """Hand what is queued to the kernel, before the process ends."""
        if self._made is not None and not self._channel.closed and self._channel.wants_write:
            poll = select.poll()
            poll.register(self._channel.fileno(), select.POLLOUT)
            while not self._channel.flush() and poll.poll(1000):
                pass

    def stay(self) -> None:
        """The main program is over: wait as long as there is somebody to hear messages.

        As in Node, where a worker that listens to messages lives until it is disconnected.
        """
        if self._emitter.has("message"):
            self.attend()
            self._gone.wait()

    # -- sending ---------------------------------------------------------------------------

    def _send(self, message: object, kind: Kind) -> None:
        in_watcher = watcher.current().in_thread()
        self._channel.send(message, kind, handed_over=not in_watcher, may_wait=not in_watcher)

    def _tell(self, message: object) -> None:
        try:
            self._send(message, Kind.CONTROL)
        except ChannelClosedError:
            pass

    def _want_write(self, channel: Channel) -> None:
        self.attend()
        watcher.current().modify(channel.fileno(), watcher.READABLE | watcher.WRITABLE)

    # -- reading, in the watcher's thread ------------------------------------------------------

    def _on_ready(self, events: int) -> None:
        if events & watcher.WRITABLE:
            # In this order: a sender that finds no room in between asks for it anew.
            watcher.current().modify(self._channel.fileno(), watcher.READABLE)
            if not self._channel.flush():
                self._want_write(self._channel)
        if events & watcher.READABLE:
            self._take_in()
            self._handle_inbox()

    def _on_readable(self, _channel: Channel) -> None:
        """A sender waits, and something has come. In the sender's thread."""
        self._take_in()
        if self._attending:  # since it began to wait
            watcher.current().call_soon(self._handle_inbox)

    def _take_in(self) -> None:
        """Read what is there, unless another thread does so right now."""
        if self._reading.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._reading.release()

    def _read(self) -> None:
        """Replies go to who waits for them; the rest waits for its turn."""
        for received in self._channel.receive():
            if isinstance(received.message, messages.Reply) and received.kind is Kind.CONTROL:
                self._resolve(received.message)
            else:
                self._inbox.append(received)
        if self._channel.eof and not self._channel.closed:
            watcher.current().remove(self._channel.fileno())
            self._channel.close()
            for number in list(self._replies):
                error = ChannelClosedError("the master is gone; nobody answers this request")
                self._resolve(messages.Reply(number, error=error))

    def _resolve(self, reply: messages.Reply) -> None:
        future = self._replies.pop(reply.number, None)
        if future is None:
            logger.warning("an answer to no question of this worker: %r", reply)
        elif reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply.value)

    def _read_until(self, future: Future[object]) -> None:
        """A callback asks: read on in here, and leave all but replies for afterwards."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN | select.POLLOUT)
        while not future.done():
            self._channel.flush()
            if not self._channel.wants_write:
                poll.modify(self._channel.fileno(), select.POLLIN)
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
        if self._channel.closed:
            self._master_is_gone()

    def _handle(self, received: Received) -> None:
        if received.error is not None:
            report(f"a message of the master to worker {self.id}", received.error, self)
        elif received.kind is Kind.USER:
            self._emit("message", received.message, weight=received.size)
        elif isinstance(received.message, messages.Disconnect):
            self._leave()
        else:
            logger.warning("unknown control message of the master: %r", received.message)

    # -- events ----------------------------------------------------------------------------

    def _subscribed(self, _event: str) -> None:
        self.attend()
        watcher.current().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        for _, event, args in self._kept.take(lambda _, event: self._emitter.has(event)):
            self._deliver(event, args)

    def _emit(self, event: str, *args: object, weight: int = 0) -> None:
        if not self._emitter.has(event):
            self._kept.keep(self.id, self, event, args, weight=weight)
            return
        if self._kept:
            self._hand_over()
        self._deliver(event, args)

    def _deliver(self, event: str, args: tuple[object, ...]) -> None:
        for callback in self._emitter.take(event):
            call(callback, *args)

    # -- leaving ---------------------------------------------------------------------------

    def _leave(self) -> None:
        """Asked to go: let the program's own handler do it, or drain. Once."""
        if self._leaving:
            return
        self._leaving = True
        self._gone.set()
        own: Callable[[], None] | None = None
        if self._emitter.has("disconnect"):
            own = lambda: self._emit("disconnect")  # noqa: E731
        drain.begin(user_callback=own, finished=self._drained)

    def _drained(self) -> None:
        """Nothing is left to do: end the program in its main thread, with exit code 0."""
        self._exit_wanted = True
        watcher.current().call_later(EXIT_GRACE, lambda: self._end_process(self._exitcode))
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGURG)

    def _master_is_gone(self) -> None:
        # A root master's death does not come here: the leash is quicker.
        if not self._leaving:
            self._end_process(0)

    def _end_process(self, code: int) -> None:
        self.flush()
        try:
            interpreter.flush_std_streams()
        finally:
            os._exit(code)

    def on_urgent(self, _signum: int, _frame: FrameType | None) -> None:
        """SIGURG, in the main thread: listen to the parent, or end."""
        if not self._exit_wanted:
            self._called = True
            if not self._making:  # else this very thread makes it, or another, which looks
                self.attend()
        elif self._in_program:
            self._exit_wanted = False
            sys.exit(0)
        else:
            self._end_process(self._exitcode)  # not begun, or over but for its threads


_current: Worker | None = None


def current() -> Worker | None:
    """Return this process as a worker, or ``None`` in a master."""
    return _current


def enter(number: int, connection: Connection[Any, Any], settings: Settings) -> Worker:
    """In a new child, first of all: this process is worker ``number`` of its parent."""
    global _current
    _current = Worker(number, connection, settings)
    if signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, None):
        # Not with `siginterrupt(SIGURG, False)`: the kernel would go on with a wait for a
        # lock as if nothing had come, and the main thread never run the handler.
        signal.signal(signal.SIGURG, _on_urgent)
    return _current


def _exitcode_of(error: BaseException) -> int:
    """As ``multiprocessing`` makes it of what ended the program."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return error.code if isinstance(error.code, int) else 1
    return 1


def _on_urgent(signum: int, frame: FrameType | None) -> None:
    if _current is not None:
        _current.on_urgent(signum, frame)


def _after_fork_in_child() -> None:
    global _current
    _current = None


os.register_at_fork(after_in_child=_after_fork_in_child)
