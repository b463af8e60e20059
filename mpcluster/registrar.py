"""Where shared listeners are asked for: answered by the root master, passed on below it.

The registry is the root master's alone and is touched in its watcher's thread alone. A
worker asks its parent; one that has workers of its own passes their questions up and the
answers down, and tells of their deaths.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import cloudpickle

from mpcluster import above, bequest, family, interpreter, messages, watcher, workerside
from mpcluster.errors import ClusterError
from mpcluster.registry import Registry
from mpcluster.scheduling import queued

if TYPE_CHECKING:
    from mpcluster.listeners import Listener
    from mpcluster.process import ClusterProcess
    from mpcluster.sharing.notifications import Answerer

__all__ = ["ask", "close", "inherit", "listeners", "tell"]

logger = logging.getLogger("mpcluster")

#: Seconds between two looks at the queue of a worker that is to leave, and for how long.
QUEUE_LOOK: Final = 0.01
QUEUE_PATIENCE: Final = 1.0


# -- any thread ------------------------------------------------------------------------------


def ask(body: object) -> object:
    """Ask the root master's registry, wherever this process stands."""
    myself = workerside.current()
    if myself is not None:
        return myself.request(body)
    return watcher.current().ask(lambda: _answer_master(body))


def tell(message: object) -> None:
    """Tell the registry, or, in a worker, the parent."""
    myself = workerside.current()
    if myself is not None:
        myself.tell(message)
    elif isinstance(message, messages.Release):
        watcher.current().call_soon(lambda: _answer_master(message))


def inherit() -> None:
    """Take over the sockets that this program was started with, before the first worker."""
    handed_down = "LISTEN_FDS" in os.environ or bequest.VARIABLE in os.environ
    if handed_down and workerside.current() is None:
        watcher.current().ask(_registry_here)


# -- from one master to the next, in the watcher's thread ----------------------------------------


def bequeath() -> list[bequest.Bequest]:
    """What the next master has to know of the listeners of this one."""
    return [] if _registry is None else _registry.bequeath()


def let_go(proceed: Callable[[], object]) -> None:
    """The next master has taken over; ``proceed()`` when nothing waits in this one any more."""
    if _registry is not None:
        _registry.let_go()
    deadline = time.monotonic() + QUEUE_PATIENCE

    def look() -> None:
        if _registry is not None and _registry.in_hand and time.monotonic() < deadline:
            watcher.current().call_later(QUEUE_LOOK, look)
        else:
            proceed()

    look()


def settle() -> None:
    """The last master has let go: from now on this one has the say."""
    if _registry is not None:
        _registry.settle()


def listeners() -> list[Listener]:
    """Return the listeners that this master keeps now. In its watcher's thread."""
    return [] if _registry is None else _registry.listeners


def close() -> None:
    """Close every listener and remove the unix paths: the master ends."""
    global _registry
    registry, _registry = _registry, None
    if registry is not None:
        registry.close()


# -- the root master's registry, in the watcher's thread ---------------------------------------

_registry: Registry | None = None

#: Who answers the kernel for which worker.
_answerers: dict[int, Answerer] = {}


def _registry_here() -> Registry:
    global _registry
    if _registry is None:
        settings = family.current().settings
        _registry = Registry(call_later=watcher.current().call_later, grace=settings.listener_grace)
        _registry.inherit(
            scheduling=None if settings.scheduling == "auto" else settings.scheduling,
            max_connections=settings.max_connections,
        )
        _registry.succeed(bequest.read(os.environ))
    return _registry


def _answer_master(body: object) -> object:
    registry = _registry_here()
    if isinstance(body, messages.Bind):
        return registry.hold(_with_settings(body))
    return registry.handle((), body)


def _with_settings(bind: messages.Bind) -> messages.Bind:
    """What `setup` says, where the asker says nothing; `auto` leaves it to the environment."""
    settings = family.current().settings
    _registry_here().grace = settings.listener_grace
    policy, limit = bind.scheduling, bind.max_connections
    if policy is None and settings.scheduling != "auto":
        policy = settings.scheduling
    if limit is None:
        limit = settings.max_connections
    return dataclasses.replace(bind, scheduling=policy, max_connections=limit)


def _after_fork_in_child() -> None:
    global _registry
    _registry = None
    _answerers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

# After what a first fork() registers: up to 3.11 the master of a program that has ended waits
# for its workers in there, and they listen.
interpreter.at_the_very_end(close)


class _Above(above.Above):
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
            if isinstance(message.body, messages.Notifies | messages.Exempt) and myself is None:
                worker.reply(_obey(worker, message.number, message.body))
            elif myself is not None:
                _pass_on(myself, worker, route, message)
            elif isinstance(message.body, messages.SteerAway):
                reply = messages.Reply(message.number)
                _steer_away(route, lambda: worker.is_dead, lambda: worker.reply(reply))
            else:
                worker.reply(_answer(route, message))
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
        myself = workerside.current()
        if myself is None:
            _steer_away((worker.id,), lambda: worker.is_dead, proceed)
        else:
            _have_steered_away(myself, (worker.id,), proceed)

    def gone(self, worker: ClusterProcess, *, crashed: bool) -> None:
        assert worker.id is not None
        answerer = _answerers.pop(worker.id, None)
        if answerer is not None:
            answerer.leave()
        self._left((worker.id,), crashed=crashed)

    def _left(self, route: messages.Route, *, crashed: bool) -> None:
        myself = workerside.current()
        if myself is not None:
            myself.tell(messages.Gone(route, crashed))
        elif _registry is not None:
            _registry.left(route, crashed=crashed)


def _obey(
    worker: ClusterProcess, number: int, body: messages.Notifies | messages.Exempt
) -> messages.Reply:
    """What a worker with ``share="kernel"`` wants of its master."""
    assert worker.id is not None
    try:
        if isinstance(body, messages.Exempt):
            _answerers[worker.id].exempt(body.inode)
        else:
            _answerers[worker.id] = _answerer(worker, worker.id, body)
    except Exception as error:  # noqa: BLE001  # the asker's to raise
        return messages.Reply(number, error=_portable(error))
    return messages.Reply(number)


def _answerer(worker: ClusterProcess, number: int, body: messages.Notifies) -> Answerer:
    from mpcluster.sharing.notifications import Answerer  # few programs need it

    route = (number,)

    def ask_for_it(asked: object) -> object:
        if isinstance(asked, messages.Bind):
            asked = _with_settings(asked)
        return _registry_here().handle(route, asked)

    def is_shared(kind: int, sockname: object) -> bool:
        return any(
            listener.sockname == sockname
            and listener.key[1] == kind
            and any(user[:1] == route for user in listener.users)
            for listener in listeners()
        )

    return Answerer(
        body,
        pid=worker.pid or 0,
        pidfd=worker.sentinel,
        ask=ask_for_it,
        is_shared=is_shared,
        tell=worker.inform,
        is_leaving=lambda: worker.exited_after_disconnect or worker.is_dead,
    )


def _steer_away(
    route: messages.Route, is_over: Callable[[], bool], proceed: Callable[[], object]
) -> None:
    """In the root master: ``proceed()`` when nothing waits any more for that worker alone."""
    its_own = [] if _registry is None else _registry.drain(route)
    deadline = time.monotonic() + QUEUE_PATIENCE

    def look() -> None:
        # It takes what has queued for it alone before it hears that it shall go.
        waiting = any(sock.fileno() >= 0 and queued(sock) for sock in its_own)
        if waiting and not is_over() and time.monotonic() < deadline:
            watcher.current().call_later(QUEUE_LOOK, look)
        else:
            proceed()

    look()


def _have_steered_away(
    myself: workerside.Worker, route: messages.Route, proceed: Callable[[], object]
) -> None:
    """In a worker that has workers of its own: the root master does that, if it can."""
    once = [proceed]

    def go_on() -> None:
        if once:
            once.pop()()

    answered: Future[object] = Future()
    # Whatever becomes of the question: it may be read in another thread, or fail, or stay
    # unanswered by a master that sits in a callback.
    answered.add_done_callback(lambda _: watcher.current().call_soon(go_on))
    watcher.current().call_later(2 * QUEUE_PATIENCE, go_on)
    try:
        myself.request_then(messages.SteerAway(), route, answered)
    except Exception as error:  # noqa: BLE001  # the channel is closed: it leaves unsteered
        answered.set_exception(error)


def _answer(route: messages.Route, request: messages.Request) -> messages.Reply:
    body = request.body
    try:
        if isinstance(body, messages.Bind):
            body = _with_settings(body)
        return messages.Reply(request.number, _registry_here().handle(route, body))
    except Exception as error:  # noqa: BLE001  # the asker's to raise
        return messages.Reply(request.number, error=_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, if it survives the journey; a policy of the user's own may raise any."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:  # the asker waits for something to raise
        logger.exception("an error that cannot travel to the worker", exc_info=error)
        return ClusterError(f"the master met {type(error).__name__}: {error}; its log has more")
    return error


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
    except Exception as error:  # noqa: BLE001  # the asker's to raise
        future.set_exception(error)
    _close_socket(request.body)


def _close_socket(carrier: object) -> None:
    """Close this process's copy of a socket that was only passed on."""
    if isinstance(carrier, messages.Bind | messages.Bound) and carrier.socket is not None:
        carrier.socket.close()


above.current = _Above()
