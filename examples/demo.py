"""Both example programs, really serving: one shared port, a worker killed and replaced.

::

    python examples/demo.py

It starts restart.py and counter.py as anybody would, sends them HTTP requests, kills a worker
by SIGKILL, and ends by itself: with exit status 0 if all was as it should be.
"""

from __future__ import annotations

import http.client
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds for anything to happen


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it is true; for what another process does and nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of it in {PATIENCE:.0f} s")
        time.sleep(0.01)


class Program:
    """An example that runs in a process of its own, on a free port.

    Args:
        script: Name of a file beside this one.
        workers: How many workers it is to fork.
        echo: Print what it prints, but for the line that http.server logs for each request.
    """

    def __init__(self, script: str, *, workers: int, echo: bool = False) -> None:
        # Bound but not listening: nobody else is given the port, and the server, which sets
        # SO_REUSEADDR as this does, may have it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("", 0))
        self.port: int = self._reserved.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "WORKERS": str(workers)},
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(echo,))
        self._reader.start()

    def _read(self, echo: bool) -> None:  # noqa: FBT001 - the thread's own
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
            if echo and "HTTP/1." not in line:
                print(f"    {line}", end="", flush=True)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that ``pattern`` matches."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if match := re.search(pattern, line):
                return match

    def workers(self) -> list[int]:
        """Return the pids of the workers that there are now, lowest first."""
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sorted(
            int(pid) for thread in threads for pid in (thread / "children").read_text().split()
        )

    def get(self) -> str:
        """Send a request on a connection of its own and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def wait_until_it_serves(self) -> None:
        """Return when the port is open; from then on, requests wait in its queue if need be."""

        def serves() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended with exit status {self._process.returncode}")
            try:
                return bool(self.get())
            except ConnectionRefusedError:
                return False

        wait_until(serves)

    def wait_for_workers(self, number: int) -> list[int]:
        """Return the pids when there are so many; nothing tells of a fork from outside."""
        wait_until(lambda: len(self.workers()) == number)
        return self.workers()

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
            self._reserved.close()
        return status


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


def serve(program: Program, requests: int) -> None:
    """Send so many requests, eight at a time, and see that all are answered."""
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: program.get(), range(requests)))
    good = answers.count("hello world\n")
    say(f"  {requests} requests to port {program.port}: {good} answers")
    if good != requests:
        sys.exit("some requests were not answered as they should be")


def main() -> None:
    """Show both programs, one after the other."""
    say("restart.py: 4 workers, one port")
    with running("restart.py", workers=4, echo=True) as program:
        serve(program, 200)
        victim, *others = program.wait_for_workers(4)
        say(f"  kill -9 {victim}")
        os.kill(victim, signal.SIGKILL)
        program.wait_for(f"worker {victim} died")
        serve(program, 200)
        (new,) = set(program.wait_for_workers(4)) - set(others)
        say(f"  worker {new} has taken the place of {victim}")

    say("counter.py: 2 workers, the master counts their requests")
    with running("counter.py", workers=2, echo=True) as program:
        serve(program, 500)
        program.wait_for(r"numReqs = 501\b")  # and the one that found the port open

    say("both did what they should")


if __name__ == "__main__":
    main()
