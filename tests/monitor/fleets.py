"""Supervised workers for the tests of the monitor."""

from __future__ import annotations

import selectors

import mpcluster as cluster
from mpcluster.supervision import Supervisor
from tests.happenings import PATIENCE, Diary


def until_ready(supervisor: Supervisor, count: int) -> None:
    """Wait until so many workers are ready, those included that are so already."""
    told = Diary()
    supervisor.on("ready", lambda worker: told.write(worker.id))
    known = {one.id for one in supervisor.workers() if one.serves}
    with told._written:
        assert told._written.wait_for(
            lambda: len(known | {line[0] for line in told.lines}) >= count, PATIENCE
        ), (known, told)


def serving() -> None:
    """Accept connections and keep them; tell of each, and of each word, by a message.

    A connection that sends anything is closed.
    """
    with cluster.listen(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    selector.register(connection, selectors.EVENT_READ, connection)
                    cluster.send("accepted")
                else:
                    selector.unregister(key.fileobj)
                    key.data.close()
                    cluster.send("closed")
