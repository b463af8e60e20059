"""The cluster of this process: what ``import mpcluster as cluster`` gives its user.

The functions here are the whole of it; state lies in the layers below, one object a
process: the family of workers, the worker's own side, the registry of listeners.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

# `drain` and `hearing` for the workers' sake: what is here they need not import.
from mpcluster import (
    arguments,
    configuration,
    drain,  # noqa: F401
    family,
    hearing,  # noqa: F401
    registrar,
    sharing,
    watcher,
    workerside,
)
from mpcluster.errors import ChannelClosedError, ClusterError, SerializationError
from mpcluster.events import Callback
from mpcluster.process import ClusterProcess
from mpcluster.recruiting import recruit, require_master
from mpcluster.scheduling import check
from mpcluster.sharing import seccomp

__all__ = [
    "broadcast",
    "disconnect",
    "fork",
    "join",
    "listen",
    "off",
    "on",
    "once",
    "ready",
    "send",
    "setup",
    "supervise",
]

if TYPE_CHECKING:
    from mpcluster.supervision import Supervisor

C = TypeVar("C", bound=Callback)


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
    require_master("fork()")
    process = recruit(
        target,
        args,
        kwargs,
        name=name,
        env=env,
        cwd=cwd,
        daemon=daemon,
        share_ports=share_ports,
    )
    process.start()
    return process


def supervise(
    target: Callable[..., object] | None = None,
    workers: int | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    share_ports: bool = True,
    **rules: Any,
) -> Supervisor:
    """Keep a number of slots filled with workers, and return who sees to it.

    Returns at once; the workers are forked in the watcher's thread. The program lives
    until the supervisor has stopped.

    Args:
        target: As of :func:`fork`, and so are ``args``, ``kwargs``, ``name``, ``env``, ``cwd``
            and ``share_ports``.
        workers: How many; as many as there are processors for this process without it.
        rules: Fields of :class:`mpcluster.Rules`: ``restart``, ``backoff``, ``ready``, …

    Raises:
        NotMasterError: This is a worker.
        TypeError, ValueError: A rule is none, or an argument is of a wrong type or range.
        RuntimeError: Without a target: the main program is no file.
    """
    from mpcluster.supervision import Rules, Supervisor

    require_master("supervise()")
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    arguments.check_count("workers", workers, least=1)
    checked = Rules.named(rules)

    def make() -> ClusterProcess:
        return recruit(
            target,
            args,
            kwargs,
            name=name,
            env=env,
            cwd=cwd,
            daemon=None,
            share_ports=share_ports,
        )

    args, kwargs = arguments.call(args, kwargs)
    make()  # what is wrong with the arguments is raised here
    return Supervisor(make, workers, checked)


def ready() -> None:
    """Tell the supervisor that this worker is ready to work. In a worker.

    Raises:
        ClusterError: This is the master.
    """
    myself = workerside.current()
    if myself is None:
        raise ClusterError("ready() is said by a worker to its supervisor, and this is the master")
    myself.ready()


# -- events --------------------------------------------------------------------------------


@overload
def on(event: str) -> Callable[[C], C]: ...
@overload
def on(event: str, callback: C) -> C: ...
def on(event: str, callback: Callback | None = None) -> object:
    """Subscribe to an event of every worker; without a callback, a decorator.

    In the master the callback gets the worker first: ``message(worker, message)``; the
    events are those of :meth:`ClusterProcess.on`. In a worker ``message`` and
    ``disconnect`` are its own, as :meth:`Worker.on` has them.

    Raises:
        ValueError: There is no such event.
        TypeError: The callback cannot be called.
    """
    return _subscribe(event, callback, once=False)


@overload
def once(event: str) -> Callable[[C], C]: ...
@overload
def once(event: str, callback: C) -> C: ...
def once(event: str, callback: Callback | None = None) -> object:
    """As :func:`on`, for the next time only."""
    return _subscribe(event, callback, once=True)


def off(event: str, callback: Callback | None = None) -> None:
    """Unsubscribe ``callback``, or everybody who subscribed by :func:`on`."""
    myself = workerside.current()
    if myself is not None and event in workerside.EVENTS:
        myself.off(event, callback)
    else:
        family.current().emitter.discard(event, callback)


def _subscribe(event: str, callback: Callback | None, *, once: bool) -> object:
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
        except SerializationError:
            raise
        except ChannelClosedError:
            continue  # it is gone, which will be told of
        except (OSError, ClusterError) as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("not every worker could be reached", errors)


# -- settings ------------------------------------------------------------------------------


def setup(**changes: Unpack[configuration.Changes]) -> None:
    """Change the settings of later forks; cumulative: what is not named stays as it is.

    Args:
        changes: Fields of :class:`mpcluster.Settings`: ``scheduling``, ``kill_timeout``,
            ``channel_limit``, ``send_timeout``, ``listener_grace``, ``max_connections``,
            ``share``.

    Raises:
        TypeError: There is no such setting, or its value is of a wrong type.
        ValueError: The value is out of range.
        ClusterError: ``share="kernel"`` is not possible here; the text says why.
    """
    relatives = family.current()
    settings = configuration.changed(relatives.settings, changes)
    if "scheduling" in changes or "max_connections" in changes:
        check(settings.scheduling, settings.max_connections)
    if changes.get("share") == "kernel":
        seccomp.check()
    relatives.settings = settings


# -- ending --------------------------------------------------------------------------------


def disconnect(
    callback: Callable[[], object] | None = None, *, timeout: float | None = None
) -> None:
    """Ask every worker of this process to leave. Returns at once.

    A supervisor of this process stops: nobody takes their places.

    Args:
        callback: Called in the watcher's thread after the last of their deaths; soon,
            where there is no worker. (Node calls it at the first exit.)
        timeout: As of :meth:`ClusterProcess.disconnect`, seconds; a supervisor's workers
            have its ``drain_timeout`` where it is None.

    Raises:
        TypeError, ValueError: An argument is wrong; nobody was asked to leave.
    """
    arguments.check_timeout(timeout)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, not {callback!r}")
    holders = family.current().holders
    for holder in holders:
        holder.stop(timeout)
    if holders:
        # After they have stopped: only then it is settled who is the last.
        watcher.current().call_soon(lambda: _disconnect_all(callback, timeout))
    else:
        _disconnect_all(callback, timeout)


def _disconnect_all(callback: Callable[[], object] | None, timeout: float | None) -> None:
    relatives = family.current()
    workers = list(relatives.workers.values())
    if callback is not None:
        relatives.after_deaths([process.id for process in workers if process.id], callback)
    for process in workers:
        process.disconnect(timeout)


def join(timeout: float | None = None) -> bool:
    """Wait until no worker of this process is left and every death has been told.

    In a callback it waits for the processes alone: what is to be told comes after it.

    Args:
        timeout: Seconds; None waits for as long as it takes.

    Returns:
        False if there is still a worker at the end of ``timeout``.

    Raises:
        TypeError, ValueError: ``timeout`` is no number.
    """
    arguments.check_timeout(timeout, least=-math.inf)  # as any join in Python
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
    type: int = socket.SOCK_STREAM,  # noqa: A002  # as socket.socket names it
    family: int | None = None,
    backlog: int | None = None,
    exclusive: bool = False,
    scheduling: object = None,
    mode: int | None = None,
    max_connections: int | None = None,
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
        max_connections: That each worker may have open at once, if this is the first to
            ask; else ``setup``'s.
        mode: Permission bits of a unix path.

    Raises:
        OSError: As the master met it, with ``.address``: taken, not permitted, ….
        TypeError, ValueError: The address, or another argument, is none.
    """
    return sharing.shared_listen(
        registrar.ask,
        registrar.tell,
        address,
        type=type,
        family=family,
        backlog=backlog,
        exclusive=exclusive,
        scheduling=scheduling,
        max_connections=max_connections,
        mode=mode,
    )
