"""A master whose workers are passed connections: ``passing.py SERVER WORKERS SETTINGS``.

Each server sends its process id to whoever connects, at once, and waits for him to close.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import resource
import select
import signal
import socket
import socketserver
import sys
import threading

import mpcluster as cluster
from mpcluster import registrar, watcher
from mpcluster.scheduling import patience
from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.door import Door
from mpcluster.scheduling.patience import Patience
from mpcluster.scheduling.taker import Connection, Taker

#: Does a server tell when it has closed a connection?
TELLS = "TELLS" in os.environ

# Who counts exactly where connections go cannot have a machine in the way on which any worker
# may be late: it is slow after an hour.
if "PATIENT" in os.environ:
    patience.TICK = 3600

_said = threading.Lock()


def say(event: str, **what: object) -> None:
    with _said:
        os.write(1, json.dumps({"event": event, **what}).encode() + b"\n")


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"%d" % os.getpid())
        self.request.recv(1)
        self.request.close()
        if TELLS:
            cluster.send("closed")


def threads() -> None:
    socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler).serve_forever()


def blocking() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"%d" % os.getpid())


def tls() -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")  # anonymous: needs no key
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen(128)
        with context.wrap_socket(plain, server_side=True) as listener:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"%d" % os.getpid())


def in_asyncio() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"%d" % os.getpid())
            await reader.read(1)
        except ConnectionError:
            pass
        writer.close()
        if TELLS:  # after the close itself, which asyncio leaves to the next round
            asyncio.get_running_loop().call_later(0, cluster.send, "closed")

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=128)
        await server.serve_forever()

    asyncio.run(main())


def polls() -> None:
    """The first worker is told of a connection, says so, and does not accept it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        while True:
            assert select.select([listener], [], []) == ([listener], [], [])
            if cluster.worker is not None and cluster.worker.id == 1:
                say("told")
                signal.pause()
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"%d" % os.getpid())


SERVERS = {
    "threads": threads,
    "blocking": blocking,
    "asyncio": in_asyncio,
    "polls": polls,
    "tls": tls,
}


def count_calls() -> None:
    """Count what wakes the accepting policy."""
    for owner, name in (
        (Accepting, "_on_clients"),
        (Accepting, "_on_words"),
        (Patience, "_look"),
        (Door, "_rest"),
    ):
        setattr(owner, name, counted(name, getattr(owner, name)))


calls = 0

#: By worker: the ports of the clients of whom it has said that its program has accepted them.
acknowledged: dict[int, list[int]] = {}


def note_acknowledgements() -> None:
    """As the master hears them, so whatever becomes of the worker."""
    accepted = Taker.accepted

    def noting(self: Taker, number: int, *, counted: bool) -> Connection | None:
        connection = accepted(self, number, counted=counted)
        if connection is not None:
            acknowledged.setdefault(self.route[-1], []).append(connection.peer[1])
        return connection

    Taker.accepted = noting


def counted(name: str, method):
    def count(self, *args):
        global calls
        calls += 1
        if name == "_rest":
            say("resting")
        return method(self, *args)

    return count


def policy() -> Accepting:
    (listener,) = registrar._registry_here().listeners
    assert isinstance(listener._policy, Accepting)
    return listener._policy


def count() -> None:
    say(
        "count",
        calls=calls,
        pending=len(policy()._timers),
        passed=sum(len(taker.passed) for taker in policy()._takers),
        open=sum(taker.open for taker in policy()._takers),
        descriptors=len(os.listdir("/proc/self/fd")),
    )


def tell_acknowledged() -> None:
    say("acknowledged", ports={pids[worker]: ports for worker, ports in acknowledged.items()})


pids: dict[int, int] = {}
spare: list[int] = []
limit = resource.getrlimit(resource.RLIMIT_NOFILE)


def exhaust() -> None:
    """Leave this process no descriptor at all."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, limit[1]))
    try:
        while True:
            spare.append(os.dup(0))
    except OSError:
        say("exhausted")


def relieve() -> None:
    while spare:
        os.close(spare.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def main() -> None:
    server, workers, settings = sys.argv[1:]
    cluster.setup(**json.loads(settings))
    count_calls()
    note_acknowledgements()
    replacing = set()

    @cluster.on("listening")
    def listening(worker, address) -> None:
        pids[worker.id] = worker.pid
        say("listening", pid=worker.pid, port=address.port)

    @cluster.on("message")
    def message(worker, what) -> None:
        say(what)

    @cluster.on("death")
    def death(worker) -> None:
        say("death", pid=worker.pid, exitcode=worker.exitcode)
        if worker.pid not in replacing:
            cluster.fork(SERVERS[server])

    for _ in range(int(workers)):
        cluster.fork(SERVERS[server])

    def replace(pid: str) -> None:
        replacing.add(int(pid))
        for worker in list(cluster.workers.values()):
            if worker.pid == int(pid):
                cluster.fork(SERVERS[server])
                worker.disconnect()

    orders = {
        "acknowledged": tell_acknowledged,
        "count": count,
        "exhaust": exhaust,
        "relieve": relieve,
        "replace": replace,
    }
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            verb, *words = line.decode().split()
            # In the watcher's thread, as everything that happens to the policy.
            watcher.current().call_soon(functools.partial(orders[verb], *words))


if __name__ == "__main__":
    main()
