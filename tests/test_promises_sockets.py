"""The promises about shared sockets that only whole programs show: 12, 14 and 16."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import ClusterProcess
from mpcluster.family import Family
from tests.happenings import PATIENCE, Diary, relatives_fixture  # noqa: F401  # a fixture
from tests.masters import ask_until_all, serving
from tests.running import run
from tests.sharers import LOCAL

pytestmark = pytest.mark.usefixtures("relatives")


def started(target: Any, *args: object, **options: Any) -> tuple[ClusterProcess, Diary]:
    one, diary = ClusterProcess(target=target, args=args, **options), Diary()
    diary.follow(one)
    one.start()
    return one, diary


def said(diary: Diary) -> list[object]:
    return [line[1] for line in diary.lines if line[0] == "message"]


# -- 12: the master binds ----------------------------------------------------------------------


def privileged_port() -> int:
    """A free one that only root may bind."""
    least = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    for port in range(least - 1, 0, -1):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.skip("this system has no privileged port that is free")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may bind privileged ports")
@pytest.mark.parametrize("share", [True, False])
def test_12_a_worker_without_privileges_shares_a_privileged_port_of_its_master(
    share: bool,
) -> None:
    """By a plain bind; and one that does not share its ports may not."""
    port = privileged_port()

    def target() -> None:
        os.setuid(65534)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
                cluster.send(sock.getsockname()[1])
            except PermissionError as error:
                cluster.send(error.errno)

    one, diary = started(target, share_ports=share)
    diary.until("death")
    assert said(diary) == [port if share else errno.EACCES]
    one.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root may bind every port")
def test_12_a_permission_that_the_master_lacks_is_the_workers_error() -> None:
    port = privileged_port()

    def target() -> None:
        try:
            cluster.listen(("127.0.0.1", port))
        except PermissionError as error:
            cluster.send(str(error))

    one, diary = started(target)
    diary.until("death")
    assert f"127.0.0.1:{port}" in str(said(diary)[0])
    one.close()


def test_12_the_error_is_the_masters_own_with_its_address(relatives: Family) -> None:
    """Another program has the port; then it has not, and the worker may ask again."""

    def target(address: tuple[str, int]) -> None:
        stranger.close()  # its copy, inherited
        answered = threading.Event()
        cluster.on("message", lambda _: answered.set())
        for _ in range(2):
            try:
                with cluster.listen(address):
                    cluster.send("mine")
            except OSError as error:
                cluster.send((error.errno, error.address, str(error)))  # type: ignore[attr-defined]
            answered.wait()

    with socket.socket() as stranger:
        stranger.bind(LOCAL)
        address = stranger.getsockname()
        one, diary = started(target, address)
        diary.until_count(3)  # fork, online, message
        ((number, named, text),) = said(diary)  # type: ignore[misc]
        assert number == errno.EADDRINUSE
        assert (named.host, named.port) == address
        assert f"{address[0]}:{address[1]}" in text
    one.send("free now")
    diary.until("death")
    assert said(diary)[1:] == ["mine"]
    one.close()


# -- 14: the queue survives ----------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["shared", "slots"])
def test_14_connections_in_the_queue_survive_the_death_of_the_only_worker(policy: str) -> None:
    """They wait for its replacement, with what their clients have sent already."""

    def deaf() -> None:
        with cluster.listen(LOCAL, scheduling=policy, backlog=64) as sock:
            cluster.send(sock.getsockname())
            signal.pause()

    def serves(address: tuple[str, int]) -> None:
        with cluster.listen(address) as sock:
            for _ in range(20):
                connection, _ = sock.accept()
                with connection:
                    connection.sendall(connection.recv(100))

    first, diary = started(deaf)
    diary.until_count(4)  # fork, online, listening, message
    ((host, port),) = said(diary)  # type: ignore[misc]
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(20):
            client = socket.create_connection((host, port), timeout=PATIENCE)
            clients.append(stack.enter_context(client))
            client.sendall(b"%d" % number)
        first.kill()
        diary.until("death")
        second, later = started(serves, (host, port))
        assert [int(client.recv(100)) for client in clients] == list(range(20))
        later.until("death")
        assert second.exitcode == 0
    first.close()
    second.close()


# -- 16: sockets handed down ----------------------------------------------------------------------


@pytest.mark.parametrize("script", ["http_server", "asyncio_streams"])
def test_16_an_unmodified_server_serves_on_the_socket_that_was_handed_down(
    script: str,
) -> None:
    """Its first client came before it started, and the port outlives it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as early,
            serving(script, "127.0.0.1", str(port), handed_down=listening) as master,
        ):
            early.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            pids = {master.expect("listening")["pid"] for _ in range(2)}
            assert early.recv(100).startswith(b"HTTP/1.")
            asyncio.run(ask_until_all(pids, port=port))
            master.order("disconnect")
            master.expect("end")
            assert master.stop() == 0
        with socket.create_connection(("127.0.0.1", port)):  # the manager's, as before
            listening.accept()[0].close()


# -- sharing without a word: only where it was asked for -------------------------------------------


def test_nothing_is_patched_in_a_master_or_in_a_plain_process() -> None:
    done = run(
        "-c",
        """if True:
            import os, select, selectors, socket

            def state():
                return [
                    *socket.socket.__dict__.items(), socket.fromfd, os.unlink, os.remove,
                    select.select, select.poll, select.epoll,
                    selectors.PollSelector._selector_cls, selectors.EpollSelector._selector_cls,
                ]

            before = state()
            import mpcluster as cluster

            def plain():
                assert state() == before

            def sharing():
                assert state() != before

            workers = [cluster.ClusterProcess(target=plain), cluster.fork(sharing)]
            workers[0].start()
            cluster.join()
            assert state() == before
            print([worker.exitcode for worker in workers])
        """,
    )
    assert (done.returncode, done.stdout) == (0, "[0, 0]\n"), done.stderr


# -- exclusive: X14 of Node -----------------------------------------------------------------------


def test_a_worker_with_an_exclusive_listener_leaves_and_told_of_no_listening() -> None:
    def target() -> None:
        with cluster.listen(LOCAL, exclusive=True) as sock:
            cluster.send(sock.getsockname())
            sock.accept()

    one, diary = started(target)
    diary.until_count(3)
    one.disconnect()
    diary.until("death")
    assert diary.events == ["fork", "online", "message", "disconnect", "death"]
    assert one.exitcode == 0
    one.close()
