"""How evenly does each policy spread connections, and what does a killed worker take with it?

    python benchmarks/spread.py [--rounds 3] [--kills 4] [--policies ...] [--servers ...]

Four workers run one and the same server, which answers each connection with its process id
and closes it when the client does. A hundred connections come as a *burst* (all at once, all
kept open), *paced* (one at a time), and *busy* (all at once, and each answer costs the worker 2 ms
of processor time). Shown is the share of the busiest and of the idlest worker, of which 25 %
would be even: the median of the rounds.

Then two workers serve clients with a connection a request, while one worker after the
other is killed and replaced: connections that ended without an answer, or were refused, for
each kill.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import socketserver
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from guarded import guarded

HOST = "127.0.0.1"
POLICIES = ("shared", "slots", "round_robin", "least_connections")
WORKERS = 4
CONNECTIONS = 100
CLIENTS = 16
COST = 0.002  # seconds of processor time


def work(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


# -- the servers ---------------------------------------------------------------------------------


def threads(cost: float) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            work(cost)
            self.request.sendall(b"%d" % os.getpid())
            self.request.recv(1)

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 1024
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Say nothing of clients that are gone."""

    Server((HOST, 0), Handler).serve_forever()


def event_loop(cost: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            work(cost)
            writer.write(b"%d" % os.getpid())
            await reader.read(1)
        except ConnectionError:
            pass
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, HOST, 0, backlog=1024)
        await server.serve_forever()

    asyncio.run(main())


SERVERS = {"threads": threads, "asyncio": event_loop}


# -- a master, in a program of its own -------------------------------------------------------------


def run(policy: str, server: str, workers: int, cost: float) -> None:
    """Be the master: say who listens where, and replace the dead."""
    import mpcluster as cluster

    cluster.setup(scheduling=policy)

    @cluster.on("listening")
    def listening(worker: Any, address: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is being ended
            os.write(1, json.dumps([worker.pid, address.port]).encode() + b"\n")

    @cluster.on("death")
    def death(_worker: Any) -> None:
        cluster.fork(SERVERS[server], (cost,))

    for _ in range(workers):
        cluster.fork(SERVERS[server], (cost,))
    threading.Event().wait()


@contextmanager
def served(policy: str, server: str, workers: int, cost: float = 0.0) -> Iterator[Any]:
    """Run a master; gives the function that waits for one more worker: its pid and port."""
    command = [sys.executable, __file__, "--run", policy, server, str(workers), str(cost)]
    with guarded(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        yield lambda: json.loads(program.stdout.readline())  # type: ignore[union-attr]


# -- spread ----------------------------------------------------------------------------------------


async def ask(port: int) -> tuple[int, asyncio.StreamWriter]:
    """Connect, and wait for who answers."""
    reader, writer = await asyncio.open_connection(HOST, port)
    said = await reader.read(64)
    if not said:
        writer.close()
        raise ConnectionResetError
    return int(said), writer


async def at_once(port: int, connections: int) -> list[int]:
    answers = await asyncio.gather(*(ask(port) for _ in range(connections)))
    for _, writer in answers:
        writer.close()
    return [pid for pid, _ in answers]


async def one_by_one(port: int, connections: int) -> list[int]:
    pids = []
    for _ in range(connections):
        pid, writer = await ask(port)
        writer.close()
        pids.append(pid)
    return pids


WAYS: dict[str, tuple[Any, float]] = {
    "burst": (at_once, 0.0),
    "paced": (one_by_one, 0.0),
    "busy": (at_once, COST),
}


def spread(
    policy: str, server: str, way: str, rounds: int, connections: int
) -> tuple[float, float]:
    """Return the shares of the busiest and of the idlest worker, in percent."""
    come, cost = WAYS[way]
    busiest, idlest = [], []
    for _ in range(rounds):
        with served(policy, server, WORKERS, cost) as listening:
            there = [listening() for _ in range(WORKERS)]
            counts = collections.Counter(asyncio.run(come(there[0][1], connections)))
            shares = [100 * counts[pid] / connections for pid, _ in there]
            busiest.append(max(shares))
            idlest.append(min(shares))
    return statistics.median(busiest), statistics.median(idlest)


# -- kills -----------------------------------------------------------------------------------------


async def lost(policy: str, server: str, kills: int) -> tuple[float, int]:
    """Return connections lost for each kill, and how many were answered in all."""
    failed = answered = 0
    stopping = False

    async def client(port: int) -> None:
        nonlocal failed, answered
        while not stopping:
            try:
                _, writer = await ask(port)
            except OSError:
                failed += 1
            else:
                answered += 1
                writer.close()

    with served(policy, server, 2) as listening:
        there = [listening(), listening()]
        clients = [asyncio.create_task(client(there[0][1])) for _ in range(CLIENTS)]
        for _ in range(kills):
            await asyncio.sleep(0.3)
            os.kill(there.pop(0)[0], signal.SIGKILL)
            there.append(await asyncio.to_thread(listening))
        stopping = True
        await asyncio.gather(*clients)
    return failed / kills, answered


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        policy, server, workers, cost = arguments.run
        run(policy, server, int(workers), float(cost))
        return
    print("| server | policy | burst | paced | busy | lost a kill |")
    print("|---|---|---|---|---|---|")
    for server in arguments.servers:
        for policy in arguments.policies:
            shares = [
                spread(policy, server, way, arguments.rounds, arguments.connections) for way in WAYS
            ]
            a_kill, _ = asyncio.run(lost(policy, server, arguments.kills))
            cells = [f"{most:.0f} … {least:.0f} %" for most, least in shares]
            print(f"| {server} | {policy} | {' | '.join(cells)} | {a_kill:.1f} |", flush=True)


if __name__ == "__main__":
    main()
