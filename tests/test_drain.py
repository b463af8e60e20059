"""Leaving without losing a request: one worker, a real registry, a parent that says when."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

import pytest

from mpcluster import drain
from mpcluster.sharing import connections
from tests.offices import PATIENCE, Offices, Worker, listening_address, opened


@pytest.fixture
def offices() -> Iterator[Offices]:
    with opened() as offices:
        yield offices


def leave_when_told(worker: Worker, **options: Any) -> threading.Event:
    """In a worker: what its process layer does when its parent asks it to go.

    Returns: set when the drain has begun.
    """
    begun = threading.Event()

    def finished() -> None:
        begun.wait()
        worker.say("finished")
        os._exit(0)

    def wait() -> None:
        assert worker.hear() == "leave"
        drain.begin(**{"parked": bool, "user_callback": None, "finished": finished, **options})
        worker.say("drains")  # before what the program does about it
        begun.set()

    drain.install()
    threading.Thread(target=wait, daemon=True).start()
    return begun


class Kept(BaseHTTPRequestHandler):
    """HTTP/1.1, so that connections are kept; ``/slow`` waits until it may answer."""

    protocol_version = "HTTP/1.1"
    may_answer = threading.Event()
    asked = threading.Event()

    def do_GET(self) -> None:
        self.asked.set()
        if self.path == "/slow":
            self.may_answer.wait()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        pass


def serve_http(worker: Worker, server_class: type[HTTPServer] = ThreadingHTTPServer) -> None:
    """Serve, leave when told; tells when a request came, and waits for leave to answer it."""
    leave_when_told(worker)
    with server_class(("127.0.0.1", 0), Kept) as server:
        server.serve_forever()
    worker.say("ended")


def connect(address: Any) -> http.client.HTTPConnection:
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    client.connect()
    return client


def get(client: http.client.HTTPConnection, path: str = "/") -> http.client.HTTPResponse:
    client.request("GET", path)
    response = client.getresponse()
    assert response.read() == b"ok"
    return response


# -- nothing to do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silence", "unanswered", "idle"),
    [
        (drain.state.IDLE, False, True),
        (drain.state.IDLE / 2, False, False),
        (1000.0, True, False),
        (drain.state.UNSURE, None, True),
        (drain.state.IDLE, None, False),
        (None, None, False),
    ],
)
def test_a_connection_is_idle_when_it_was_silent_for_a_while_and_owes_no_answer(
    silence: float | None, unanswered: bool | None, idle: bool
) -> None:
    assert drain.state.IDLE > 0
    connection = connections.Connection(1, silence=silence, unanswered=unanswered)
    assert drain._is_idle(connection, []) is idle


def test_a_worker_leaves_though_its_drain_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> bool:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(drain.signals, "program_handles_sigterm", fails)
    finished: list[bool] = []
    drain._drain(lambda: finished.append(True))
    assert finished == [True]
    assert "on purpose" in caplog.text


def test_a_worker_without_servers_is_finished_at_once(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        leave_when_told(worker)
        threading.Event().wait()

    worker = offices.start(program)
    worker.say("leave")
    assert {worker.hear(), worker.hear()} == {"drains", "finished"}
    assert worker.join() == 0


def test_the_programs_own_way_to_leave_replaces_the_drain(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        signal.signal(signal.SIGTERM, lambda *_: worker.say("terminated"))
        leave_when_told(worker, user_callback=lambda: worker.say("my way"))
        threading.Event().wait()

    worker = offices.start(program)
    worker.say("leave")
    assert [worker.hear(), worker.hear()] == ["my way", "drains"]
    assert worker.silent()


def test_to_begin_twice_is_to_begin_once(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        drain.install()
        for _ in range(2):
            drain.begin(
                parked=lambda: worker.say("parked"),
                user_callback=lambda: worker.say("asked"),
                finished=lambda: None,
            )
        worker.say("over")

    worker = offices.start(program)
    assert [worker.hear() for _ in range(3)] == ["parked", "asked", "over"]


# -- SIGTERM ---------------------------------------------------------------------------------------


def test_a_program_that_handles_sigterm_gets_it(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        leave_when_told(worker)
        over = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        worker.say("ready")
        with socket.create_server(("127.0.0.1", 0)):
            over.wait()
        worker.say("terminated")

    worker = offices.start(program)
    assert worker.hear() == "ready"
    worker.say("leave")
    assert {worker.hear(), worker.hear()} == {"drains", "terminated"}
    assert worker.join() == 0


def test_a_handler_that_was_inherited_is_not_the_programs(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        leave_when_told(worker)
        threading.Event().wait()

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        worker = offices.start(program)
    finally:
        signal.signal(signal.SIGTERM, before)
    worker.say("leave")
    assert {worker.hear(), worker.hear()} == {"drains", "finished"}


# -- no new connection -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blocking", "select", "asyncio"])
def test_a_draining_worker_leaves_new_connections_to_the_others(
    offices: Offices, kind: str
) -> None:
    def accept(worker: Worker, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            connection.close()
            worker.say("accepted")

    async def serve(worker: Worker) -> None:
        def made() -> asyncio.Protocol:
            worker.say("accepted")
            return asyncio.Protocol()

        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        worker.say(server.sockets[0].getsockname())
        await asyncio.Event().wait()

    def program(worker: Worker) -> None:
        leave_when_told(worker, user_callback=lambda: None)
        if kind == "asyncio":
            asyncio.run(serve(worker))
        elif kind == "select":
            server = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
            server.process_request = lambda *_: worker.say("accepted")  # type: ignore[method-assign]
            worker.say(server.server_address)
            server.serve_forever()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                worker.say(listener.getsockname())
                accept(worker, listener)

    leaving = offices.start(program)
    address = leaving.hear()
    offices.steer_away_from(leaving)
    leaving.say("leave")
    assert leaving.hear() == "drains"
    staying = offices.start(program)
    assert staying.hear() == address
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(address))
            assert staying.hear() == "accepted"
    assert leaving.silent()


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_listener_that_comes_up_in_a_draining_worker_is_silent(
    offices: Offices, kind: str
) -> None:
    """It was asked to leave while it still imported its application, say."""

    async def serve(worker: Worker) -> None:
        def made() -> asyncio.Protocol:
            worker.say("accepted")
            return asyncio.Protocol()

        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        worker.say(server.sockets[0].getsockname())
        await asyncio.Event().wait()

    def program(worker: Worker) -> None:
        begun = leave_when_told(worker, user_callback=lambda: None)
        if worker.number == 1:
            begun.wait()
        if kind == "asyncio":
            asyncio.run(serve(worker))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker.say(listener.getsockname())
            while True:
                listener.accept()[0].close()
                worker.say("accepted")

    leaving = offices.start(program)
    offices.steer_away_from(leaving)
    leaving.say("leave")
    assert leaving.hear() == "drains"
    address = leaving.hear()
    staying = offices.start(program)
    assert staying.hear() == address
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(address))
            assert staying.hear() == "accepted"
    assert leaving.silent()


# -- http.server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("server_class", [HTTPServer, ThreadingHTTPServer])
def test_a_request_under_way_is_answered(offices: Offices, server_class: type[HTTPServer]) -> None:
    def program(worker: Worker) -> None:
        def let_it_answer() -> None:
            Kept.asked.wait()
            worker.say("asked")

        threading.Thread(target=let_it_answer, daemon=True).start()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        serve_http(worker, server_class)

    # The drain has begun before the handler may answer: the worker itself sees to that.
    worker = offices.start(lambda worker: _answer_when_draining(program, worker))
    address = listening_address(worker)
    client = connect(address)
    client.request("GET", "/slow")
    assert worker.hear() == "asked"
    worker.say("leave")
    assert worker.hear() == "drains"
    response = client.getresponse()
    assert response.read() == b"ok"
    assert response.getheader("Connection") == "close"
    client.close()
    assert worker.hear() == "ended"
    assert worker.join() == 0


def _answer_when_draining(program: Any, worker: Worker) -> None:
    say = worker.say

    def watched_say(message: object) -> None:
        say(message)
        if message == "drains":
            Kept.may_answer.set()

    worker.say = watched_say  # type: ignore[method-assign]
    program(worker)


def test_a_kept_connection_is_told_that_it_ends(offices: Offices) -> None:
    worker = offices.start(serve_http)
    client = connect(listening_address(worker))
    assert get(client).getheader("Connection") is None
    worker.say("leave")
    assert worker.hear() == "drains"
    assert get(client).getheader("Connection") == "close"
    client.close()
    assert worker.hear() == "ended"


@pytest.mark.parametrize("server_class", [HTTPServer, ThreadingHTTPServer])
def test_a_kept_connection_that_is_idle_is_let_go(
    offices: Offices, server_class: type[HTTPServer]
) -> None:
    worker = offices.start(lambda worker: serve_http(worker, server_class))
    client = connect(listening_address(worker))
    get(client)
    worker.say("leave")
    assert worker.hear() == "drains"
    assert client.sock.recv(1) == b""
    client.close()
    assert worker.hear() == "ended"
    assert worker.join() == 0


# -- asyncio ---------------------------------------------------------------------------------------


def test_asyncio_answers_what_is_under_way_and_ends_cleanly(offices: Offices) -> None:
    async def serve(worker: Worker, begun: threading.Event) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            worker.say("asked")
            await asyncio.to_thread(begun.wait)
            writer.write(b"answer\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            await server.serve_forever()

    def program(worker: Worker) -> None:
        begun = leave_when_told(worker)
        try:
            asyncio.run(serve(worker, begun))
        except asyncio.CancelledError as error:
            worker.say(("ended", drain.ended_cleanly(error)))

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question\n")
        assert worker.hear() == "asked"
        worker.say("leave")
        assert worker.hear() == "drains"
        with client.makefile("rb") as answers:
            assert answers.read() == b"answer\n"
    assert worker.hear() == ("ended", True)
    assert worker.join() == 0


def test_asyncio_lets_idle_connections_go(offices: Offices) -> None:
    async def serve(worker: Worker) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        await server.serve_forever()

    def program(worker: Worker) -> None:
        leave_when_told(worker)
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve(worker))
        worker.say("ended")

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        worker.say("leave")
        assert worker.hear() == "drains"
        assert client.recv(100) == b""
    assert worker.hear() == "ended"


def test_another_cancelled_error_is_no_clean_end() -> None:
    assert not drain.ended_cleanly(asyncio.CancelledError())


# -- whatever else ---------------------------------------------------------------------------------


def test_a_plain_accept_loop_finishes_its_connection(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        begun = leave_when_told(worker)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    worker.say("asked")
                    begun.wait()
                    connection.sendall(b"answer")

    worker = offices.start(program)
    with socket.create_connection(listening_address(worker), timeout=PATIENCE) as client:
        client.sendall(b"question")
        assert worker.hear() == "asked"
        worker.say("leave")
        assert worker.hear() == "drains"
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
        assert worker.hear() == "finished"
    assert worker.join() == 0


def test_connections_in_hand_are_found_whoever_accepted_them(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker.say(listener.getsockname())
            first, _ = listener.accept()
            fd = os.dup(first.fileno())
            found = [one.fd for one in connections.in_hand()]
            worker.say(sorted(found) == sorted([first.fileno(), fd]))
            first.close()
            os.close(fd)
            worker.say(connections.in_hand())

    worker = offices.start(program)
    with socket.create_connection(worker.hear()):
        assert worker.hear() is True
        assert worker.hear() == []
