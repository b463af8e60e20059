"""``ClusterProcess``: a ``multiprocessing.Process`` with a channel, events and a life.

What its user calls stands here. What happens to it, the watcher's thread takes in:
:mod:`mpcluster.life`. How a child becomes the process: :mod:`mpcluster.descent`.
"""

from __future__ import annotations

import errno
import os
import signal as _signal
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context
from typing import TYPE_CHECKING, Any, TypeVar, overload

from mpcluster import above, arguments, family, watcher
from mpcluster.errors import NotMasterError
from mpcluster.events import Callback, Emitter
from mpcluster.life import Life
from mpcluster.popen import Popen
from mpcluster.states import WorkerState
from mpcluster.unheard import Unheard

if TYPE_CHECKING:
    from mpcluster import messages
    from mpcluster.post import Post

__all__ = ["ClusterProcess"]

C = TypeVar("C", bound=Callback)


class ClusterProcess(Unheard, context.ForkProcess):
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
    #: Made by ``fork()``: its events are kept even if the program keeps no object.
    is_forked = False
    #: Its own callbacks, once there was one.
    made_emitter: Emitter | None = None

    #: A subclass that has something to do in the child before all else says so, and does it
    #: in :meth:`_inherit`.
    _inherits = False

    # Defaults, so that a start has less to do.
    _env: Mapping[str, str] | None = None
    _cwd: str | None = None
    _share_ports = False
    _id: int | None = None

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
        if env is not None:
            self._env = arguments.environment(env)
        if cwd is not None:
            self._cwd = arguments.directory(cwd)
        if share_ports:
            self._share_ports = True
        self._family = family.current()
        self._settings = self._family.settings  # for one that is started by other means

    def _inherit(self) -> None:
        """In the child, before the program and what it shares; see :attr:`_inherits`."""

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
        self.look_after_unheard()
        if self._life is not None:
            return self._life.state
        if self._has_run is not None:
            return WorkerState.DEAD
        if self._popen is None:
            return WorkerState.NEW
        return WorkerState.ONLINE if self._has_greeted() else WorkerState.STARTING

    @property
    def is_connected(self) -> bool:
        """Is the channel to it open?"""
        life = self.rouse()
        return life is not None and life.is_connected

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

    @property
    def shares_ports(self) -> bool:
        """Do its ordinary servers share their ports?"""
        return self._share_ports

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
            above.load()
        the_watcher = watcher.current()  # that cannot be had now or never
        rings = the_watcher.rings
        if self.is_forked:
            with self._family.forking():
                self._launch()
        else:
            self._launch()
        # Nobody is woken for it, and no more is done, if nobody hears anything of it.
        is_minded = the_watcher.when_woken(self._family.rouse)
        if not (is_minded and the_watcher.rings == rings) or self._is_heard():
            self.rouse()

    def _launch(self) -> None:
        super().start()
        popen = self._popen
        assert popen is not None
        assert self._id is not None
        popen.on_end = self._note_end
        self._family.workers[self._id] = self
        if popen.returncode is not None:
            self.look_after_unheard()  # another thread was quick

    def _is_heard(self) -> bool:
        assert self._popen is not None
        return (
            self.is_forked
            or self.made_emitter is not None
            or self._share_ports
            or self.overseer is not None
            or not self._popen.has_bell
            or self._family.hears_anything()
        )

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

    @property
    def emitter(self) -> Emitter:
        """Its own callbacks."""
        made = self.made_emitter
        if made is None:
            made = Emitter(family.WORKER_EVENTS, _subscription_to(self))
            made = self.__dict__.setdefault("made_emitter", made)  # another thread was quicker
        return made

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
        life = self.rouse()
        if life is not None:
            life.tell_of_fork()
            life.listen()

    def _own_life(self, verb: str) -> Life:
        self._check_closed()
        if self._parent_pid != os.getpid():
            raise NotMasterError(
                f"only the process that started {self.name} can {verb} it "
                f"(pid {self._parent_pid}; this is pid {os.getpid()})"
            )
        life = self.rouse()
        if life is not None:
            return life
        if self._has_run is None or self._popen is None:
            raise ValueError(f"{self.name} was not started; call start() first")
        return Life.over(self, self._popen, self._settings, self._family)

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
        popen = self._popen
        if popen is not None and self._parent_pid == os.getpid():
            is_dead = popen.poll() is not None
            if is_dead and self._life is not None:
                self._life.wait_until_told()
        super().close()
        self._family.forget(self)


def _subscription_to(process: ClusterProcess) -> Callable[[str], None]:
    # Weakly: the circle would keep a dead worker's descriptor until it is collected.
    reference = weakref.ref(process)

    def subscribed(event: str) -> None:
        if event == "message":
            above.load()  # here, so that no child has to
        subject = reference()
        if subject is not None:
            subject._family.subscribed(event, subject)  # noqa: SLF001

    return subscribed
