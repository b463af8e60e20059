"""Running ``serving_master.py`` and a strict HTTP client, for the tests of servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds until a test that waits for the master gives up

_HERE = Path(__file__).parent


#: Becomes what its arguments say, as a service manager starts it: with a socket as number 3.
_HAND_DOWN = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="web")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Talking:
    """A program that says what happens, a line of JSON each, and takes orders on its input."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
        self._heard: list[dict[str, Any]] = []
        self._rest = b""

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group, too."""
        return self._process.pid

    def expect(self, event: str) -> dict[str, Any]:
        """The next event of that name that was not returned yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for what in self._heard:
                if what["event"] == event:
                    self._heard.remove(what)
                    return what
            self._hear(deadline - time.monotonic(), event)

    def _hear(self, seconds: float, event: str) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(seconds, 0))
        assert ready, f"no {event}; heard {self._heard}"
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        assert data, f"the master is gone, without {event}; heard {self._heard}"
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Servers print, too.
        self._heard += [json.loads(line) for line in lines if line.startswith(b"{")]

    def order(self, command: str) -> None:
        """Give the master a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def stop(self) -> int:
        """Close its input, so that it ends with its last worker; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Master(Talking):
    """A master with its workers, and what it says."""

    def __init__(
        self,
        script: str,
        *arguments: str,
        count: int = 2,
        handed_down: socket.socket | None = None,
        **environ: str,
    ) -> None:
        given = [] if handed_down is None else [handed_down.fileno()]
        super().__init__(
            [
                sys.executable,
                *(["-c", _HAND_DOWN, str(given[0])] if given else []),
                str(_HERE / "serving_master.py"),
                str(count),
                str(_HERE / "servers" / f"{script}.py"),
                *arguments,
            ],
            env={**os.environ, **environ},
            pass_fds=given,
        )


@contextlib.contextmanager
def serving(script: str, *arguments: str, **options: Any) -> Iterator[Master]:
    """A master for one test."""
    master = Master(script, *arguments, **options)
    try:
        yield master
    finally:
        master.end()


class Unanswered(Exception):
    """The connection ended before the first byte of a response."""


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool
) -> tuple[int, bool]:
    """One request: the answer (a process id), and whether the connection goes on."""
    how = b"keep-alive" if keep else b"close"
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: " + how + b"\r\n\r\n")
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
    except ConnectionError as error:
        raise Unanswered from error
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise Unanswered from error
        raise
    lines = head.lower().split(b"\r\n")
    assert lines[0].split()[1] == b"200", head
    fields = dict(line.split(b":", 1) for line in lines[1:] if line)
    if b"content-length" in fields:
        body = await reader.readexactly(int(fields[b"content-length"]))
    else:
        body = await reader.read()
    goes_on = (
        lines[0].startswith(b"http/1.1")
        and b"content-length" in fields
        and fields.get(b"connection", b"").strip() != b"close"
    )
    return int(body), keep and goes_on


async def ask(port: int | None = None, path: str | None = None) -> int:
    """One request over a connection of its own."""
    if path is not None:
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return (await exchange(reader, writer, keep=False))[0]
    finally:
        await _close(writer)


async def ask_until_all(pids: set[int], **where: Any) -> None:
    """Ask until each of these processes has answered, and see that no other does."""
    answered: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while answered != pids:
            # Several at once: of two idle event loops one may well be always the quicker.
            answered |= set(await asyncio.gather(*(ask(**where) for _ in range(8))))
            assert answered <= pids


@dataclass
class Load:
    """Clients that ask without a pause, and what became of their requests.

    ``repeated`` counts requests on a connection that had served before and ended without a
    byte of response: HTTP/1.1 lets a client ask again, so they are not lost.

    ``forgiving``: to wait for more answers does not end with a loss.
    """

    port: int
    answered: int = 0
    repeated: int = 0
    lost: list[BaseException] = field(default_factory=list)
    stopping: bool = False
    forgiving: bool = False
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self, *, new: int, kept: int) -> None:
        """``new`` clients with a connection a request, ``kept`` that keep theirs."""
        async with asyncio.TaskGroup() as group:
            for _ in range(new):
                group.create_task(self._client(keep=False))
            for _ in range(kept):
                group.create_task(self._client(keep=True))

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = self.answered + count
        async with asyncio.timeout(PATIENCE), self.progress:
            await self.progress.wait_for(
                lambda: self.answered >= goal or (bool(self.lost) and not self.forgiving)
            )

    async def _client(self, *, keep: bool) -> None:
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stopping:
            reused = stream is not None
            try:
                if stream is None:
                    stream = await asyncio.open_connection("127.0.0.1", self.port)
                _, goes_on = await exchange(*stream, keep=keep)
            except Unanswered as error:
                goes_on = False
                if reused:
                    self.repeated += 1
                else:
                    self.lost.append(error)
            except (OSError, AssertionError, asyncio.IncompleteReadError) as error:
                goes_on = False
                self.lost.append(error)
            else:
                self.answered += 1
            async with self.progress:
                self.progress.notify_all()
            if not goes_on and stream is not None:
                await _close(stream[1])
                stream = None
        if stream is not None:
            await _close(stream[1])


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def go_through_a_life(master: Master) -> None:
    """Two workers serve one port, one is killed and replaced, and both leave when asked to."""
    first, second = master.expect("listening"), master.expect("listening")
    assert first["port"] == second["port"]
    port = first["port"]
    asyncio.run(ask_until_all({first["pid"], second["pid"]}, port=port))

    os.kill(first["pid"], signal.SIGKILL)
    assert master.expect("death")["pid"] == first["pid"]
    third = master.expect("listening")
    assert third["port"] == port
    asyncio.run(ask_until_all({second["pid"], third["pid"]}, port=port))

    master.order("disconnect")
    deaths = [master.expect("death"), master.expect("death")]
    assert {death["pid"] for death in deaths} == {second["pid"], third["pid"]}
    assert all(death["asked"] and death["exitcode"] == 0 for death in deaths)
    master.expect("end")
    assert master.stop() == 0
