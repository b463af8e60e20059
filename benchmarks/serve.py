"""What does a shared port cost a server, beside sockets of its own?

    python benchmarks/serve.py [--rounds 15] [--seconds 1] [--server http.server] [--kept-alive]
        [--ways slots round_robin ...]

One and the same server runs in several ways: in one process alone; in two workers that share
its port, by each policy; and in two plain processes that each bind the port for themselves
with ``SO_REUSEPORT``, which is what sharing is measured against: 1.00 costs nothing. All
are up the whole time, and are asked in turn, a short round each, forth and back, after
one round that does not count; so whatever else the machine does meets all of them. The table
has the medians of the rounds' ratios, and between which two half of the rounds lie.

The load comes from ``wrk`` where it is installed, else from an asyncio client, which is
slower than what it asks. It shares the cores with what it asks: where there are two, half of
a round's time is the client's, and a server that works less lets it ask more. So beside the
rates stands the processor time that the server took for a request, from the kernel's own
clocks, which says what sharing costs with far less noise.

Not every difference is a cost. The kernel's hash, by which sockets of one's own share, deals
64 kept connections as it happens, 40 to 24 say, and that for as long as they live: the
busier process is then the limit. One queue for all lets whoever is free take the next, so
``shared`` may beat 1.00 with a connection a request, and be one-sided where event loops
keep theirs. ``slots`` deals at random, as the hash does, each time anew. (How each policy spreads
connections, ``spread.py`` shows. ``ip_hash`` is not here: the load has one address.)

Every way has ``TCP_NODELAY``, which a kept listener sets: without it ``http.server`` waits
40 ms for each answer on a connection that is kept alive, and would compare with nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from guarded import guarded

HOST = "127.0.0.1"
CONNECTIONS = 64
POLICIES = ("shared", "slots", "round_robin", "least_connections")
BODY = b"hello world\n"


# -- the servers: they know nothing of who runs them -------------------------------------------


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


def threads(port: int) -> None:
    """``http.server``, a thread a connection."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # its 5 would measure lost handshakes

        def handle_error(self, *args: object) -> None:
            """Say nothing of clients that are gone at the end of their time."""

    Server((HOST, port), Hello).serve_forever()


class Answer(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        close = b"Connection: close\r\n" if b"onnection: close" in data else b""
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (close, len(BODY), BODY)
        )
        if close:
            self.transport.close()


def event_loop(port: int) -> None:
    """As little as asyncio can do for a connection: the cost of accepting shows most."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, HOST, port)
        await server.serve_forever()

    asyncio.run(serve())


SERVERS = {"http.server, threads": threads, "asyncio, a protocol": event_loop}


# -- the ways to run one: programs of their own, which say when a process listens ---------------


def run(way: str, server: str, port: int) -> None:
    """Be that program."""
    if way in POLICIES:
        import mpcluster as cluster

        cluster.setup(scheduling=way)
        cluster.on("listening", lambda _, address: say(address.port))
        for _ in range(2):
            cluster.fork(SERVERS[server], (0,))
        cluster.join()
        return
    bind, listen = socket.socket.bind, socket.socket.listen

    def bind_own(self: socket.socket, address: Any) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bind(self, address)

    def listen_aloud(self: socket.socket, *backlog: int) -> None:
        listen(self, *backlog)
        say(self.getsockname()[1])

    socket.socket.bind = bind_own  # type: ignore[assignment,method-assign]
    socket.socket.listen = listen_aloud  # type: ignore[assignment,method-assign]
    if way == "own sockets":
        os.fork()
    SERVERS[server](port)


def say(port: int) -> None:
    """In one piece, whatever the buffering: two processes say it."""
    os.write(1, b"%d\n" % port)


@contextmanager
def served(way: str, server: str) -> Iterator[tuple[int, int]]:
    """Run a server; gives its process group and port, once all its processes listen."""
    with socket.socket() as reserved:  # bound, not listening: it gets no connection
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((HOST, 0))
        command = [sys.executable, __file__, "--run", way, server, str(reserved.getsockname()[1])]
        with guarded(command, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            ports = {int(program.stdout.readline()) for _ in range(1 + (way != "alone"))}
            yield os.getpgid(program.pid), ports.pop()


# -- the load ------------------------------------------------------------------------------------


def load(port: int, seconds: int, *, keep_alive: bool) -> float:
    """Return requests a second."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(load_by_hand(port, seconds, keep_alive=keep_alive))
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://{HOST}:{port}/"]
    if not keep_alive:
        command += ["-H", "Connection: close"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if "errors" in line or "Non-2xx" in line:
            print(line.strip(), file=sys.stderr)
    found = re.search(r"Requests/sec:\s*([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


async def load_by_hand(port: int, seconds: int, *, keep_alive: bool) -> float:
    """Do what wrk does."""
    done = 0
    head = b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n" % (
        b"" if keep_alive else b"Connection: close\r\n"
    )
    begin = time.monotonic()

    async def client() -> None:
        nonlocal done
        writer = None
        while time.monotonic() - begin < seconds:
            if writer is None:
                reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(head)
            await reader.readuntil(BODY)
            done += 1
            if not keep_alive:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return done / (time.monotonic() - begin)


def processor_seconds(group: int) -> float:
    """Return what the processes of a group have used so far, their ended threads included."""
    used = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                # As clock_getcpuclockid(3) makes it: nanoseconds, where stat has ticks.
                used += time.clock_gettime((~int(path.parent.name) << 3) | 2)
        except OSError:
            continue  # it has ended meanwhile
    return used


# -- the table -----------------------------------------------------------------------------------


def main() -> None:
    """Measure and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--server", default="", help="those whose name begins so")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--kept-alive", action="store_true", help="only kept connections")
    kinds.add_argument("--one-a-request", action="store_true", help="only new connections")
    parser.add_argument("--run", nargs=3, metavar=("WAY", "SERVER", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", choices=POLICIES, default=POLICIES)
    arguments = parser.parse_args()
    if arguments.run:
        way, server, port = arguments.run
        run(way, server, int(port))
        return
    ways = ["alone", *arguments.ways, "own sockets"]
    print(
        "| server | connections | how it runs | requests/s | to own sockets (half of the rounds) "
        "| CPU µs a request | to own sockets (half of the rounds) | requests/s to one process |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for server in SERVERS:
        for keep_alive in (False, True):
            wanted = not (arguments.one_a_request if keep_alive else arguments.kept_alive)
            if wanted and server.startswith(arguments.server):
                measure(server, ways, arguments.rounds, arguments.seconds, keep_alive=keep_alive)


def measure(server: str, ways: list[str], rounds: int, seconds: int, *, keep_alive: bool) -> None:
    """Ask one server in these ways, and print its part of the table."""
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        running = {way: stack.enter_context(served(way, server)) for way in ways}
        for number in range(rounds + 1):
            for way in ways if number % 2 else reversed(ways):
                group, port = running[way]
                used = processor_seconds(group)
                rate = load(port, seconds, keep_alive=keep_alive)
                used = processor_seconds(group) - used
                if number:
                    rates[way].append(rate)
                    costs[way].append(used / (rate * seconds) * 1e6)
    for way in ways:
        print(
            f"| {server} | {'kept alive' if keep_alive else 'one a request'} | {way} "
            f"| {statistics.median(rates[way]):,.0f} | {ratio(rates, way, 'own sockets')} "
            f"| {statistics.median(costs[way]):,.0f} | {ratio(costs, way, 'own sockets')} "
            f"| {ratio(rates, way, 'alone')} |",
            flush=True,
        )


def ratio(values: dict[str, list[float]], way: str, peer: str) -> str:
    """The median of the rounds' ratios and its quartiles, as the table shows it."""
    ratios = [mine / other for mine, other in zip(values[way], values[peer], strict=True)]
    if len(ratios) < 2 or way == peer:
        return f"{statistics.median(ratios):.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
