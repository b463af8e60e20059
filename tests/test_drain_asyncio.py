"""What an asyncio server has in hand when its worker drains: streams, protocols, TLS or not."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcluster import drain
from mpcluster.drain import asyncio_servers, state
from mpcluster.sharing import connections
from tests.offices import PATIENCE, Offices, Worker, listening_address, opened
from tests.test_drain import leave_when_told

#: Looks of the drain at a connection that has been silent for longer than `IDLE`.
ENOUGH = 8


@pytest.fixture
def offices() -> Iterator[Offices]:
    with opened() as offices:
        yield offices


def hurry(worker: Worker) -> None:
    """In a worker: let little silence be much, and tell when the drain has looked often."""
    state.IDLE, state.UNSURE = 0.05, 0.1
    sleep, looks = drain._sleep, iter(range(1 << 30))

    def counted(seconds: float) -> None:
        sleep(seconds)
        if next(looks) == ENOUGH:
            worker.say("looked")

    drain._sleep = counted


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def serve_streams(worker: Worker, answer: Handler, path: str | None = None) -> None:
    """Until the drain ends it."""

    async def serve() -> None:
        if path is None:
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
        else:
            server = await asyncio.start_unix_server(answer, path)
        await server.serve_forever()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve())
    worker.say("ended")


def serve_protocol(worker: Worker, protocol: Callable[[], asyncio.Protocol]) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        await server.serve_forever()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve())
    worker.say("ended")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


# -- a drain, from its begin to its end ------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "protocol"])
def test_a_response_that_pauses_is_finished(offices: Offices, kind: str) -> None:
    def program(worker: Worker) -> None:
        go_on = threading.Event()

        async def answer_in_parts(write: Callable[[bytes], object]) -> None:
            write(b"one part, ")
            await asyncio.to_thread(go_on.wait)
            write(b"and another")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            await answer_in_parts(writer.write)
            writer.close()

        class Answer(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.task = asyncio.get_running_loop().create_task(self.answer())

            async def answer(self) -> None:
                await answer_in_parts(self.transport.write)
                self.transport.close()

        hurry(worker)
        begun = leave_when_told(worker)

        def wait_for_more() -> None:
            begun.wait()
            worker.hear()
            go_on.set()

        threading.Thread(target=wait_for_more, daemon=True).start()
        if kind == "stream":
            serve_streams(worker, answer)
        else:
            serve_protocol(worker, Answer)

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question\n")
        assert client.recv(100) == b"one part, "
        worker.say("leave")
        assert {worker.hear(), worker.hear()} == {"drains", "looked"}
        worker.say("go on")
        assert client.recv(100) == b"and another"
        assert client.recv(100) == b""
    assert worker.hear() == "ended"
    assert worker.join() == 0


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_a_response_of_streams_on_uvloop_that_pauses_is_finished(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        import uvloop

        go_on = threading.Event()

        async def serve() -> None:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(await reader.readline())
                await asyncio.to_thread(go_on.wait)
                writer.write(b"and more")
                writer.close()

            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            await server.serve_forever()

        hurry(worker)
        begun = leave_when_told(worker)

        def wait_for_more() -> None:
            begun.wait()
            worker.hear()
            go_on.set()

        threading.Thread(target=wait_for_more, daemon=True).start()
        uvloop.run(serve())

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question\n")
        assert client.recv(100) == b"question\n"
        worker.say("leave")
        assert {worker.hear(), worker.hear()} == {"drains", "looked"}
        worker.say("go on")
        assert client.recv(100) == b"and more"
        assert client.recv(100) == b""
    assert worker.hear() == "finished"
    assert worker.join() == 0


def test_an_idle_connection_on_a_unix_path_is_let_go(offices: Offices, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def program(worker: Worker) -> None:
        hurry(worker)
        begun = leave_when_told(worker)
        serve_streams(worker, echo, path)
        begun.wait()

    worker = offices.start(program)
    listening_address(worker)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        worker.say("leave")
        assert client.recv(100) == b""
    assert worker.join() == 0
    said = set()
    with contextlib.suppress(EOFError):
        while True:
            said.add(worker.hear())
    assert {"drains", "ended"} <= said


@pytest.mark.parametrize("whole", [True, False])
def test_a_client_that_is_never_answered_does_not_hold_the_drain_for_ever(
    offices: Offices, whole: bool
) -> None:
    """One that sends to a server which only listens, and one that sent half a line."""

    def program(worker: Worker) -> None:
        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            worker.say("connected")
            while await reader.readline():
                pass
            writer.close()

        state.IDLE, state.STALLED = 0.05, 0.2
        begun = leave_when_told(worker)
        serve_streams(worker, swallow)
        begun.wait()

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"said" + b"\n" * whole)
        assert worker.hear() == "connected"
        worker.say("leave")
        assert {worker.hear(), worker.hear()} == {"drains", "ended"}
        assert client.recv(100) == b""


def test_a_request_that_comes_at_the_last_moment_is_answered(offices: Offices) -> None:
    """Between the drain's last look and the closing, which is the loop's to do."""

    async def serve(worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        there = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            there.set()
            await echo(reader, writer)

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        await there.wait()
        (transport,) = (one for one in loop._transports.values() if one._server is server)  # type: ignore[attr-defined]
        await asyncio.to_thread(worker.hear)  # it is sent, and not read
        asyncio_servers._close(server)
        transport.resume_reading()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()
        worker.say("ended")

    worker = offices.start(lambda worker: asyncio.run(serve(worker)))
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question\n")
        worker.say("sent")
        assert client.recv(100) == b"question\n"
        assert client.recv(100) == b""
    assert worker.hear() == "ended"


# -- how long a silence is enough --------------------------------------------------------------


def patience_of(worker: Worker, adapter: Any) -> list[float | None]:
    """Of every connection in hand, with the kernel's clocks as if it had been silent long."""
    found = []
    for one in connections.in_hand():
        old = connections.Connection(one.fd, 5.0, one.received, worker.unanswered)  # type: ignore[attr-defined]
        found.append(adapter.patience(old))
    return found


@pytest.mark.parametrize(
    ("doing", "unanswered", "enough"),
    [
        ("waits for a request", False, state.IDLE),
        ("waits for a request", None, state.IDLE),
        ("waits for more", True, state.STALLED),
        ("has half a line", None, state.STALLED),
        ("works", True, state.NEVER),
        ("works", False, state.NEVER),
        ("is done", False, state.IDLE),
        ("is not read", False, state.STALLED),
    ],
)
def test_a_streams_handler_shows_what_it_has_in_hand(
    offices: Offices, doing: str, unanswered: bool | None, enough: float
) -> None:
    async def serve(worker: Worker) -> None:
        reached = asyncio.Event()
        kept = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            kept.append(writer)  # one that is dropped closes
            asyncio.get_running_loop().call_soon(reached.set)
            if doing == "works":
                await asyncio.Event().wait()
            elif doing == "is not read":
                writer.write(b"x" * (1 << 24))
                await writer.drain()
            elif doing == "has half a line":
                await reader.read(1)
                reached.clear()
                asyncio.get_running_loop().call_soon(reached.set)
                await reader.readline()
            elif doing != "is done":
                await reader.read(100)
                await reader.read(100)

        async with await asyncio.start_server(answer, "127.0.0.1", 0):
            await asyncio.to_thread(worker.hear)
            await reached.wait()
            for _ in range(10):  # all that can happen by itself
                await asyncio.sleep(0)
            worker.say(await asyncio.to_thread(patience_of, worker, drain._asyncio_streams))

    def program(worker: Worker) -> None:
        drain.install()
        worker.unanswered = unanswered  # type: ignore[attr-defined]
        asyncio.run(serve(worker))

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question")
        worker.say("sent")
        assert worker.hear() == [enough]


class Work:
    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    async def go_on(self) -> None:
        await asyncio.Event().wait()


async def wait_with(_connection: object) -> None:
    await asyncio.Event().wait()


def hold(holder: str, transport: Any, over: threading.Event) -> object:
    """Let that have to do with the connection; keep what is returned."""
    loop = asyncio.get_running_loop()
    match holder:
        case "a task":
            return loop.create_task(wait_with(transport))
        case "a task of the protocol":
            return loop.create_task(wait_with(transport.get_protocol()))
        case "a task of another object":
            return loop.create_task(Work(transport).go_on())
        case "a task with many connections":
            return loop.create_task(wait_with([transport]))
        case "a timer":
            return loop.call_later(1000, transport.write, b"more")
        case "a cancelled timer":
            loop.call_later(1000, transport.write, b"more").cancel()
        case "a thread":
            return loop.run_in_executor(None, over.wait)
    return None


@pytest.mark.parametrize(
    ("holder", "unanswered", "enough"),
    [
        ("nobody", False, state.IDLE),
        ("nobody", None, state.UNSURE),
        ("nobody", True, state.STALLED),
        ("a task", False, state.STALLED),
        ("a task", True, state.NEVER),
        ("a task of the protocol", False, state.STALLED),
        ("a task of another object", False, state.STALLED),
        ("a task with many connections", False, state.IDLE),
        ("a timer", False, state.STALLED),
        ("a thread", True, state.NEVER),
        ("a thread", False, state.IDLE),
        ("a cancelled timer", False, state.IDLE),
        ("a task of the server", False, state.IDLE),
    ],
)
def test_a_protocols_connection_is_in_hand_while_somebody_holds_it(
    offices: Offices, holder: str, unanswered: bool | None, enough: float
) -> None:
    async def serve(worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        made: list[Any] = []
        there, looked = asyncio.Event(), asyncio.Event()
        over = threading.Event()

        class Held(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                made.append((transport, hold(holder, transport, over)))
                there.set()

        server = await loop.create_server(Held, "127.0.0.1", 0)
        await there.wait()
        await asyncio.sleep(0)

        def look() -> None:
            worker.say(patience_of(worker, drain._asyncio_servers))
            loop.call_soon_threadsafe(looked.set)

        threading.Thread(target=look).start()  # the executor is the server's
        await looked.wait()
        over.set()
        server.close()

    def program(worker: Worker) -> None:
        drain.install()
        worker.unanswered = unanswered  # type: ignore[attr-defined]
        asyncio.run(serve(worker))

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE):
        assert worker.hear() == [enough]


def test_connections_of_a_loop_that_does_not_answer_are_busy(offices: Offices) -> None:
    async def serve(worker: Worker) -> None:
        there = asyncio.Event()

        class Made(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                there.set()

        await asyncio.get_running_loop().create_server(Made, "127.0.0.1", 0)
        await there.wait()
        looking = threading.Thread(
            target=lambda: worker.say(patience_of(worker, drain._asyncio_servers))
        )
        looking.start()
        looking.join()  # in the loop's thread

    def program(worker: Worker) -> None:
        drain.install()
        worker.unanswered = False  # type: ignore[attr-defined]
        asyncio.run(serve(worker))

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE):
        assert worker.hear() == [state.NEVER]
