"""What does one message cost, beside a raw Connection, and beside Node's process.send?

    python benchmarks/messages.py [--rounds 7]

Each row sends the same messages between two processes, once with mpcluster and once with
the peer, in alternation, and shows the median of the ratios of messages a second: 2.00 is
twice as fast as the peer, 0.50 half as fast. Node's rows appear where `node` is installed.

Each end waits in `poll` as a program with more than one worker has to; the raw Connection
blocks in `recv`, the best that it can do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from mpcluster.channel import Channel

Raw: TypeAlias = "Connection[Any, Any]"
SMALL = {"cmd": "notifyRequest", "worker": 3, "load": 0.25}

#: A child that counts messages and says when all have come; with `echo` it sends them back.
NODE = """
const { fork } = require("child_process");
const [role, way, count, size] = [process.env.ROLE, ...process.argv.slice(2)];
const message = size > 0 ? "x".repeat(size) : %(small)s;
if (role === "child") {
  let left = +count;
  process.on("message", (m) => {
    if (way === "echo") process.send(m);
    if (--left === 0) { process.send("done"); process.disconnect(); }
  });
} else {
  const child = fork(__filename, process.argv.slice(2), { env: { ROLE: "child" } });
  child.once("spawn", () => {
    const begin = process.hrtime.bigint();
    let left = +count;
    child.on("message", (m) => {
      if (m === "done") console.log(Number(process.hrtime.bigint() - begin) / 1e9);
      else if (--left > 0) child.send(message);
    });
    for (let i = 0; i < (way === "echo" ? 1 : +count); i++) child.send(message);
  });
}
"""


class Question(NamedTuple):
    """One row: what is sent, which way, and how often in one round."""

    name: str
    message: object
    echo: bool
    times: int


def questions() -> list[Question]:
    """Return the rows, in the order of the table."""
    rows = [
        Question("dict of 3 items, one way", SMALL, echo=False, times=50_000),
        Question("dict of 3 items, there and back", SMALL, echo=True, times=5_000),
        Question("100 kB of bytes, one way", os.urandom(100_000), echo=False, times=2_000),
    ]
    try:
        import numpy as np
    except ImportError:
        print("numpy is not installed: no row for arrays", file=sys.stderr)
    else:
        array = np.random.default_rng(0).random(1_250_000)
        rows.append(Question("10 MB array, one way", array, echo=False, times=30))
    return rows


def between_two_processes(
    child: Callable[[Raw, Question], None],
    parent: Callable[[Raw, Question], None],
    question: Question,
) -> float:
    """Return messages a second."""
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if not pid:
        ours.close()
        try:
            child(theirs, question)
        finally:
            os._exit(0)
    theirs.close()
    begin = time.perf_counter()
    parent(ours, question)
    seconds = time.perf_counter() - begin
    os.waitpid(pid, 0)
    return question.times / seconds


def raw_child(connection: Raw, question: Question) -> None:
    """Receive all; send each back, or a word at the end."""
    for _ in range(question.times):
        message = connection.recv()
        if question.echo:
            connection.send(message)
    if not question.echo:
        connection.send("done")


def raw_parent(connection: Raw, question: Question) -> None:
    """Send all; wait for each to come back, or for the word at the end."""
    for _ in range(question.times):
        connection.send(question.message)
        if question.echo:
            connection.recv()
    if not question.echo:
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


def channel_child(connection: Raw, question: Question) -> None:
    """Do what :func:`raw_child` does."""
    end = Waiting(connection)
    left = question.times
    while left:
        for received in end.next():
            left -= 1
            if question.echo:
                end.channel.send(received.message)
    if not question.echo:
        end.channel.send("done", handed_over=True)


def channel_parent(connection: Raw, question: Question) -> None:
    """Do what :func:`raw_parent` does."""
    end = Waiting(connection)
    for _ in range(question.times):
        end.channel.send(question.message, handed_over=True)
        if question.echo:
            end.next()
    if not question.echo:
        end.next()
    end.channel.close()


def node(question: Question, script: Path) -> float:
    """Return messages a second of a Node parent and its forked child."""
    size = len(question.message) if isinstance(question.message, bytes) else 0
    way = "echo" if question.echo else "count"
    done = subprocess.run(
        ["node", script, way, str(question.times), str(size)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return question.times / float(done.stdout)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "messages.js")
        script.write_text(NODE % {"small": json.dumps(SMALL)})
        print("| message | peer | mpcluster, messages/s | peer, messages/s | ratio |")
        print("|---|---|---|---|---|")
        for question in questions():
            report(question, "raw Connection", rounds, raw)
            # An array has no counterpart in Node: process.send speaks JSON.
            if shutil.which("node") and isinstance(question.message, dict | bytes):
                report(question, "Node process.send", rounds, lambda q: node(q, script))


def raw(question: Question) -> float:
    """Return messages a second of two Connections."""
    return between_two_processes(raw_child, raw_parent, question)


def report(
    question: Question, peer: str, rounds: int, measure_peer: Callable[[Question], float]
) -> None:
    """Print one row: medians of rounds in alternation."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(between_two_processes(channel_child, channel_parent, question))
        theirs.append(measure_peer(question))
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    print(
        f"| {question.name} | {peer} | {statistics.median(ours):,.0f} "
        f"| {statistics.median(theirs):,.0f} | {ratio:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
