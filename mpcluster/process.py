"""``ClusterProcess``: a ``multiprocessing.Process`` with a channel, events and a life.

Everything that happens to a worker is taken in by the watcher's thread of its parent: the
messages on its channel, the end of the channel, the end of the process. What the worker
had sent is delivered before its death is told, for at the moment of death all of it lies
in this side's end of the channel.
"""

from __future__ import annotations

import functools
import logging
import os
import signal as _signal
import threading
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context
from multiprocessing.connection import Connection
from typing import Any, Final

from mpcluster import drain, family, leash, messages, sharing, watcher, workerside
from mpcluster.address import Address
from mpcluster.channel import Channel
from mpcluster.errors import ChannelClosedError, NotMasterError
from mpcluster.events import Callback, Emitter, report
from mpcluster.popen import Popen
from mpcluster.states import Step, WorkerState, advance
from mpcluster.wire import Kind, Received

__all__ = ["WORKER_ID_VARIABLE", "ClusterProcess"]

logger = logging.getLogger("mpcluster")

#: Set in a worker's environment, for logs. Which process is a worker is never read from it.
WORKER_ID_VARIABLE: Final = "MPCLUSTER_WORKER_ID"


class ClusterProcess(context.ForkProcess):
    """A process of this cluster; takes the place of ``multiprocessing.Process``.

    Args:
        group: None, as in ``multiprocessing``.
        target: What the child calls: ``target(*args, **kwargs)``.
        name: Its name; ``ClusterProcess-N`` without one.
        daemon: Terminated when its parent ends; inherited where it is None.
        env: Set in the child's environment, besides the parent's.
        cwd: The child's working directory.
        share_ports: Let the child's ordinary servers share their ports with its siblings.

    Raises:
        TypeError: ``env`` does not map strings to strings.
        NotADirectoryError: ``cwd`` is none (at ``start()``).
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        share_ports: bool = False,
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        self._env = _checked_env(env)
        self._cwd = None if cwd is None else os.fspath(cwd)
        self._share_ports = bool(share_ports)
        self._id: int | None = None
        self._state = WorkerState.NEW
        self._asked_to_leave = False
        self._family = family.current()
        self._settings = self._family.settings
        self._channel: Channel | None = None
        self._timers: list[watcher.Timer] = []
        # Guards the read-and-replace of `_state`, which the program's threads (DRAIN) and
        # the watcher (all else) do. Nothing is called under it.
        self._stepping = threading.Lock()
        self._fork_told = False
        #: Made by ``fork()``: its events are kept even if the program keeps no object.
        self.is_forked = False
        self.emitter = Emitter(family.WORKER_EVENTS, self._subscribed)

    @staticmethod
    def _Popen(process_obj: ClusterProcess) -> Popen:  # noqa: N802  (multiprocessing's name)
        return Popen(process_obj)

    # -- what it is ------------------------------------------------------------------------

    @property
    def id(self) -> int | None:
        """Its number in this process's ``workers``: 1, 2, 3 …; None before the start."""
        return self._id

    @property
    def state(self) -> WorkerState:
        """Where it stands in its life, as far as this process has been told."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """Is the channel to it open?"""
        return self._channel is not None and not self._channel.closed

    @property
    def is_dead(self) -> bool:
        """Has the process ended?"""
        self._check_closed()
        return self._popen is not None and self._popen.poll() is not None

    @property
    def exited_after_disconnect(self) -> bool:
        """Was it asked to leave, by ``disconnect()`` or by itself? False after a crash."""
        return self._asked_to_leave

    @property
    def exit_signal(self) -> _signal.Signals | int | None:
        """The signal that ended it, or None: alive, or ended by itself.

        A real-time signal, which has no name, comes as its number.
        """
        code = self.exitcode
        if code is None or code >= 0:
            return None
        try:
            return _signal.Signals(-code)
        except ValueError:
            return -code

    # -- starting --------------------------------------------------------------------------

    def start(self) -> None:
        """Fork the child; as in ``multiprocessing``, then watch it.

        Raises:
            NotADirectoryError: ``cwd`` is no directory.
            OSError: The system has no room for one more process.
        """
        if self._cwd is not None and not os.path.isdir(self._cwd):
            raise NotADirectoryError(20, "the working directory of a worker", self._cwd)
        self._check_closed()
        if self._popen is None:
            self._settings = self._family.settings
            self._id = next(self._family.ids)
        super().start()
        popen = self._popen
        assert popen is not None
        self._channel = channel = Channel(
            popen.connection,
            label=f"worker {self._id} (pid {popen.pid})",
            limit=self._settings.channel_limit,
            send_timeout=self._settings.send_timeout,
        )
        channel.read_elsewhere = True
        channel.on_backlog = self._want_write
        self._step(Step.START)
        self._family.workers[self._id] = self
        the_watcher = watcher.current()
        # Last of all: from here on the watcher tells what happens, `fork` first.
        the_watcher.add(channel.fileno(), self._on_ready)
        the_watcher.add(popen.sentinel, self._on_end)

    # -- in the child ----------------------------------------------------------------------

    def _inherit(self, connection: Connection[Any, Any]) -> None:
        """First of all in the child: become a worker."""
        leash.wear()
        assert self._id is not None
        myself = workerside.enter(self._id, connection, self._settings)
        # What `_bootstrap` will call, a subclass's too.
        self.run = functools.partial(myself.run_program, self.run)  # type: ignore[method-assign]
        myself.say_online()
        os.environ[WORKER_ID_VARIABLE] = str(self._id)
        os.environ.update(self._env)
        if self._cwd is not None:
            os.chdir(self._cwd)
        if self._share_ports:
            sharing.install(myself.request, myself.tell)
            drain.install()
            myself.attend()

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        code: int = super()._bootstrap(parent_sentinel=parent_sentinel)  # type: ignore[misc]
        myself = workerside.current()
        if myself is not None:
            myself.flush()
        return code

    # -- talking to it -----------------------------------------------------------------------

    def send(self, message: object) -> None:
        """Send any cloudpickle-able object to the worker.

        What the worker does not read at once is queued, up to ``channel_limit`` bytes;
        past that the caller waits (a callback, which must not wait, gets the error).

        Raises:
            SerializationError: It cannot be pickled; the channel lives on.
            ChannelClosedError: The worker is gone.
            ChannelFullError: The worker has read nothing for ``send_timeout`` seconds, or
                this is a callback and ``channel_limit`` is reached.
            NotMasterError: This process is not the worker's parent.
            ValueError: The worker was not started.
        """
        channel = self._own_channel("send to")
        channel.send(message, Kind.USER, may_wait=not watcher.current().in_thread())

    def on(self, event: str, callback: Callback | None = None) -> Any:
        """Call ``callback`` on each ``event`` of this worker; without it, a decorator.

        ==============  =======================  ==========================================
        event           arguments                when
        ==============  =======================  ==========================================
        ``fork``                                 it was started
        ``online``                               it runs, before user code
        ``listening``   :class:`Address`         a shared listener is up in it
        ``message``     the message              it has sent one
        ``disconnect``                           its channel is closed
        ``death``                                it is gone and reaped
        ==============  =======================  ==========================================

        Callbacks run in the watcher's thread, one at a time. What came before anybody had
        subscribed is handed to the first that does. The events are those of Node's cluster.
        """
        if callback is None:
            return lambda function: self.emitter.add(event, function)
        return self.emitter.add(event, callback)

    def once(self, event: str, callback: Callback | None = None) -> Any:
        """As :meth:`on`, for the next time only."""
        if callback is None:
            return lambda function: self.emitter.add(event, function, once=True)
        return self.emitter.add(event, callback, once=True)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        self.emitter.discard(event, callback)

    def _subscribed(self, event: str) -> None:
        self._family.subscribed(event, self)

    def _own_channel(self, verb: str) -> Channel:
        self._check_closed()
        if self._parent_pid != os.getpid():
            raise NotMasterError(
                f"only the process that started {self.name} can {verb} it "
                f"(pid {self._parent_pid}; this is pid {os.getpid()})"
            )
        if self._channel is None:
            raise ValueError(f"{self.name} was not started; call start() first")
        return self._channel

    # -- ending it ---------------------------------------------------------------------------

    def disconnect(self, timeout: float | None = None) -> ClusterProcess:
        """Ask the worker to leave: no new connection, finish those it has, then go.

        Returns at once. A second call changes nothing, nor does one on the dead.

        Args:
            timeout: Seconds until SIGTERM; ``kill_timeout`` seconds later comes SIGKILL.
                None waits for as long as the worker takes.

        Raises:
            NotMasterError: This process is not the worker's parent.
            ValueError: The worker was not started, or ``timeout`` is negative.
        """
        self._own_channel("disconnect")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be seconds from 0 on, not {timeout!r}")
        if self._asked_to_leave or self.is_dead:
            return self
        self._asked_to_leave = True
        self._step(Step.DRAIN)
        watcher.current().call_soon(lambda: family.upward.leaving(self, self._tell_to_leave))
        if timeout is not None:
            self._after(timeout, self._terminate_then_kill)
        return self

    def _tell_to_leave(self) -> None:
        assert self._channel is not None
        try:
            self._channel.send(messages.Disconnect(), Kind.CONTROL, may_wait=False)
        except ChannelClosedError:
            return  # it has closed its end; the end of the process follows
        self._signal(_signal.SIGURG)  # a program that does not listen starts to

    def _terminate_then_kill(self) -> None:
        self._signal(_signal.SIGTERM)
        self._after(self._settings.kill_timeout, lambda: self._signal(_signal.SIGKILL))

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._timers.append(watcher.current().call_later(seconds, call))

    def kill(self, signal: int = _signal.SIGKILL) -> None:
        """Send ``signal`` to the worker; nothing happens if it is dead.

        Unlike a leave that was asked for, its end counts as a crash.
        """
        self._check_closed()
        self._popen._send_signal(signal)  # type: ignore[union-attr]

    def _signal(self, signum: int) -> None:
        popen = self._popen
        if popen is not None:
            popen._send_signal(signum)

    def close(self) -> None:
        """Release what the object holds; as in ``multiprocessing``, an error while it runs."""
        if self._popen is not None and self._parent_pid == os.getpid() and self.is_dead:
            self._wait_until_told()
        super().close()
        self._family.forget(self)

    def _wait_until_told(self) -> None:
        """Let the watcher finish with this dead worker, so that it holds it no longer."""
        the_watcher = watcher.current()
        if the_watcher.in_thread():
            self._on_end(0)
            return
        for _ in range(100):
            told = self._state is WorkerState.DEAD
            passed = threading.Event()
            the_watcher.call_soon(passed.set)
            # A callback may be running there that waits for this very thread.
            if not passed.wait(0.1 if told else 1.0) or told:
                return

    # -- the watcher's thread ------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        with self._stepping:
            self._state = advance(self._state, step)

    def _want_write(self, channel: Channel) -> None:
        watcher.current().modify(channel.fileno(), watcher.READABLE | watcher.WRITABLE)

    def _on_ready(self, events: int) -> None:
        channel = self._channel
        assert channel is not None
        self._tell_of_fork()
        if events & watcher.WRITABLE and channel.flush():
            watcher.current().modify(channel.fileno(), watcher.READABLE)
        if events & watcher.READABLE:
            self._take_in(channel)

    def _take_in(self, channel: Channel) -> bool:
        """Handle what is there on the channel; returns whether there was anything."""
        try:
            batch = channel.receive()
        except Exception as error:
            # Ours to mend, and no reason to stop watching this worker, or to spin.
            report(f"the channel of worker {self._id} failed; it is closed", error, self)
            self._lose_channel()
            return False
        for received in batch:
            self._handle(received)
        if channel.eof:
            self._lose_channel()
        return bool(batch)

    def _on_end(self, _events: int) -> None:
        """The process has ended: first what it had sent, then its end."""
        if self._state is WorkerState.DEAD:
            return
        popen, channel = self._popen, self._channel
        assert popen is not None and channel is not None
        self._tell_of_fork()
        while not channel.closed and self._take_in(channel):
            pass
        self._lose_channel()
        popen.poll()
        watcher.current().remove(popen.sentinel)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._step(Step.DIE)
        self._family.bury(self)

    def _tell_of_fork(self) -> None:
        if not self._fork_told:
            self._fork_told = True
            self._emit("fork")

    def _lose_channel(self) -> None:
        channel = self._channel
        assert channel is not None
        if not channel.closed:
            watcher.current().remove(channel.fileno())
            channel.close()
            self._step(Step.DISCONNECT)
            self._emit("disconnect")

    def _handle(self, received: Received) -> None:
        message = received.message
        if received.error is not None:
            report(f"a message of worker {self._id} (pid {self.pid})", received.error, self)
        elif received.kind is Kind.USER:
            self._emit("message", message, weight=received.size)
        elif isinstance(message, messages.Online):
            self._step(Step.COME_ONLINE)
            self._emit("online")
        elif isinstance(message, messages.Listening):
            self._step(Step.LISTEN)
            self._emit("listening", Address.of(message.family, message.sockname))
        elif isinstance(message, messages.Leaving):
            self._asked_to_leave = True
            self._step(Step.DRAIN)
        elif isinstance(message, messages.Request | messages.Release | messages.Gone):
            family.upward.answer(self, message)
        else:
            logger.warning("unknown control message of worker %s: %r", self._id, message)

    def reply(self, message: messages.Reply) -> None:
        """Answer a request of this worker; one that is gone needs none."""
        assert self._channel is not None
        try:
            self._channel.send(message, Kind.CONTROL, may_wait=False)
        except ChannelClosedError:
            pass

    def _emit(self, event: str, *args: object, weight: int = 0) -> None:
        self._family.emit(self, event, *args, weight=weight)


def _checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is None:
        return {}
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env maps names to strings, not {name!r} to {value!r}")
    return dict(env)
