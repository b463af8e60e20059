"""`mpcluster run` as an operator starts it, and what its tests ask of it.

A :class:`Master` is a process of its own, in a directory of its own; what it and its workers
write is read line by line, and every wait is for such a line, for an answer, or for its end.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE, environment

#: Says its port, and answers with its pid; `/slow` when a line comes on the request's body.
SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "1"

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer()

    def do_POST(self):
        print("busy", flush=True)
        self.rfile.read(1)
        self.answer()

    def answer(self):
        body = f"{os.getpid()} {VERSION}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0), Handler)
print("serves", server.server_port)
server.serve_forever()
"""


#: The same in an event loop.
ASYNCIO = """
import asyncio, os, sys

VERSION = "1"

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    body = f"{os.getpid()} {VERSION}".encode()
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n" % len(body))
    writer.write(b"Connection: close\\r\\n\\r\\n" + body)
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print("serves", server.sockets[0].getsockname()[1])
    await server.serve_forever()

asyncio.run(main())
"""


class Master:
    """A running `mpcluster run`.

    Args:
        arguments: Behind `run`.
        directory: Where it runs, and where its control socket is looked for.
        kwargs: Of Popen.
    """

    def __init__(self, *arguments: object, directory: Path, **kwargs: Any) -> None:
        self.directory = directory
        self.env = self.environment(directory, **kwargs.pop("env", {}))
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **kwargs}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "mpcluster", "run", *map(str, arguments)],
            cwd=directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **kwargs,
        )
        self.lines: list[str] = []
        self._fresh: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = 0

    @staticmethod
    def environment(directory: Path, **more: str) -> dict[str, str]:
        """Its control socket is looked for in that directory."""
        return environment(XDG_RUNTIME_DIR=str(directory), **more)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def _read(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self._fresh.put(line.rstrip("\n"))
        self._fresh.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that ``pattern`` matches."""
        while True:
            line = self._fresh.get(timeout=PATIENCE)
            assert line is not None, f"it has ended; it had written:\n{self.text}"
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match

    def said(self, pattern: str) -> re.Match[str]:
        """As :meth:`wait_for`, or a line that was read before."""
        before = (re.search(pattern, line) for line in self.lines)
        return next((match for match in before if match), None) or self.wait_for(pattern)

    def is_ready(self) -> None:
        """Wait until it has said that all workers are."""
        self.said(r"all workers are ready: \d+$")

    def serves(self, workers: int = 1) -> int:
        """Wait until so many workers say that they serve; return the port."""
        for _ in range(workers):
            self.port = int(self.wait_for(r"serves (\d+)$")[1])
        return self.port

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; return the exit status."""
        while (line := self._fresh.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.kill(signal.SIGTERM)
        return self.end()

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Another command, beside it."""
        return command(*arguments, directory=self.directory)

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--json")
        assert done.returncode == 0, done
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def pids(self) -> list[int]:
        """Of the workers, by slot."""
        return [one["pid"] for one in self.status()["slots"]]

    def get(self) -> tuple[int, str]:
        """Who answers, and which version of the program that is."""
        with connection(self.port) as asking:
            asking.request("GET", "/")
            return answer(asking)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


class connection(http.client.HTTPConnection):  # noqa: N801  # used as a function
    """A client's, which is closed at the end of the block."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=PATIENCE)

    def __enter__(self) -> connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def post_half(self) -> None:
        """Send a request but for its last byte, and wait for nothing."""
        self.putrequest("POST", "/")
        self.putheader("Content-Length", "1")
        self.endheaders()


def answer(asked: http.client.HTTPConnection) -> tuple[int, str]:
    pid, version = asked.getresponse().read().decode().split()
    return int(pid), version


def command(*arguments: object, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run another command to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mpcluster", *map(str, arguments)],
        cwd=directory,
        env=environment(XDG_RUNTIME_DIR=str(directory)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path) -> Iterator[Callable[..., Master]]:
    """Starts masters in a directory of this test's own, and ends them."""
    started: list[Master] = []

    def start(*arguments: object, **kwargs: Any) -> Master:
        started.append(Master(*arguments, directory=tmp_path, **kwargs))
        return started[-1]

    yield start
    for master in started:
        master.clean_up()


def write(path: Path, text: str) -> Path:
    """Write a program, as an editor does: in one step."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)
    return path
