"""The cluster of this process: what ``import mpcluster as cluster`` gives its user.

The functions here are the whole of it; state lies in the layers below, one object a
process: the family of workers, the worker's own side, the registry of listeners. The
registry is the root master's alone, and is touched in its watcher's thread alone.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from mpcluster import configuration, ending, family, mainprogram, messages, sharing, watcher, workerside
from mpcluster.errors import ClusterError, NotMasterError
from mpcluster.events import Callback
from mpcluster.process import ClusterProcess
from mpcluster.registry import Registry
from mpcluster.scheduling import check, queued

__all__ = [
    "broadcast",
    "disconnect",
    "fork",
    "join",
    "listen",
    "off",
    "on",
    "once",
    "send",
    "setup",
]

T = TypeVar("T")


# -- forking -------------------------------------------------------------------------------


def fork(
    target: Callable[..., object] | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    daemon: bool | None = None,
    share_ports: bool = True,
) -> ClusterProcess:
    """Start a worker and return it. In the master only; in any of its threads.

    Args:
        target: What the worker calls; without it, it runs the main program again, with
            the same ``sys.argv``, as ``__main__``, and ``is_worker`` true.
        args: Positional arguments of ``target``.
        kwargs: Keyword arguments of ``target``.
        name: The worker's name; ``ClusterProcess-N`` without one.
        env: Set in its environment, besides the master's.
        cwd: Its working directory.
        daemon: The master does not wait for it at its end.
        share_ports: Its ordinary servers share their ports with the other workers'.

    Raises:
        NotMasterError: This is a worker. (It may start ``ClusterProcess`` es of its own.)
        RuntimeError: Without a target: the main program is no file that could be run
            again. Or the master's program is over already.
        TypeError, NotADirectoryError, OSError: As :class:`ClusterProcess`.
    """
    myself = workerside.current()
    if myself is not None:
        raise NotMasterError(
            f"fork() was called in worker {myself.id} (pid {os.getpid()}); only the master "
            "forks. Guard it by `if cluster.is_master:`, or start a mpcluster.ClusterProcess"
        )
    if target is None:
        if args or kwargs:
            raise TypeError("args and kwargs are the target's, and there is no target")
        target = mainprogram.locate().run
    process = ClusterProcess(
        None,
        target,
        name,
        tuple(args),
        dict(kwargs or {}),
        daemon=daemon,
        env=env,
        cwd=cwd,
        share_ports=share_ports,
    )
    process.is_forked = True
    ending.prepare(_close_registry)
    process.start()
    return process


# -- events --------------------------------------------------------------------------------


def on(event: str, callback: Callback | None = None) -> Any:
    """Subscribe to an event of every worker; without a callback, a decorator.

    In the master the callback gets the worker first: ``message(worker, message)``; the
    events are those of :meth:`ClusterProcess.on`. In a worker ``message`` and
    ``disconnect`` are its own, as :meth:`Worker.on` has them.

    Raises:
        ValueError: There is no such event.
        TypeError: The callback cannot be called.
    """
    return _subscribe(event, callback, once=False)


def once(event: str, callback: Callback | None = None) -> Any:
    """As :func:`on`, for the next time only."""
    return _subscribe(event, callback, once=True)


def off(event: str, callback: Callback | None = None) -> None:
    """Unsubscribe ``callback``, or everybody who subscribed by :func:`on`."""
    myself = workerside.current()
    if myself is not None and event in workerside.EVENTS:
        myself.off(event, callback)
    else:
        family.current().emitter.discard(event, callback)


def _subscribe(event: str, callback: Callback | None, *, once: bool) -> Any:
    if callback is None:
        return lambda function: _subscribe(event, function, once=once)
    myself = workerside.current()
    if myself is not None and event in workerside.EVENTS:
        return (myself.once if once else myself.on)(event, callback)
    return family.current().emitter.add(event, callback, once=once)


# -- messages ------------------------------------------------------------------------------


def send(message: object) -> None:
    """Send a message to the master. In a worker; see :meth:`Worker.send`.

    Raises:
        ClusterError: This is the master.
    """
    myself = workerside.current()
    if myself is None:
        raise ClusterError(
            "send() goes from a worker to its master, and this is the master; "
            "use worker.send(message) of one worker, or broadcast(message)"
        )
    myself.send(message)


def broadcast(message: object) -> None:
    """Send a message to every worker of this process that is connected.

    Raises:
        SerializationError: It cannot be pickled; nobody got it.
        ExceptionGroup: Some workers do not read (ChannelFullError each); the others got it.
    """
    errors: list[Exception] = []
    for process in list(family.current().workers.values()):
        if not process.is_connected:
            continue
        try:
            process.send(message)
        except (OSError, ClusterError) as error:
            if isinstance(error, TypeError) or not process.is_connected:
                continue
            errors.append(error)
    if errors:
        raise ExceptionGroup("not every worker could be reached", errors)


# -- settings ------------------------------------------------------------------------------


def setup(**changes: object) -> None:
    """Change the settings of later forks; cumulative.

    Args:
        changes: Fields of :class:`mpcluster.Settings`.

    Raises:
        TypeError: There is no such setting, or its value is of a wrong type.
        ValueError: The value is out of range.
    """
    if "scheduling" in changes:
        check(changes["scheduling"])
    relatives = family.current()
    relatives.settings = configuration.changed(relatives.settings, changes)


# -- ending --------------------------------------------------------------------------------


def disconnect(
    callback: Callable[[], object] | None = None, *, timeout: float | None = None
) -> None:
    """Ask every worker of this process to leave. Returns at once.

    Args:
        callback: Called in the watcher's thread after the last of their deaths; soon,
            where there is no worker. (Node calls it at the first exit.)
        timeout: As of :meth:`ClusterProcess.disconnect`, seconds.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, not {callback!r}")
    relatives = family.current()
    workers = list(relatives.workers.values())
    if callback is not None:
        relatives.after_deaths({process.id for process in workers}, callback)
    for process in workers:
        process.disconnect(timeout)


def join(timeout: float | None = None) -> bool:
    """Wait until no worker of this process is left and every death has been told.

    In a callback it waits for the processes alone: what is to be told comes after it.

    Args:
        timeout: Seconds; None waits for as long as it takes.

    Returns:
        False if there is still a worker at the end of ``timeout``.
    """
    relatives = family.current()
    if not watcher.current().in_thread():
        return relatives.wait_told(
            lambda: not relatives.workers and relatives.is_settled(), timeout
        )
    deadline = None if timeout is None else time.monotonic() + timeout
    for process in list(relatives.workers.values()):
        process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            return False
    return True


# -- listeners -----------------------------------------------------------------------------


def listen(
    address: object,
    *,
    type: int = socket.SOCK_STREAM,
    family: int | None = None,
    backlog: int | None = None,
    exclusive: bool = False,
    scheduling: object = None,
    mode: int | None = None,
) -> socket.socket:
    """Return a bound, listening socket, shared with every worker that asks for the address.

    The listener itself belongs to the root master: connections that wait in its queue
    survive the death of any worker.

    Args:
        address: ``(host, port)``, a bare port (all IPv4 interfaces), or a path, also as
            ``unix:/path``. The n-th port 0 of every worker is the same random port.
        type: ``SOCK_STREAM`` or ``SOCK_DGRAM`` (bound, not listening).
        family: Where the host's name leaves it open.
        backlog: Connections that may wait; the system's most where it is None.
        exclusive: Not shared: an ordinary socket of this process.
        scheduling: The policy, if this is the first to ask; else ``setup``'s.
        mode: Permission bits of a unix path.

    Raises:
        OSError: As the master met it, with ``.address``: taken, not permitted, ….
        TypeError, ValueError: The address, or another argument, is none.
    """
    return sharing.shared_listen(
        ask,
        tell,
        address,
        type=type,
        family=family,
        backlog=backlog,
        exclusive=exclusive,
        scheduling=scheduling,
        mode=mode,
    )


def ask(body: object) -> object:
    """Ask the root master's registry, wherever this process stands."""
    myself = workerside.current()
    if myself is not None:
        return myself.request(body)
    return _in_watcher(lambda: _answer_master(body))


def tell(message: object) -> None:
    """Tell the registry, or, in a worker, the parent."""
    myself = workerside.current()
    if myself is not None:
        myself.tell(message)
    elif isinstance(message, messages.Release):
        watcher.current().call_soon(lambda: _answer_master(message))


# -- the registry: the root master's, in the watcher's thread --------------------------------

_registry: Registry | None = None

#: Seconds between two looks at the queue of a worker that is to leave, and for how long.
QUEUE_LOOK = 0.01
QUEUE_PATIENCE = 1.0


def _registry_here() -> Registry:
    global _registry
    if _registry is None:
        _registry = Registry(
            call_later=watcher.current().call_later,
            grace=family.current().settings.listener_grace,
        )
        _registry.inherit()
    return _registry


def _answer_master(body: object) -> object:
    registry = _registry_here()
    if isinstance(body, messages.Bind):
        return registry.hold(_with_policy(body))
    return registry.handle((), body)


def _with_policy(bind: messages.Bind) -> messages.Bind:
    """What `setup` says, where the asker says nothing; `auto` leaves it to the environment."""
    policy = family.current().settings.scheduling
    if bind.scheduling is not None or policy == "auto":
        return bind
    return dataclasses.replace(bind, scheduling=policy)


def _in_watcher(call: Callable[[], T]) -> T:
    """Call in the watcher's thread and return what it returns, or raise what it raises."""
    if watcher.current().in_thread():
        return call()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    watcher.current().call_soon(run)
    return future.result()


def _close_registry() -> None:
    global _registry
    registry, _registry = _registry, None
    if registry is not None:
        registry.close()


def _after_fork_in_child() -> None:
    global _registry
    _registry = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Upward(family.Upward):
    """Workers' requests: answered by the root master, passed on by those in between."""

    def answer(
        self,
        worker: ClusterProcess,
        message: messages.Request | messages.Release | messages.Gone,
    ) -> None:
        assert worker.id is not None
        myself = workerside.current()
        if isinstance(message, messages.Request):
            route = (worker.id, *message.route)
            if myself is None:
                worker.reply(_answer(route, message))
            else:
                _pass_on(myself, worker, route, message)
        elif isinstance(message, messages.Release):
            # Of a worker further down it comes as a request.
            if myself is None:
                _registry_here().handle((worker.id,), message)
            else:
                myself.request_then(message, (worker.id,), Future())
        else:
            self._left((worker.id, *message.route), crashed=message.crashed)

    def leaving(self, worker: ClusterProcess, proceed: Callable[[], object]) -> None:
        assert worker.id is not None
        if _registry is None or workerside.current() is not None:
            proceed()
            return
        its_own = _registry.drain((worker.id,))
        deadline = time.monotonic() + QUEUE_PATIENCE

        def look() -> None:
            # It takes what has queued for it alone before it hears that it shall go.
            waiting = any(sock.fileno() >= 0 and queued(sock) for sock in its_own)
            if waiting and not worker.is_dead and time.monotonic() < deadline:
                watcher.current().call_later(QUEUE_LOOK, look)
            else:
                proceed()

        look()

    def gone(self, worker: ClusterProcess) -> None:
        assert worker.id is not None
        crashed = worker.exitcode != 0 and not worker.exited_after_disconnect
        self._left((worker.id,), crashed=crashed)

    def _left(self, route: messages.Route, *, crashed: bool) -> None:
        myself = workerside.current()
        if myself is not None:
            myself.tell(messages.Gone(route, crashed))
        elif _registry is not None:
            _registry.left(route, crashed=crashed)


def _answer(route: messages.Route, request: messages.Request) -> messages.Reply:
    body = request.body
    try:
        if isinstance(body, messages.Bind):
            body = _with_policy(body)
        return messages.Reply(request.number, _registry_here().handle(route, body))
    except Exception as error:
        return messages.Reply(request.number, error=error)


def _pass_on(
    myself: workerside.Worker,
    worker: ClusterProcess,
    route: messages.Route,
    request: messages.Request,
) -> None:
    """Ask on behalf of a worker below this one, and hand the answer down."""

    def hand_down(answered: Future[object]) -> None:
        error = answered.exception()
        if error is not None:
            worker.reply(messages.Reply(request.number, error=error))
            return
        value = answered.result()
        worker.reply(messages.Reply(request.number, value))
        _close_socket(value)

    future: Future[object] = Future()
    future.add_done_callback(hand_down)
    try:
        myself.request_then(request.body, route, future)
    except Exception as error:
        future.set_exception(error)
    _close_socket(request.body)


def _close_socket(carrier: object) -> None:
    """Close this process's copy of a socket that was only passed on."""
    if isinstance(carrier, messages.Bind | messages.Bound) and carrier.socket is not None:
        carrier.socket.close()


family.upward = _Upward()
