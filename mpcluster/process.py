"""``ClusterProcess``: a ``multiprocessing.Process`` with a channel, events and a life.

What its user calls stands here, in the parent and, from `_inherit` on, in the child. What
happens to it, the watcher's thread takes in: :mod:`mpcluster.life`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal as _signal
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from mpcluster import arguments, descriptors, family, leash, watcher, workerside
from mpcluster.errors import NotMasterError
from mpcluster.events import Callback, Emitter
from mpcluster.life import Life
from mpcluster.popen import Popen
from mpcluster.states import WorkerState

if TYPE_CHECKING:
    from mpcluster import messages
    from mpcluster.post import Post

__all__ = ["WORKER_ID_VARIABLE", "ClusterProcess"]

C = TypeVar("C", bound=Callback)

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
        TypeError: ``env`` does not map strings to strings, or ``cwd`` is no path.
        NotADirectoryError: ``cwd`` is none (at ``start()``).
    """

    #: Its supervisor hears of everything first: ``overseer(worker, event, *args)``, in the
    #: watcher's thread. Its place there goes with it into the child.
    overseer: Callable[..., object] | None = None
    post: Post | None = None

    if TYPE_CHECKING:  # of BaseProcess, which typeshed leaves out
        _closed: bool
        _parent_pid: int
        _popen: Popen | None

        def _check_closed(self) -> None: ...

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
        self._env = arguments.environment(env)
        self._cwd = arguments.directory(cwd)
        self._share_ports = bool(share_ports)
        self._id: int | None = None
        self._life: Life | None = None
        self._family = family.current()
        self._settings = self._family.settings
        #: Made by ``fork()``: its events are kept even if the program keeps no object.
        self.is_forked = False
        self.emitter = Emitter(family.WORKER_EVENTS, _subscription_to(self))

    @staticmethod
    def _Popen(process_obj: ClusterProcess) -> Popen:  # type: ignore[override]  # noqa: N802
        return Popen(process_obj)

    # -- what it is ------------------------------------------------------------------------

    @property
    def id(self) -> int | None:
        """Its number in this process's ``workers``: 1, 2, 3 …; None before the start."""
        return self._id

    @property
    def state(self) -> WorkerState:
        """Where it stands in its life, as far as this process has been told."""
        return WorkerState.NEW if self._life is None else self._life.look()

    @property
    def is_connected(self) -> bool:
        """Is the channel to it open?"""
        return self._life is not None and self._life.is_connected

    @property
    def is_dead(self) -> bool:
        """Has the process ended?"""
        self._check_closed()
        return self._popen is not None and self._popen.poll() is not None

    @property
    def exited_after_disconnect(self) -> bool:
        """Was it asked to leave, by ``disconnect()`` or by itself? False after a crash."""
        return self._life is not None and self._life.asked_to_leave

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
            raise NotADirectoryError(errno.ENOTDIR, "the working directory of a worker", self._cwd)
        self._check_closed()
        if self._popen is None:
            self._settings = self._family.settings
            self._id = next(self._family.ids)
        if self._share_ports:
            family.load_upward()
        rings = watcher.current().rings  # a watcher that cannot be had fails now or never
        with self._family.forking() if self.is_forked else contextlib.nullcontext():
            super().start()
            assert self._popen is not None
            assert self._id is not None
            try:
                self._life = Life(self, self._popen, self._settings, self._family)
            except OSError:  # out of descriptors: a child that nobody can watch must not live
                self._popen.kill()
                self._popen.wait()
                descriptors.close(self._popen.connection)
                self.is_alive()  # multiprocessing forgets it, and its sentinel goes
                raise
            self._family.workers[self._id] = self
        try:
            self._life.begin(rings)
        except OSError:
            self._popen.kill()
            self._popen.wait()
            self._life.abandon()
            raise

    # -- in the child ----------------------------------------------------------------------

    def _inherit(self, connection: int) -> None:
        """First of all in the child: become a worker."""
        leash.wear()
        assert self._id is not None
        myself = workerside.enter(self._id, connection, self._settings, self.post)
        # What `_bootstrap` will call, a subclass's too.
        self.run = functools.partial(myself.run_program, self.run)  # type: ignore[method-assign]
        myself.begin()
        os.environ[WORKER_ID_VARIABLE] = str(self._id)
        if self._env:
            os.environ.update(self._env)
        if self._cwd is not None:
            os.chdir(self._cwd)
        if self._share_ports:
            from mpcluster import drain, sharing

            sharing.install(myself.request, myself.tell)
            if self._settings.share == "kernel" and workerside.parents() is None:
                sharing.install_beneath(myself.request)
            drain.install()
        if self._share_ports or self.post is not None:
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
        life = self._life
        # A family is one process's own, and to ask for the pid is a system call.
        if life is None or self._closed or self._family is not family.current():
            life = self._own_life("send to")
        life.downstream().send(message)

    @overload
    def on(self, event: str) -> Callable[[C], C]: ...
    @overload
    def on(self, event: str, callback: C) -> C: ...
    def on(self, event: str, callback: Callback | None = None) -> object:
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

    @overload
    def once(self, event: str) -> Callable[[C], C]: ...
    @overload
    def once(self, event: str, callback: C) -> C: ...
    def once(self, event: str, callback: Callback | None = None) -> object:
        """As :meth:`on`, for the next time only."""
        if callback is None:
            return lambda function: self.emitter.add(event, function, once=True)
        return self.emitter.add(event, callback, once=True)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        self.emitter.discard(event, callback)

    def reply(self, message: messages.Reply) -> None:
        """Answer a request of this worker. For the layer above, in the watcher's thread."""
        if self._life is not None:
            self._life.order(message)

    def inform(self, message: messages.Laid) -> None:
        """Tell this worker. For the layer above, in the watcher's thread."""
        if self._life is not None:
            self._life.order(message)

    def ping(self, number: int) -> None:
        """Ask for a sign of life. For the layer above, in the watcher's thread."""
        if self._life is not None:
            from mpcluster.messages import Ping

            self._life.order(Ping(number))

    def attend(self) -> None:
        """Somebody listens: tell all there is of it from now on. In the watcher's thread."""
        if self._life is not None:
            self._life.tell_of_fork()
            self._life.listen()

    def _own_life(self, verb: str) -> Life:
        self._check_closed()
        if self._parent_pid != os.getpid():
            raise NotMasterError(
                f"only the process that started {self.name} can {verb} it "
                f"(pid {self._parent_pid}; this is pid {os.getpid()})"
            )
        if self._life is None:
            raise ValueError(f"{self.name} was not started; call start() first")
        return self._life

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
            TypeError: ``timeout`` is no number.
        """
        life = self._own_life("disconnect")
        arguments.check_timeout(timeout)
        if not self.is_dead:
            life.ask_to_leave(timeout)
        return self

    def kill(self, signal: int = _signal.SIGKILL) -> None:
        """Send ``signal`` to the worker; nothing happens if it is dead.

        Unlike a leave that was asked for, its end counts as a crash.

        Raises:
            TypeError, ValueError: There is no such signal; or the worker was not started.
        """
        self._check_closed()
        arguments.check_signal(signal)
        if self._popen is None:
            raise ValueError(f"{self.name} was not started; call start() first")
        self._popen.send_signal(signal)

    def close(self) -> None:
        """Release what the object holds; as in ``multiprocessing``, an error while it runs."""
        life = self._life
        is_ours = self._parent_pid == os.getpid() and self._popen is not None
        if life is not None and is_ours and self.is_dead:
            life.wait_until_told()
        super().close()
        self._family.forget(self)


def _subscription_to(process: ClusterProcess) -> Callable[[str], None]:
    # Weakly: the circle would keep a dead worker's descriptor until it is collected.
    reference = weakref.ref(process)

    def subscribed(event: str) -> None:
        if event == "message":
            family.load_upward()  # here, so that no child has to
        subject = reference()
        if subject is not None:
            subject._family.subscribed(event, subject)  # noqa: SLF001

    return subscribed
