"""What a worker hears from its parent, and what it does about it.

Imported with the channel, when the worker first has something to say or to listen to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mpcluster import messages, watcher
from mpcluster.configuration import Settings
from mpcluster.events import report
from mpcluster.logs import logger
from mpcluster.upstream import Upstream
from mpcluster.wire import Kind, Received

if TYPE_CHECKING:
    from mpcluster.workerside import Worker

__all__ = ["line"]

_USER: Final = Kind.USER


def line(worker: Worker, connection: int, settings: Settings) -> Upstream:
    """Make the line of ``worker`` to its parent out of the descriptor ``connection``."""

    def handle(received: Received | None) -> None:
        if received is None:
            worker.lose_parent()
        elif received.error is not None:
            report(f"a message of the master to worker {worker.id}", received.error, worker)
        elif received.kind is _USER:
            worker.hear(received.message, received.size)
        elif isinstance(received.message, messages.Disconnect):
            worker.leave()
        elif isinstance(received.message, messages.Ping):
            _probe(worker, received.message.number)
        elif isinstance(received.message, messages.Laid):
            from mpcluster.sharing import beneath

            beneath.adopt(received.message, worker.tell)
        else:
            logger().warning("unknown control message of the master: %r", received.message)

    return Upstream(connection, settings, handle)


def _probe(worker: Worker, number: int) -> None:
    answer = messages.Pong(number)
    # By the watcher again, as the main thread may be in the middle of a send of its own.
    in_watcher = watcher.current().call_soon
    worker.probe(lambda: in_watcher(lambda: worker.tell(answer)))
