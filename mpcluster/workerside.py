"""A worker's own side: ``cluster.worker``.

Exists in a worker only, once. What it says and hears goes over :mod:`mpcluster.upstream`;
how its program ends is :mod:`mpcluster.leaving`'s; here they meet the user's callbacks.
"""

from __future__ import annotations

import os
import threading
from _thread import RLock
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, overload

from mpcluster import arguments, descriptors, perprocess, watcher
from mpcluster.configuration import Settings
from mpcluster.events import Callback, Emitter, KeptEvents, call
from mpcluster.leaving import Program
from mpcluster.perprocess import AT_END

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mpcluster import messages
    from mpcluster.post import Post
    from mpcluster.upstream import Upstream

__all__ = ["EVENTS", "Papers", "Worker", "current", "is_nested", "on_sigurg"]

C = TypeVar("C", bound=Callback)

EVENTS: Final = ("message", "disconnect")

#: Seconds that a worker which wants to leave waits for a parent that is in a callback.
PARENT_PATIENCE: Final = 2.0


class _Ears:
    """Who listens to what in a worker, and what nobody has listened to yet."""

    def __init__(self, subscribed: Callable[[str], object]) -> None:
        self.emitter = Emitter(EVENTS, subscribed)
        self.kept = KeptEvents()
        self.leaving = threading.Event()


class Worker:
    """This process, as a worker. Made when the program first asks for it, or its parent.

    Attributes:
        id: Its number in its parent's ``workers``.
    """

    def __init__(
        self, number: int, connection: int, settings: Settings, post: Post | None, main: int
    ) -> None:
        self.id = number
        self._post = post
        self._connection = connection
        self._settings = settings
        self._upstream: Upstream | None = None
        # Guards the one making of `_upstream` and `_made_ears`, by whoever is the first to
        # send, subscribe or ask. Nothing of a user's is called under it. Re-entrant, for a
        # signal handler may send.
        self._making = RLock()
        self._program = Program(main, self.flush, self.attend, on_sigurg, settings.kill_timeout)
        self._made_ears: _Ears | None = None

    def __repr__(self) -> str:
        link = "connected" if self.is_connected else "disconnected"
        return f"<{type(self).__name__} {self.id} pid={self.pid} {link}>"

    # -- public ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id of this worker."""
        return os.getpid()

    @property
    def slot(self) -> int | None:
        """The number of its slot, which the worker that takes its place gets again.

        None without a supervisor.
        """
        return None if self._post is None else self._post.slot

    @property
    def is_connected(self) -> bool:
        """Is the channel to the master open?"""
        return self._upstream is None or not self._upstream.closed

    def send(self, message: object) -> None:
        """Send any cloudpickle-able object to the master.

        Returns when the kernel has all of it: the process may end at once, by
        ``os._exit`` too, and the message arrives.

        Raises:
            SerializationError: It cannot be pickled; the channel lives on.
            ChannelClosedError: The channel is closed.
            ChannelFullError: The master has read nothing for ``send_timeout`` seconds.
        """
        (self._upstream or self._line()).send(message)

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
            return lambda function: self._ears().emitter.add(event, function)
        return self._ears().emitter.add(event, callback)

    @overload
    def once(self, event: str) -> Callable[[C], C]: ...
    @overload
    def once(self, event: str, callback: C) -> C: ...
    def once(self, event: str, callback: Callback | None = None) -> object:
        """As :meth:`on`, for the next time only."""
        if callback is None:
            return lambda function: self._ears().emitter.add(event, function, once=True)
        return self._ears().emitter.add(event, callback, once=True)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        self._ears().emitter.discard(event, callback)

    def disconnect(self) -> Worker:
        """Drain and leave: as if the parent had asked for it. Returns at once.

        A second call changes nothing.
        """
        from mpcluster.messages import Leaving

        # The parent steers new connections away first, as if the wish had been its own.
        self.tell(Leaving())
        self.attend()
        watcher.current().call_later(PARENT_PATIENCE, self.leave)
        return self

    def ready(self) -> None:
        """Tell the supervisor that this worker is ready to work; without one, nothing."""
        if self._post is not None:
            from mpcluster.messages import Ready

            self.tell(Ready())

    def count(self, tasks: int = 1) -> None:
        """Count tasks that are done; past its supervisor's ``max_tasks`` it is replaced.

        Args:
            tasks: 0 or more.

        Raises:
            TypeError, ValueError: It is no such number.
        """
        arguments.check_number("tasks", tasks, "tasks", (int,))
        done = None if self._post is None else self._post.count(tasks)
        if done is not None:
            from mpcluster.messages import Spent

            self.tell(Spent(done))

    def kill(self) -> None:
        """Leave at once, with exit code 0 and counted as asked for; does not return."""
        from mpcluster.messages import Leaving

        self.tell(Leaving())
        self._program.end_at_once()

    # -- for the layers around it ------------------------------------------------------------

    def attend(self) -> None:
        """From now on let the watcher read what the parent says. Idempotent."""
        self._ears()  # now, before the program puts gevent's locks in the place of the threads'
        self._line().attend()

    def on_sigurg(self) -> None:
        """In the main thread, beneath whatever it does."""
        self._program.on_sigurg()

    def stay(self) -> None:
        """The main program is over: wait as long as there is somebody to hear messages.

        As in Node, where a worker that listens to messages lives until it is disconnected.
        """
        if self._made_ears is not None and self._made_ears.emitter.has("message"):
            self.attend()
            self._ears().leaving.wait()

    def probe(self, alive: Callable[[], object]) -> None:
        """Call ``alive()`` when the main thread gets to it; as :meth:`Program.probe`."""
        self._program.probe(alive)

    def flush(self) -> None:
        """Hand to the kernel what is queued for the parent, before the process ends."""
        if self._upstream is not None:
            self._upstream.flush()

    def tell(self, message: object) -> None:
        """Send a control message to the parent."""
        self._line().tell(message)

    def request(self, body: object) -> object:
        """Ask the root master, and wait for its answer."""
        return self._line().request(body)

    def request_then(self, body: object, route: messages.Route, future: Future[object]) -> None:
        """Ask the root master for a worker below this one."""
        self._line().request_then(body, route, future)

    def _line(self) -> Upstream:
        """The line to the parent, made at the first call: most plain processes need none."""
        if self._upstream is None:
            from mpcluster import hearing

            with self._making:
                if self._upstream is None:
                    self._upstream = hearing.line(self, self._connection, self._settings)
                    perprocess.mine()[AT_END] = self.flush
                    # The parent may not watch its end yet: nobody there has cared so far.
                    bell = watcher.parents_bell()
                    if bell >= 0:
                        os.eventfd_write(bell, 1)
                        descriptors.close(bell)
        return self._upstream

    def _ears(self) -> _Ears:
        if self._made_ears is None:
            with self._making:
                if self._made_ears is None:
                    self._made_ears = _Ears(self._subscribed)
        return self._made_ears

    # -- the watcher's thread ----------------------------------------------------------------

    def lose_parent(self) -> None:
        """The parent has closed its end, or is gone."""
        # A root master's death does not come here: the leash is quicker.
        if not self._ears().leaving.is_set():
            self._program.end_at_once()

    def leave(self) -> None:
        """Asked to go: let the program's own handler do it, or drain. Once."""
        if self._ears().leaving.is_set():
            return
        self._ears().leaving.set()
        own: Callable[[], None] | None = None
        if self._ears().emitter.has("disconnect"):
            own = lambda: self.emit("disconnect")  # noqa: E731
        from mpcluster import drain

        drain.begin(
            parked=self._tell_parked,
            user_callback=own,
            finished=self._program.end,
            main=self._program.main,
        )

    def _tell_parked(self) -> None:
        from mpcluster import family
        from mpcluster.messages import Parked

        # Workers of its own that share its listeners take connections until they leave with it.
        its_own = list(family.current().workers.values())
        if not any(child.shares_ports for child in its_own):
            self.tell(Parked())

    def _subscribed(self, _event: str) -> None:
        self.attend()
        watcher.current().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        for _, event, args in self._ears().kept.take(
            lambda _, event: self._ears().emitter.has(event)
        ):
            self._deliver(event, args)

    def hear(self, message: object, size: int) -> None:
        """Call who listens to messages, or keep this one of ``size`` bytes for the first."""
        ears = self._ears()
        callbacks = None if ears.kept.entries else ears.emitter.lasting("message")
        if not callbacks:
            self.emit("message", message, weight=size)
            return
        for callback in callbacks:  # as nearly always
            call(callback, message)

    def emit(self, event: str, *args: object, weight: int = 0) -> None:
        """Call who listens to ``event``, or keep it for the first that will."""
        if not self._ears().emitter.has(event):
            self._ears().kept.keep(self.id, self, event, args, weight=weight)
            return
        if self._ears().kept:
            self._hand_over()
        self._deliver(event, args)

    def _deliver(self, event: str, args: tuple[object, ...]) -> None:
        for callback in self._ears().emitter.take(event):
            call(callback, *args)


#: What a child of this process finds under this module's name among its belongings: what to make
#: a :class:`Worker` of.
Papers: TypeAlias = "tuple[int, int, Settings, Post | None, int]"

_MADE: Final = f"{__name__}.made"


def current() -> Worker | None:
    """Return this process as a worker, or ``None`` in a master."""
    mine = perprocess.mine()
    papers: Papers | None = mine.get(__name__)
    if papers is None:
        return None
    made: Worker | None = mine.get(_MADE)
    # Of several threads one makes the one that counts.
    return made or mine.setdefault(_MADE, Worker(*papers))


def is_nested() -> bool:
    """Is this process's parent a worker, too?"""
    return __name__ in perprocess.before()


def on_sigurg(_signum: int, _frame: FrameType | None) -> None:
    """The handler of SIGURG, by which a worker is spoken to that does not listen."""
    myself = current()
    if myself is not None:  # else: a child of this worker that is none itself
        myself.on_sigurg()
