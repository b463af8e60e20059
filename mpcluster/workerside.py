"""A worker's own side: ``cluster.worker``.

Exists in a worker only, once. What it says and hears goes over :mod:`mpcluster.upstream`;
how its program ends is :mod:`mpcluster.leaving`'s; here they meet the user's callbacks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar, overload

from mpcluster import drain, messages, watcher
from mpcluster.configuration import Settings
from mpcluster.events import Callback, Emitter, KeptEvents, call, report
from mpcluster.leaving import Program
from mpcluster.upstream import Upstream
from mpcluster.wire import Kind, Received

__all__ = ["EVENTS", "Post", "Worker", "current", "enter"]

logger = logging.getLogger("mpcluster")

C = TypeVar("C", bound=Callback)

EVENTS: Final = ("message", "disconnect")

#: Seconds that a worker which wants to leave waits for a parent that is in a callback.
PARENT_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Post:
    """A worker's place with its supervisor.

    Args:
        slot: The number of its slot.
        max_tasks: Tasks that it may do; None for any number.
        has_pulse: It will be asked for signs of life.
    """

    slot: int
    max_tasks: float | None
    has_pulse: bool


class Worker:
    """This process, as a worker.

    Attributes:
        id: Its number in its parent's ``workers``.
        slot: The number of its slot, which a worker that takes its place gets again; None
            without a supervisor.
    """

    def __init__(
        self,
        number: int,
        connection: Connection[Any, Any],
        settings: Settings,
        post: Post | None = None,
    ) -> None:
        self.id = number
        self.slot = None if post is None else post.slot
        self._post = post
        # Guards the count, which any thread may raise. A signal handler may, too, so it is
        # re-entrant. A forked child is no such worker.
        self._counting = threading.RLock()
        self._tasks = 0
        self._upstream = Upstream(connection, settings, self._handle)
        self._program = Program(self._upstream.flush, self.attend, settings.kill_timeout)
        self._emitter = Emitter(EVENTS, self._subscribed)
        self._kept = KeptEvents()
        self._leaving = threading.Event()

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
        return not self._upstream.closed

    def send(self, message: object) -> None:
        """Send any cloudpickle-able object to the master.

        Returns when the kernel has all of it: the process may end at once, by
        ``os._exit`` too, and the message arrives.

        Raises:
            SerializationError: It cannot be pickled; the channel lives on.
            ChannelClosedError: The channel is closed.
            ChannelFullError: The master has read nothing for ``send_timeout`` seconds.
        """
        self._upstream.send(message)

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
        # The parent steers new connections away first, as if the wish had been its own.
        self._upstream.tell(messages.Leaving())
        self.attend()
        watcher.current().call_later(PARENT_PATIENCE, self._leave)
        return self

    def ready(self) -> None:
        """Tell the supervisor that this worker is ready to work; without one, nothing."""
        self._upstream.tell(messages.Ready())

    def count(self, tasks: int = 1) -> None:
        """Count tasks that are done; past its supervisor's ``max_tasks`` it is replaced.

        Raises:
            ValueError: ``tasks`` is negative.
        """
        if tasks < 0:
            raise ValueError(f"tasks must be 0 or more, not {tasks!r}")
        if self._post is None or self._post.max_tasks is None:
            return
        with self._counting:
            before, self._tasks = self._tasks, self._tasks + tasks
        if before < self._post.max_tasks <= before + tasks:
            self._upstream.tell(messages.Spent(before + tasks))

    def kill(self) -> None:
        """Leave at once, with exit code 0 and counted as asked for; does not return."""
        self._upstream.tell(messages.Leaving())
        self._program.end_at_once()

    # -- for the layers around it ------------------------------------------------------------

    def begin(self) -> None:
        """In a new child: be there for the parent, and say so."""
        if self._post is not None and self._post.has_pulse:
            _show_stacks_on_abort()
        self._program.handle_sigurg()
        self._upstream.say_online()

    def attend(self) -> None:
        """From now on let the watcher read what the parent says. Idempotent."""
        self._upstream.attend()

    def run_program(self, run: Callable[[], object]) -> None:
        """Run what this process is for."""
        self._program.run(run)

    def stay(self) -> None:
        """The main program is over: wait as long as there is somebody to hear messages.

        As in Node, where a worker that listens to messages lives until it is disconnected.
        """
        if self._emitter.has("message"):
            self.attend()
            self._leaving.wait()

    def flush(self) -> None:
        """Hand to the kernel what is queued for the parent, before the process ends."""
        self._upstream.flush()

    def tell(self, message: object) -> None:
        """Send a control message to the parent."""
        self._upstream.tell(message)

    def request(self, body: object) -> object:
        """Ask the root master, and wait for its answer."""
        return self._upstream.request(body)

    def request_then(self, body: object, route: messages.Route, future: Future[object]) -> None:
        """Ask the root master for a worker below this one."""
        self._upstream.request_then(body, route, future)

    # -- the watcher's thread ----------------------------------------------------------------

    def _handle(self, received: Received | None) -> None:
        if received is None:
            # A root master's death does not come here: the leash is quicker.
            if not self._leaving.is_set():
                self._program.end_at_once()
        elif received.error is not None:
            report(f"a message of the master to worker {self.id}", received.error, self)
        elif received.kind is Kind.USER:
            self._emit("message", received.message, weight=received.size)
        elif isinstance(received.message, messages.Disconnect):
            self._leave()
        elif isinstance(received.message, messages.Ping):
            self._probe(received.message.number)
        else:
            logger.warning("unknown control message of the master: %r", received.message)

    def _probe(self, number: int) -> None:
        answer = messages.Pong(number)
        # From here again, as the main thread may be in the middle of a send of its own.
        in_watcher = watcher.current().call_soon
        self._program.probe(lambda: in_watcher(lambda: self._upstream.tell(answer)))

    def _leave(self) -> None:
        """Asked to go: let the program's own handler do it, or drain. Once."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        own: Callable[[], None] | None = None
        if self._emitter.has("disconnect"):
            own = lambda: self._emit("disconnect")  # noqa: E731
        drain.begin(user_callback=own, finished=self._program.end)

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


def _show_stacks_on_abort() -> None:
    """A hung worker is ended by SIGABRT: let it write to stderr where each thread stands."""
    import faulthandler

    if not faulthandler.is_enabled():
        try:
            faulthandler.enable()
        except (AttributeError, OSError, RuntimeError, ValueError):
            pass  # there is no stderr to write to


_current: Worker | None = None


def current() -> Worker | None:
    """Return this process as a worker, or ``None`` in a master."""
    return _current


def enter(
    number: int, connection: Connection[Any, Any], settings: Settings, post: Post | None
) -> Worker:
    """In a new child, first of all: this process is worker ``number`` of its parent."""
    global _current
    _current = Worker(number, connection, settings, post)
    return _current


def _after_fork_in_child() -> None:
    global _current
    _current = None


os.register_at_fork(after_in_child=_after_fork_in_child)
