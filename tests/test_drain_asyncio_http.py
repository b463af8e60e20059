"""Servers that speak HTTP by themselves on asyncio say ``Connection: close`` while they drain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mpcluster.drain.asyncio_http import closing
from tests.offices import PATIENCE, Offices, Worker, listening_address, opened
from tests.test_drain import leave_when_told

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def offices() -> Iterator[Offices]:
    with opened() as offices:
        yield offices


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (ANSWER, CLOSING),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", CLOSING),
        (
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\nA: b\r\n"),
        (
            b"HTTP/1.1 200 OK\r\n\r\nconnection: in the body\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nconnection: in the body\r\n",
        ),
    ],
    ids=["none", "keep-alive", "bare", "status line alone", "half a head", "body"],
)
def test_the_head_of_an_answer_says_close_once(written: bytes, sent: bytes) -> None:
    assert closing(written) == sent
    assert closing(sent) == sent


@pytest.mark.parametrize(
    "written",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1\r\n",
    ],
)
def test_what_is_no_final_answer_is_left_as_it_is(written: bytes) -> None:
    assert closing(written) == written


class Protocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for line in data.splitlines():
            self.transport.writelines([ANSWER[:20], ANSWER[20:]] if line == b"lines" else [ANSWER])


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readline():
        writer.write(ANSWER)
    writer.close()


def serve(kind: str) -> None:
    async def serve_for_ever() -> None:
        if kind == "protocol":
            loop = asyncio.get_running_loop()
            server = await loop.create_server(Protocol, "127.0.0.1", 0)
        else:
            server = await asyncio.start_server(stream, "127.0.0.1", 0)
        await server.serve_forever()

    with contextlib.suppress(asyncio.CancelledError):
        if kind == "uvloop":
            import uvloop

            uvloop.run(serve_for_ever())
        else:
            asyncio.run(serve_for_ever())


def exchange(client: socket.socket, line: bytes = b"ask") -> bytes:
    """An answer, whole: its body ends it."""
    client.sendall(line + b"\n")
    got = b""
    while not got.endswith(b"hello"):
        more = client.recv(1000)
        assert more, got
        got += more
    return got


@pytest.mark.parametrize("kind", ["protocol", "stream", "uvloop"])
def test_a_kept_connection_is_told_that_it_ends(offices: Offices, kind: str) -> None:
    """At the latest by the second answer: of the first it may be unknown that it is one."""
    if kind == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")

    def program(worker: Worker) -> None:
        begun = leave_when_told(worker)
        serve(kind)
        begun.wait()

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        assert exchange(client) == ANSWER
        worker.say("leave")
        assert worker.hear() == "drains"
        assert exchange(client) in {ANSWER, CLOSING}
        assert exchange(client, b"lines" if kind == "protocol" else b"ask") == CLOSING
    worker.join()


def test_a_part_of_an_answer_that_looks_like_one_is_left_alone(offices: Offices) -> None:
    def program(worker: Worker) -> None:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(ANSWER)
            await reader.readline()
            writer.write(ANSWER)  # an answer, and the first write that the drain sees
            writer.write(ANSWER)  # nothing has come since
            writer.close()

        async def serve_them() -> None:
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            await server.serve_forever()

        begun = leave_when_told(worker)
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve_them())
        begun.wait()

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        assert exchange(client) == ANSWER
        worker.say("leave")
        assert worker.hear() == "drains"
        client.sendall(b"ask\n")
        got = b""
        while more := client.recv(1000):
            got += more
    assert got.endswith(b"hello" + ANSWER)
    worker.join()
