"""What does one message cost, beside a raw Connection, and beside Node's process.send?

    python benchmarks/messages.py [--rounds 7] [--only TEXT]

Each row sends the same messages between a worker and its master. In each round mpcluster
and its peers do so in turn, and a row shows the median of the rounds' ratios of messages a
second: 2.00 is twice as fast as the peer, 0.50 half as fast. Node's rows appear where
`node` is installed.

Who sends and hears, with each of them:

    mpcluster         `cluster.send`, `worker.send`, `on("message")`, as any program
    two bare channels the transport beneath, each end with a `poll` of its own
    raw Connection    `send` and `recv`, which blocks: the best that it can do
    Node              `process.send`, `child.send`, `on("message")`
"""

from __future__ import annotations

import argparse
import enum
import json
import multiprocessing
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import mpcluster as cluster
from mpcluster.channel import Channel

Raw: TypeAlias = "Connection[Any, Any]"
SMALL: Final = {"cmd": "notifyRequest", "worker": 3, "load": 0.25}
GO: Final = "go"
DONE: Final = "done"


class Way(enum.Enum):
    """Who sends to whom. The clock runs in the master."""

    UP = "worker to master"
    DOWN = "master to worker"
    ECHO = "there and back"


class Question(NamedTuple):
    """One kind of message, which way it goes, and how often in one round."""

    what: str
    message: object
    way: Way
    times: int


def questions() -> list[Question]:
    """Return what is measured, in the order of the table."""
    bulk = os.urandom(100_000)
    asked = [
        Question("dict of 3 items", SMALL, Way.UP, 50_000),
        Question("dict of 3 items", SMALL, Way.DOWN, 50_000),
        Question("dict of 3 items", SMALL, Way.ECHO, 5_000),
        Question("100 kB of bytes", bulk, Way.UP, 2_000),
        Question("100 kB of bytes", bulk, Way.DOWN, 2_000),
    ]
    try:
        import numpy as np
    except ImportError:
        print("numpy is not installed: no rows for arrays", file=sys.stderr)
    else:
        array = np.random.default_rng(0).random(1_250_000)
        asked.append(Question("10 MB array", array, Way.UP, 30))
    return asked


# -- mpcluster ---------------------------------------------------------------------------------


def with_cluster(question: Question) -> float:
    """Return messages a second of a worker made by `cluster.fork`."""
    over = threading.Event()
    left = question.times
    worker = cluster.fork(cluster_worker, (question,))

    def hear(_: object) -> None:
        nonlocal left
        left -= 1
        if not left or question.way is Way.DOWN:
            over.set()
        elif question.way is Way.ECHO:
            worker.send(question.message)

    ready = threading.Event()
    worker.once("message", lambda _: ready.set())
    ready.wait()
    worker.on("message", hear)
    begin = time.perf_counter()
    if question.way is Way.UP:
        worker.send(GO)
    else:
        for _ in range(question.times if question.way is Way.DOWN else 1):
            worker.send(question.message)
    over.wait()
    seconds = time.perf_counter() - begin
    worker.kill()
    worker.join()
    worker.close()
    return question.times / seconds


def cluster_worker(question: Question) -> None:
    """Send, count or send back."""
    left = question.times
    go, over = threading.Event(), threading.Event()

    def hear(message: object) -> None:
        nonlocal left
        if question.way is Way.UP:
            go.set()
            return
        if question.way is Way.ECHO:
            cluster.send(message)
        left -= 1
        if not left:
            over.set()

    cluster.on("message", hear)
    cluster.send("ready")
    if question.way is Way.UP:
        go.wait()
        for _ in range(question.times):
            cluster.send(question.message)
    else:
        over.wait()
    if question.way is Way.DOWN:
        cluster.send(DONE)
    threading.Event().wait()


# -- two processes and a pipe --------------------------------------------------------------------


def between_two_processes(
    worker: Callable[[Raw, Question], None],
    master: Callable[[Raw, Question], None],
    question: Question,
) -> float:
    """Return messages a second; what `master` does takes the time."""
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if not pid:
        ours.close()
        try:
            worker(theirs, question)
        finally:
            os._exit(0)
    theirs.close()
    begin = time.perf_counter()
    master(ours, question)
    seconds = time.perf_counter() - begin
    os.waitpid(pid, 0)
    return question.times / seconds


def with_connection(question: Question) -> float:
    """Return messages a second of two Connections."""
    return between_two_processes(connection_worker, connection_master, question)


def connection_worker(connection: Raw, question: Question) -> None:
    """Do what :func:`cluster_worker` does."""
    if question.way is Way.UP:
        connection.recv()
    for _ in range(question.times):
        if question.way is Way.UP:
            connection.send(question.message)
        else:
            message = connection.recv()
            if question.way is Way.ECHO:
                connection.send(message)
    if question.way is Way.DOWN:
        connection.send(DONE)
    connection.close()


def connection_master(connection: Raw, question: Question) -> None:
    """Do what :func:`with_cluster` does."""
    if question.way is Way.UP:
        connection.send(GO)
    for _ in range(question.times):
        if question.way is not Way.UP:
            connection.send(question.message)
        if question.way is not Way.DOWN:
            connection.recv()
    if question.way is Way.DOWN:
        connection.recv()
    connection.close()


class Waiting:
    """A channel, and a `poll` to wait for what comes."""

    def __init__(self, connection: Raw) -> None:
        self.channel = Channel(connection, label="the other end")
        self.channel.on_readable = lambda channel: self.came.extend(channel.receive())
        self.came: list[Any] = []
        self._poll = select.poll()
        self._poll.register(self.channel, select.POLLIN)

    def next(self) -> list[Any]:
        while not self.came:
            self._poll.poll()
            self.came = self.channel.receive()
        came, self.came = self.came, []
        return came

    def take(self, times: int, *, echo: bool = False) -> None:
        while times:
            for received in self.next():
                times -= 1
                if echo:
                    self.channel.send(received.message)


def with_channels(question: Question) -> float:
    """Return messages a second of two bare channels."""
    return between_two_processes(channel_worker, channel_master, question)


def channel_worker(connection: Raw, question: Question) -> None:
    """Do what :func:`connection_worker` does."""
    end = Waiting(connection)
    if question.way is Way.UP:
        end.take(1)
        for _ in range(question.times):
            end.channel.send(question.message, handed_over=True)
    else:
        end.take(question.times, echo=question.way is Way.ECHO)
    if question.way is Way.DOWN:
        end.channel.send(DONE, handed_over=True)


def channel_master(connection: Raw, question: Question) -> None:
    """Do what :func:`connection_master` does."""
    end = Waiting(connection)
    if question.way is Way.UP:
        end.channel.send(GO)
        end.take(question.times)
    elif question.way is Way.ECHO:
        for _ in range(question.times):
            end.channel.send(question.message)
            end.take(1)
    else:
        for _ in range(question.times):
            end.channel.send(question.message, handed_over=True)
        end.take(1)
    end.channel.close()


# -- Node ------------------------------------------------------------------------------------


NODE: Final = """
const { fork } = require("child_process");
const [role, way, count, size] = [process.env.ROLE, ...process.argv.slice(2)];
const message = size > 0 ? "x".repeat(size) : %(small)s;
let left = +count;
if (role === "worker") {
  process.on("message", (m) => {
    if (way === "UP") for (let i = 0; i < +count; i++) process.send(message);
    if (way === "ECHO") process.send(m);
    if (way === "DOWN" && --left === 0) process.send("done");
  });
  process.send("ready");
} else {
  const worker = fork(__filename, process.argv.slice(2), { env: { ROLE: "worker" } });
  worker.once("message", () => {
    const begin = process.hrtime.bigint();
    worker.on("message", (m) => {
      if (m === "done" || --left === 0) {
        console.log(Number(process.hrtime.bigint() - begin) / 1e9);
        worker.kill();
      } else if (way === "ECHO") worker.send(message);
    });
    if (way === "UP") worker.send("go");
    else for (let i = 0; i < (way === "DOWN" ? +count : 1); i++) worker.send(message);
  });
}
"""


def with_node(question: Question) -> float:
    """Return messages a second of a Node program and its forked child."""
    size = len(question.message) if isinstance(question.message, bytes) else 0
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "messages.js")
        script.write_text(NODE % {"small": json.dumps(SMALL)})
        done = subprocess.run(
            ["node", script, question.way.name, str(question.times), str(size)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return question.times / float(done.stdout)


# -- the table -------------------------------------------------------------------------------


Measure: TypeAlias = Callable[[Question], float]
OURS: Final[dict[str, Measure]] = {"mpcluster": with_cluster, "two bare channels": with_channels}
PEERS: Final[dict[str, Measure]] = {"raw Connection": with_connection, "Node": with_node}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="the rows that have this text in their name")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS, metavar=("WHO", "ROW"))
    options = parser.parse_args()
    asked = questions()
    if options.measure:
        who, row = options.measure
        print((OURS | PEERS)[who](asked[int(row)]))
        return
    print("| message | measured | peer | messages/s | the peer's | ratio |")
    print("|---|---|---|---|---|---|")
    for row, question in enumerate(asked):
        if options.only in f"{question.what}, {question.way.value}":
            report(row, question, options.rounds)


def alone(who: str, row: int) -> float:
    """Return what a process of its own measures, so that nobody finds another's threads."""
    command = [sys.executable, __file__, "--measure", who, str(row)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def report(row: int, question: Question, rounds: int) -> None:
    """Print the rows of one question: medians of rounds in which all take their turns."""
    peers = ["raw Connection"]
    # An array has no counterpart in Node: process.send speaks JSON.
    if shutil.which("node") and isinstance(question.message, dict | bytes):
        peers.append("Node")
    rates: dict[str, list[float]] = {name: [] for name in (*OURS, *peers)}
    for _ in range(rounds):
        for name, measured in rates.items():
            measured.append(alone(name, row))
    for mine in OURS:
        for peer in peers:
            pairs = zip(rates[mine], rates[peer], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            print(
                f"| {question.what}, {question.way.value} | {mine} | {peer} "
                f"| {statistics.median(rates[mine]):,.0f} "
                f"| {statistics.median(rates[peer]):,.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
