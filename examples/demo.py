"""Both example programs, really serving: one shared port, a worker killed and replaced.

::

    python examples/demo.py

It starts restart.py and counter.py as anybody would, sends them HTTP requests, kills a worker
by SIGKILL while it does, and ends by itself: with exit status 0 if all was as it should be.
"""

from __future__ import annotations

import collections
import http.client
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds for anything to happen
HELLO = "hello world\n"
CLIENTS = 8


class Program:
    """An example that runs in a process of its own, on a port that the system chooses.

    Args:
        script: Name of a file beside this one.
        workers: How many workers it is to fork.
        echo: Print what it prints, but for the line that http.server logs for each request.
        further: Arguments after the port.
    """

    def __init__(
        self, script: str, *, workers: int, echo: bool = False, further: tuple[str, ...] = ()
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), "0", *further],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Buffered: else a line of `print` is two writes, and those of two workers may mix.
            env={**os.environ, "WORKERS": str(workers), "PYTHONUNBUFFERED": ""},
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(echo,))
        self._reader.start()
        self.port = 0
        self.workers: set[int] = set()  # the pids of those that serve
        self._number = workers

    def _read(self, echo: bool) -> None:  # noqa: FBT001 - the thread's own
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if echo and "HTTP/1." not in line:
                print(f"    {line}", end="", flush=True)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that ``pattern`` matches."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if line is None:
                raise RuntimeError("it has ended")
            if match := re.search(pattern, line):
                return match

    def wait_for_worker(self) -> int:
        """Return the pid of the next worker that says it serves."""
        match = self.wait_for(r"^worker (\d+) serves .*:(\d+)$")
        self.workers.add(int(match[1]))
        self.port = int(match[2])
        return int(match[1])

    def wait_until_it_serves(self) -> None:
        """Return when all of its workers do."""
        while len(self.workers) < self._number:
            self.wait_for_worker()

    def kill(self, pid: int) -> None:
        """Kill a worker, as if it had crashed."""
        self.workers.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to its master."""
        self._process.send_signal(number)

    def get(self) -> int:
        """Send a request on a connection of its own; return the pid of who answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            answer = response.read().decode()
            if answer != HELLO:
                raise http.client.HTTPException(f"that is no answer: {answer!r}")
            return int(response.headers["Worker"])
        finally:
            connection.close()

    def stop(self) -> int:
        """End it by SIGTERM, as a service manager would; return its exit status."""
        self._process.terminate()
        try:
            status = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
        return status


class Load:
    """Clients that ask without a pause, while the block runs; each request on a new connection.

    Attributes:
        answered: By worker, how many requests it has answered.
        cut: Requests that were in the hands of a worker when it died.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._counted = threading.Condition()
        self._over = False
        self.answered: collections.Counter[int] = collections.Counter()
        self.cut = 0
        self._clients = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for client in self._clients:
            client.join()

    def _ask(self) -> None:
        while not self._over:
            try:
                worker = self._program.get()
            except (ConnectionResetError, http.client.HTTPException):
                with self._counted:
                    self.cut += 1
            else:
                with self._counted:
                    self.answered[worker] += 1
                    self._counted.notify_all()

    def more(self, number: int) -> None:
        """Wait until so many more requests are answered."""
        with self._counted:
            goal = self.answered.total() + number
            if not self._counted.wait_for(lambda: self.answered.total() >= goal, PATIENCE):
                raise TimeoutError(f"{goal - self.answered.total()} answers are missing")


@contextmanager
def running(script: str, *, workers: int, echo: bool = False) -> Iterator[Program]:
    """Run an example until the end of the block."""
    program = Program(script, workers=workers, echo=echo)
    try:
        program.wait_until_it_serves()
        yield program
    finally:
        program.stop()


def say(text: str) -> None:
    print(text, flush=True)


def show(answered: collections.Counter[int]) -> None:
    """Print who answered how many requests."""
    most = max(answered.values())
    for worker, number in sorted(answered.items()):
        say(f"    worker {worker}  {'#' * (40 * number // most):40}  {number}")


def serve(program: Program, requests: int) -> None:
    """Send so many requests, eight at a time; all must be answered."""
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        answered = collections.Counter(clients.map(lambda _: program.get(), range(requests)))
    rate = requests / (time.monotonic() - began)
    say(f"  {requests} requests, {answered.total()} answers, {rate:.0f} a second:")
    show(answered)


def main() -> None:
    """Show both programs, one after the other."""
    say("$ WORKERS=4 python examples/restart.py")
    with running("restart.py", workers=4, echo=True) as program:
        serve(program, 1000)
        victim = min(program.workers)
        say(f"  the clients go on, and meanwhile:  kill -9 {victim}")
        with Load(program) as load:
            load.more(200)
            program.kill(victim)
            program.wait_for(f"^worker {victim} died")
            program.wait_for_worker()
            load.more(500)
        say(f"  {load.answered.total()} requests answered, {load.cut} cut off with the dead one:")
        show(load.answered)
        if load.cut > 1:  # HTTPServer has one in hand at a time
            sys.exit("more was lost than what the dead worker had in hand")

    say("$ WORKERS=2 python examples/counter.py")
    with running("counter.py", workers=2, echo=True) as program:
        serve(program, 500)
        program.wait_for(r"numReqs = 500\b")

    say("both did what they should")


if __name__ == "__main__":
    main()
