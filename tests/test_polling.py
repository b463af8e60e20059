"""What select, poll and epoll say of shared sockets, and what accept() does after it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.connection
import os
import resource
import select
import selectors
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from mpcluster import sharing
from mpcluster.sharing import waiting
from tests.offices import PATIENCE, Offices, Worker, opened
from tests.test_sharing import tcp


@pytest.fixture
def offices() -> Iterator[Offices]:
    with opened() as offices:
        yield offices


class Server:
    """Hands the question for its descriptor on, as ``socketserver`` does."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()


def wait_until_ready(how: str, sock: socket.socket, timeout: float | None = None) -> bool:
    """Wait for a connection in that way; was one reported?"""
    if how == "select":
        return bool(select.select([sock], [], [], timeout)[0])
    if how == "select, beside another":
        one, two = socket.socketpair()
        with one, two:
            return sock in select.select([one, sock], [], [two], timeout)[0]
    if how == "poll":
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        milliseconds = None if timeout is None else timeout * 1000
        return (sock.fileno(), select.POLLIN) in poller.poll(milliseconds)
    if how.startswith("epoll"):
        with select.epoll() as queue:
            once = select.EPOLLONESHOT if how == "epoll, once" else 0
            queue.register(sock, select.EPOLLIN | once)
            return (sock.fileno(), select.EPOLLIN) in queue.poll(timeout)
    selector = selectors.SelectSelector if how == "SelectSelector" else selectors.DefaultSelector
    with selector() as polling:
        polling.register(Server(sock), selectors.EVENT_READ)
        return bool(polling.select(timeout))


WAYS_TO_WAIT = [
    "select",
    "select, beside another",
    "poll",
    "epoll",
    "epoll, once",
    "selectors",
    "SelectSelector",
]


@pytest.mark.parametrize("install", [True, False])
@pytest.mark.parametrize("how", WAYS_TO_WAIT)
def test_a_listener_is_reported_only_to_whom_accept_returns_at_once(
    offices: Offices, how: str, install: bool
) -> None:
    """All poll, one connection comes: one hears of it, whatever the others do meanwhile."""

    def program(worker: Worker) -> None:
        with sharing.shared_listen(worker.ask, worker.tell, 0) as sock:
            worker.say(sock.getsockname()[1])
            while wait_until_ready(how, sock):
                worker.say("ready")
                worker.hear()
                connection, _ = sock.accept()
                with connection:
                    connection.sendall(b"served")
                worker.say("served")

    workers = [offices.start(program, install=install) for _ in range(2)]
    (port,) = {worker.hear() for worker in workers}
    pipes = [worker._pipe for worker in workers]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.settimeout(PATIENCE)
            (told,) = multiprocessing.connection.wait(pipes, PATIENCE)
            worker = workers[pipes.index(told)]
            assert worker.hear() == "ready"
            other = workers[1 - workers.index(worker)]
            worker.say("go")
            assert worker.hear() == "served"
            assert client.recv(10) == b"served"
            assert other.silent()


@pytest.mark.parametrize("how", WAYS_TO_WAIT)
def test_what_was_reported_is_reported_again_until_it_is_accepted(
    offices: Offices, how: str
) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say((wait_until_ready(how, sock, 0), sock.getsockname()))
            worker.hear()
            seen = [wait_until_ready(how, sock), wait_until_ready(how, sock, 0)]
            sock.accept()[0].close()
            worker.say([*seen, wait_until_ready(how, sock, 0.01)])

    worker = offices.start(program)
    nothing, address = worker.hear()
    assert nothing is False
    with socket.create_connection(address):
        worker.say("one is there")
        assert worker.hear() == [True, True, False]


def test_accept_blocks_after_whatever_looked_at_the_descriptor(offices: Offices) -> None:
    """Registered, polled and served before: who calls accept() without a report waits."""

    def program(worker: Worker) -> None:
        with tcp() as sock, select.epoll() as queue:
            queue.register(sock.fileno(), select.EPOLLIN)
            worker.say((queue.poll(0), sock.getsockname()))
            for _ in range(2):  # the second, after one that was reported
                connection, _ = sock.accept()
                connection.close()
                worker.say("accepted")
                queue.poll()
                sock.accept()[0].close()

    worker = offices.start(program)
    events, address = worker.hear()
    assert events == []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            assert worker.silent()
            stack.enter_context(socket.create_connection(address))
            assert worker.hear() == "accepted"
            stack.enter_context(socket.create_connection(address))
        assert worker.join() == 0


def test_a_listener_that_starts_to_block_after_its_registration_is_reported_truly(
    offices: Offices,
) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock, selectors.DefaultSelector() as selector:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
            sock.setblocking(True)
            worker.say(sock.getsockname())
            while selector.select():
                sock.accept()[0].close()
                worker.say("accepted")

    workers = [offices.start(program) for _ in range(2)]
    (address,) = {worker.hear() for worker in workers}
    pipes = [worker._pipe for worker in workers]
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection(address))
            (told,) = multiprocessing.connection.wait(pipes, PATIENCE)
            assert told.recv() == "accepted"
    assert all(worker.silent() for worker in workers)


def test_a_listener_that_does_not_block_raises_when_a_sibling_was_quicker(
    offices: Offices,
) -> None:
    """As the kernel has it: it is an event loop's, and prepared for it."""

    def program(worker: Worker) -> None:
        with tcp() as sock:
            sock.setblocking(False)
            worker.say(sock.getsockname())
            select.select([sock], [], [])
            worker.say("ready")
            worker.hear()
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                worker.say("nothing")
            else:
                worker.say("accepted")

    workers = [offices.start(program), offices.start(program)]
    for worker in workers:
        address = worker.hear()
    with socket.create_connection(address):
        for worker in workers:
            assert worker.hear() == "ready"
        answers = []
        for worker in workers:
            worker.say("accept now")
            answers.append(worker.hear())
    assert answers == ["accepted", "nothing"]


def test_an_error_of_accept_is_reported_and_raised_there(offices: Offices) -> None:
    """Out of descriptors: the program is told that accept() returns, and accept() tells why."""

    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say(sock.getsockname())
            worker.hear()
            with sock.dup() as spare:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno() + 1, limit[1]))
                seen = wait_until_ready("select", sock)
                try:
                    sock.accept()
                except OSError as error:
                    worker.say((seen, error.errno))
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            sock.accept()[0].close()

    worker = offices.start(program)
    with socket.create_connection(worker.hear()):
        worker.say("go")
        assert worker.hear() == (True, errno.EMFILE)
        assert worker.join() == 0


def test_a_reported_connection_that_nobody_accepts_ends_with_its_listener(
    offices: Offices,
) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say(sock.getsockname())
            wait_until_ready("select", sock)
        worker.hear()

    worker = offices.start(program)
    with socket.create_connection(worker.hear(), timeout=PATIENCE) as client:
        assert client.recv(1) == b""


def test_who_waits_is_not_woken_by_a_listener_that_it_has_closed(offices: Offices) -> None:
    """It is open in the master and at a sibling, and somebody waits there."""

    def closing(worker: Worker) -> None:
        # Both now: once a worker has closed its only listener on port 0, its next is the same.
        first, second = tcp(), tcp()
        worker.say(first.getsockname())
        assert wait_until_ready("select", first)
        first.accept()[0].close()
        first.close()
        worker.say("closed")
        worker.hear()
        looks = 0
        wait = waiting.wait

        def counted(*args: Any, **kwargs: Any) -> None:
            nonlocal looks
            looks += 1
            wait(*args, **kwargs)

        waiting.wait = counted
        worker.say(wait_until_ready("select", second, 0.1))
        worker.say(looks)
        second.close()

    def holding(worker: Worker) -> None:
        with tcp(worker.hear()):
            worker.say("holds")
            worker.hear()

    worker, sibling = offices.start(closing), offices.start(holding)
    address = worker.hear()
    sibling.say(address)
    assert sibling.hear() == "holds"
    with socket.create_connection(address):
        assert worker.hear() == "closed"
    with socket.create_connection(address):
        worker.say("go")
        assert worker.hear() is False
        assert worker.hear() < 5
        sibling.say("go")
        assert worker.join() == sibling.join() == 0


def test_a_thread_goes_to_the_end_of_the_queue_every_few_waits(offices: Offices) -> None:
    """Else who is the first there would be it for ever, and take all that comes one by one."""

    def program(worker: Worker) -> None:
        with tcp(worker.hear()) as sock:
            worker.say(sock.getsockname())
            while True:
                assert wait_until_ready("select", sock)
                with sock.accept()[0] as connection:
                    connection.sendall(b"%d" % worker.number)

    workers = [offices.start(program) for _ in range(2)]
    address: Any = ("127.0.0.1", 0)
    for worker in workers:
        worker.say(address)
        address = worker.hear()
    answered = set()
    for _ in range(2000):  # the second may be late to wait for the first time
        with socket.create_connection(address, timeout=PATIENCE) as client:
            answered.add(client.recv(10))
            assert client.recv(10) == b""
        if len(answered) == 2:
            break
    assert answered == {b"1", b"2"}


def test_a_reported_connection_is_not_a_forked_childs(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say(sock.getsockname())
            wait_until_ready("select", sock)
            child = os.fork()
            if not child:
                worker.hear()
                os._exit(0)
            sock.accept()[0].close()
            os.waitpid(child, 0)

    worker = offices.start(program)
    with socket.create_connection(worker.hear(), timeout=PATIENCE) as client:
        assert client.recv(1) == b""  # while the child lives
        worker.say("go")
        assert worker.join() == 0


def test_names_taken_before_the_patch_are_as_honest(offices: Offices) -> None:
    module = types.ModuleType("taken_before")
    module.select, module.epoll = select.select, select.epoll  # type: ignore[attr-defined]

    def program(worker: Worker) -> None:
        worker.say((module.select is select.select, module.epoll is select.epoll))

    sys.modules[module.__name__] = module
    try:
        assert offices.start(program).hear() == (True, True)
    finally:
        del sys.modules[module.__name__]


def test_a_datagram_that_a_sibling_read_first_is_told_once(offices: Offices) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()

    def program(worker: Worker) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(address)
            worker.say("bound")
            select.select([sock], [], [])
            worker.say("ready")
            worker.hear()
            try:
                worker.say(sock.recv(10))
            except BlockingIOError:
                worker.say("nothing")
            worker.hear()
            worker.say(sock.recv(10))

    workers = [offices.start(program), offices.start(program)]
    for worker in workers:
        assert worker.hear() == "bound"
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(address)
        client.send(b"first")
        for worker in workers:
            assert worker.hear() == "ready"
        answers = []
        for worker in workers:
            worker.say("read")
            answers.append(worker.hear())
        assert answers == [b"first", "nothing"]
        for worker in workers:  # now it blocks
            worker.say("read")
            client.send(b"second")
            assert worker.hear() == b"second"
