"""The worker's side of shared sockets, against a real registry."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mpcluster import sharing
from mpcluster.messages import Bind, Holds, Listening, Release
from mpcluster.sharing import connections
from tests.offices import PATIENCE, Offices, Worker, listening_address, opened
from tests.sharers import free_address, modes_before_chmod, needs_ipv6


@pytest.fixture
def offices() -> Iterator[Offices]:
    with opened() as offices:
        yield offices


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """An ordinary one, for clients."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def tcp(address: Any = ("127.0.0.1", 0), **options: Any) -> socket.socket:
    sock = socket.socket(**options)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen()
    return sock


def serve(worker: Worker, address: Any = ("127.0.0.1", 0)) -> None:
    """Answer each connection with the worker's number, blocking in accept()."""
    with tcp(address) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"%d" % worker.number)


def fetch(address: Any) -> bytes:
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        return connection.recv(100)


# -- one address, several workers ----------------------------------------------------------


def test_workers_that_bind_one_port_share_it(offices: Offices) -> None:
    port = free_address()[1]
    for _ in range(2):
        worker = offices.start(lambda worker: serve(worker, ("127.0.0.1", port)))
        listening_address(worker)
    answers = set()
    while len(answers) < 2:  # blocked acceptors take turns
        answers.add(fetch(("127.0.0.1", port)))
    assert answers == {b"1", b"2"}


def test_the_nth_listener_on_port_0_is_the_same_in_every_worker(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as first, tcp() as second:
            worker.say((first.getsockname(), second.getsockname()))
            worker.hear()

    first, second = offices.start(program), offices.start(program)
    addresses = first.hear()
    assert addresses == second.hear()
    assert addresses[0] != addresses[1]


def test_the_count_of_listeners_on_port_0_starts_anew_when_all_are_closed(
    offices: Offices,
) -> None:
    def stays(worker: Worker) -> None:
        with tcp() as first:
            worker.say(first.getsockname())
            worker.hear()

    def comes_again(worker: Worker) -> None:
        for _ in range(2):
            with tcp() as one:
                worker.say(one.getsockname())

    address = offices.start(stays).hear()
    other = offices.start(comes_again)
    assert [other.hear(), other.hear()] == [address, address]


def test_getsockname_before_listen_tells_the_shared_port(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            before = sock.getsockname()
            sock.listen()
            worker.say((before, sock.getsockname()))
            worker.hear()

    first, second = offices.start(program), offices.start(program)
    answers = [first.hear(), second.hear()]
    assert len({*answers[0], *answers[1]}) == 1


def test_printing_a_socket_makes_it_no_server(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            worker.say(repr(sock))
            worker.hear()

    worker = offices.start(program)
    assert "laddr" in worker.hear()
    assert worker.told == []


def test_listening_is_told_once_a_listener(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            sock.listen(5)
            worker.say(sock.getsockname())

    worker = offices.start(program)
    address = worker.hear()
    worker.wait_told(Release)
    found = worker.wait_told(Listening)
    assert [message.sockname for message in found] == [address]


def test_a_server_keeps_the_options_that_it_has_set(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            worker.say(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))

    assert offices.start(program).hear() == 40_000  # as Linux doubles it


# -- errors ---------------------------------------------------------------------------------


def test_the_masters_error_is_raised_and_the_socket_can_be_used_again(offices: Offices) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()

        def program(worker: Worker) -> None:
            stranger.close()  # its copy, inherited
            with socket.socket() as sock:
                try:
                    sock.bind(taken)
                except OSError as error:
                    worker.say((error.errno, str(error.address)))  # type: ignore[attr-defined]
                worker.hear()
                sock.bind(taken)
                sock.listen()
                worker.say(sock.getsockname())

        worker = offices.start(program)
        assert worker.hear() == (errno.EADDRINUSE, f"127.0.0.1:{taken[1]}")
    worker.say("free now")
    assert worker.hear() == taken


def test_two_listeners_on_one_address_in_one_worker_are_an_error(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as first, socket.socket() as second:
            try:
                second.bind(first.getsockname())
            except OSError as error:
                worker.say(error.errno)

    assert offices.start(program).hear() == errno.EADDRINUSE


def reusing(address: Any, kind: int = socket.SOCK_STREAM, option: str = "SO_REUSEPORT") -> Any:
    sock = socket.socket(type=kind)
    sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
    sock.bind(address)
    return sock


@pytest.mark.parametrize("by_number", [False, True])
@pytest.mark.parametrize("policy", ["shared", "slots"])
def test_a_server_may_bind_its_port_several_times_if_each_socket_says_so(
    offices: Offices, monkeypatch: pytest.MonkeyPatch, policy: str, by_number: bool
) -> None:
    monkeypatch.setenv("MPCLUSTER_SCHEDULING", policy)
    port = free_address()[1] if by_number else 0

    def serve(worker: Worker, place: int, sock: socket.socket) -> None:
        while True:
            connection, _ = sock.accept()
            with connection:
                connection.sendall(b"%d" % place)

    def program(worker: Worker) -> None:
        address = ("127.0.0.1", port)
        for place in range(2):
            sock = reusing(address)
            sock.listen()
            address = sock.getsockname()
            threading.Thread(target=serve, args=(worker, place, sock), daemon=True).start()
        worker.say(address)
        worker.hear()

    workers = [offices.start(program) for _ in range(2)]
    (address,) = {worker.hear() for worker in workers}
    answers = set()
    while len(answers) < 2:
        answers.add(fetch(address))


def test_a_place_at_an_address_is_free_again_when_its_socket_is_closed(offices: Offices) -> None:
    address = free_address()

    def program(worker: Worker) -> None:
        with reusing(address):
            for _ in range(3):
                reusing(address).close()
        with reusing(address), reusing(address):
            worker.say("bound")
            worker.hear()

    worker = offices.start(program)
    assert worker.hear() == "bound"
    places = [message.key[4] for message in worker.wait_told(Bind, 6)]
    assert places == [None, 1, 1, 1, None, 1]


@pytest.mark.parametrize("first", [True, False])
def test_all_sockets_of_an_address_must_say_that_there_are_several(
    offices: Offices, first: bool
) -> None:
    def program(worker: Worker) -> None:
        address = free_address()
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(socket.socket())
            if first:
                stack.enter_context(reusing(address))
                with pytest.raises(OSError, match="in use"):
                    plain.bind(address)
            else:
                plain.bind(address)
                with pytest.raises(OSError, match="in use"):
                    reusing(address)

    assert offices.start(program).join() == 0


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
def test_datagram_sockets_that_reuse_their_address_are_as_many_as_without_a_cluster(
    offices: Offices, option: str
) -> None:
    """As those of a program that joins several groups on one port."""
    address = free_address()

    def program(worker: Worker) -> None:
        with (
            reusing(address, socket.SOCK_DGRAM, option) as one,
            reusing(address, socket.SOCK_DGRAM, option) as two,
        ):
            worker.say(os.path.sameopenfile(one.fileno(), two.fileno()))

    assert offices.start(program).hear() is False


def test_a_client_beside_a_server_on_its_port_connects_from_there(offices: Offices) -> None:
    """Both say SO_REUSEPORT, as programs do that let peers find them through a NAT."""
    with socket.create_server(("127.0.0.1", 0)) as peer:

        def program(worker: Worker) -> None:
            with reusing(free_address()) as server:
                server.listen()
                with reusing(server.getsockname()) as client:
                    client.connect(peer.getsockname())
                    worker.say(server.getsockname())
                    server.accept()[0].close()

        worker = offices.start(program)
        address = worker.hear()
        connection, came_from = peer.accept()
        with connection, socket.create_connection(address):
            assert came_from == address
            assert worker.join() == 0


@pytest.mark.parametrize("address", ["nonsense", ("127.0.0.1",), ("127.0.0.1", "http"), None])
def test_an_address_that_is_none_is_a_type_error(offices: Offices, address: Any) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as sock, pytest.raises(TypeError):
            sock.bind(address)

    assert offices.start(program).join() == 0


# -- what stays private ----------------------------------------------------------------------


def test_a_client_that_binds_port_0_stays_private(offices: Offices, server: socket.socket) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            client.connect(server.getsockname())
            worker.say(client.getsockname()[1])

    worker = offices.start(program)
    connection, peer = server.accept()
    connection.close()
    assert worker.hear() == peer[1]
    assert worker.told == []


def test_the_registry_lets_go_of_what_turned_out_to_be_a_clients(
    offices: Offices, server: socket.socket
) -> None:
    """Else its copy would keep the connection from its end."""

    def program(worker: Worker) -> None:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            client.getsockname()
            client.connect(server.getsockname())
            worker.say("connected")
            worker.hear()

    worker = offices.start(program)
    connection, _ = server.accept()
    with connection:
        assert worker.hear() == "connected"
        worker.wait_told(Release)
        assert offices.registry.listeners == []


def test_a_client_that_looked_at_its_port_can_connect(
    offices: Offices, server: socket.socket
) -> None:
    def program(worker: Worker) -> None:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            client.getsockname()
            worker.say("bound")
            worker.hear()
            client.connect(server.getsockname())
            worker.say((client.getsockname(), client.gettimeout(), client.recv(10)))

    workers = [offices.start(program), offices.start(program)]
    for worker in workers:
        assert worker.hear() == "bound"
    for worker in workers:
        worker.say("go")
        connection, peer = server.accept()
        with connection:
            connection.sendall(b"hello")
        assert worker.hear() == (peer, None, b"hello")


def test_udp_on_port_0_stays_private(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            worker.say(sock.getsockname())
            worker.hear()

    first, second = offices.start(program), offices.start(program)
    assert first.hear() != second.hear()
    assert first.told == []


# -- blocking ---------------------------------------------------------------------------------


def test_a_shared_socket_blocks_as_any(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say((sock.gettimeout(), sock.getblocking(), os.get_blocking(sock.fileno())))
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.accept()
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError):
                sock.accept()
            sock.settimeout(None)
            worker.say(sock.getsockname())
            connection, _ = sock.accept()
            worker.say((connection.gettimeout(), os.get_blocking(connection.fileno())))
            connection.close()

    worker = offices.start(program)
    assert worker.hear() == (None, True, False)
    address = worker.hear()
    with socket.create_connection(address):
        assert worker.hear() == (None, True)
    assert worker.join() == 0


def test_shutdown_of_a_listener_ends_its_own_acceptors_only(offices: Offices) -> None:
    port = free_address()[1]

    def stopping(worker: Worker) -> None:
        with tcp(("127.0.0.1", port)) as sock:
            errors = []

            def accept() -> None:
                worker.say("listens")
                try:
                    sock.accept()
                except OSError as error:
                    errors.append(error.errno)

            thread = threading.Thread(target=accept)
            thread.start()
            worker.hear()
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            worker.say(errors)

    first = offices.start(stopping)
    assert first.hear() == "listens"
    second = offices.start(lambda worker: serve(worker, ("127.0.0.1", port)))
    listening_address(second)
    first.say("stop")
    assert first.hear() == [errno.EINVAL]
    assert fetch(("127.0.0.1", port)) == b"2"


def test_a_listener_under_tls_is_shared(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with context.wrap_socket(
            tcp(), server_side=True, do_handshake_on_connect=False
        ) as listener:
            worker.say((listener.getsockname(), listener.gettimeout()))
            connection, _ = listener.accept()
            worker.say(type(connection).__name__)
            connection.close()

    worker = offices.start(program)
    address, timeout = worker.hear()
    assert timeout is None
    with socket.create_connection(address):
        assert worker.hear() == "SSLSocket"
    worker.wait_told(Release)


# -- the last copy ----------------------------------------------------------------------------


def test_closing_the_last_copy_releases_the_listener(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        first = tcp()
        second = first.dup()
        first.close()
        worker.say("one left")
        worker.hear()
        second.close()
        worker.say("none left")
        worker.hear()

    worker = offices.start(program)
    worker.hear()
    assert not [message for message in worker.told if isinstance(message, Release)]
    worker.say("close it")
    worker.hear()
    worker.wait_told(Release)


def test_a_copy_made_behind_our_back_counts(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        sock = tcp()
        address = sock.getsockname()
        copy = os.dup(sock.fileno())
        sock.close()
        worker.say("one left")
        worker.hear()
        os.close(copy)
        with socket.socket() as again:
            again.bind(address)  # what is closed by now is noticed here
            worker.say("bound again")
            worker.hear()

    worker = offices.start(program)
    worker.hear()
    assert not [message for message in worker.told if isinstance(message, Release)]
    worker.say("close it")
    assert worker.hear() == "bound again"
    assert len(worker.wait_told(Bind, 2)) == 2


def test_a_detached_descriptor_is_still_a_copy(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        sock = tcp()
        address = sock.getsockname()
        fd = sock.detach()
        del sock
        listener = socket.socket(fileno=fd)
        worker.say(address)
        connection, _ = listener.accept()  # blocks
        connection.close()
        listener.close()
        worker.hear()

    worker = offices.start(program)
    with socket.create_connection(worker.hear()):
        worker.wait_told(Release)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_socket_that_was_never_closed_releases_when_it_is_collected(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        sock = tcp()
        del sock
        worker.hear()

    worker = offices.start(program)
    worker.wait_told(Release)


def test_a_number_used_anew_is_no_listener_any_more(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        sock = tcp()
        fd = sock.fileno()
        os.close(sock.detach())
        one, two = socket.socketpair()
        with one, two:
            assert fd in (one.fileno(), two.fileno())
            one.shutdown(socket.SHUT_WR)
            worker.say(two.recv(1))
        worker.hear()

    worker = offices.start(program)
    assert worker.hear() == b""
    worker.wait_told(Release)


def test_a_process_forked_by_a_worker_accepts_and_releases_nothing(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with tcp() as sock:
            worker.say(sock.getsockname())
            child = os.fork()
            if not child:
                connection, _ = sock.accept()
                connection.sendall(b"grandchild")
                connection.close()
                sock.close()
                with socket.socket() as own:
                    own.bind(("127.0.0.1", 0))
                    own.listen()
                os._exit(0)
            worker.say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            worker.hear()

    worker = offices.start(program)
    address = worker.hear()
    assert fetch(address) == b"grandchild"
    assert worker.hear() == 0
    assert not [message for message in worker.told if isinstance(message, Release)]
    assert len(worker.wait_told(Bind)) == 1


# -- unix paths -------------------------------------------------------------------------------


def test_a_path_that_is_shared_cannot_be_unlinked_by_a_worker(
    offices: Offices, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    def program(worker: Worker) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            worker.say("up")
            worker.hear()
            Path(path).unlink()
            os.remove(path)

    first = offices.start(program)
    assert first.hear() == "up"
    second = offices.start(program)
    assert second.hear() == "up"
    first.say("go")
    assert first.join() == 0
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    second.say("go")
    second.wait_told(Release)
    assert second.join() == 0
    assert not os.path.exists(path)


def test_files_and_strangers_sockets_are_unlinked_as_ever(offices: Offices, tmp_path: Path) -> None:
    plain, strange = tmp_path / "plain", tmp_path / "strange"
    plain.touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(strange))

    def program(worker: Worker) -> None:
        plain.unlink()
        os.unlink(os.fsencode(strange))

    worker = offices.start(program)
    assert worker.join() == 0
    assert not list(tmp_path.iterdir())
    assert [message.path for message in worker.wait_told(Holds)] == [str(strange)]


def test_a_path_has_the_permissions_that_the_workers_umask_leaves(
    offices: Offices, tmp_path: Path
) -> None:
    def program(worker: Worker) -> None:
        os.umask(0o077)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "socket"))
            worker.say(stat.S_IMODE(os.stat(tmp_path / "socket").st_mode))

    assert offices.start(program).hear() == 0o700


# -- datagrams ---------------------------------------------------------------------------------


def test_a_udp_port_is_shared_at_bind(offices: Offices) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()

    def program(worker: Worker) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(address)
            worker.say(sock.gettimeout())
            while True:
                data, peer = sock.recvfrom(100)
                sock.sendto(data + b" %d" % worker.number, peer)

    workers = [offices.start(program), offices.start(program)]
    for worker in workers:
        assert worker.hear() is None
        assert listening_address(worker) == address
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        answers = set()
        while len(answers) < 2:
            client.send(b"hello")
            answers.add(client.recv(100))
    assert answers == {b"hello 1", b"hello 2"}


# -- one socket for both families ----------------------------------------------------------


@needs_ipv6
@pytest.mark.parametrize("polls", [False, True])
def test_a_server_on_ipv4_sees_pairs_on_a_dual_stack_socket_that_was_handed_down(
    offices: Offices, polls: bool
) -> None:
    with socket.socket(socket.AF_INET6) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        both.listen()
        port = both.getsockname()[1]
        offices.hand_down(both.dup())

        def program(worker: Worker) -> None:
            both.close()
            with tcp(("0.0.0.0", port)) as sock:
                worker.say((sock.family, sock.getsockname()))
                for _ in range(2):
                    if polls:
                        select.select([sock], [], [])
                    connection, peer = sock.accept()
                    with connection:
                        connection.sendall(b"served")
                        found = connections.in_hand()
                        worker.say(
                            (
                                connection.family,
                                peer,
                                connection.getpeername(),
                                connection.getsockname(),
                                [one.fd for one in found] == [connection.fileno()],
                            )
                        )

        worker = offices.start(program)
        assert worker.hear() == (socket.AF_INET, ("0.0.0.0", port))
        assert listening_address(worker) == ("0.0.0.0", port)
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)) as client:
                assert client.recv(10) == b"served"
                mine = client.getsockname()[:2]
                assert worker.hear() == (socket.AF_INET, mine, mine, (host, port), True)


@needs_ipv6
def test_asyncio_binds_both_families_on_a_dual_stack_socket_that_was_handed_down(
    offices: Offices,
) -> None:
    with socket.socket(socket.AF_INET6) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        both.listen()
        port = both.getsockname()[1]
        offices.hand_down(both.dup())

        async def serve(worker: Worker) -> None:
            async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                worker.say(writer.get_extra_info("peername")[:2])
                writer.close()

            async with await asyncio.start_server(answer, None, port):
                worker.say("up")
                await asyncio.Event().wait()

        def program(worker: Worker) -> None:
            both.close()
            asyncio.run(serve(worker))

        worker = offices.start(program)
        assert worker.hear() == "up"
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)) as client:
                said, mine = worker.hear(), client.getsockname()[:2]
                # The kernel wakes the listener of either family; both take whoever comes.
                assert said in (mine, ("::ffff:" + mine[0], mine[1]))


# -- asyncio -----------------------------------------------------------------------------------


def test_asyncio_accepts_few_connections_a_wake_up(offices: Offices) -> None:
    """All that wait would be more: a burst is for every worker."""

    def program(worker: Worker) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)
            with server.sockets[0].dup() as sock:
                sock.listen()
                worker.say(sock.getsockname())
            worker.hear()
            rounds = []
            all_there = asyncio.Event()
            accept = loop._accept_connection  # type: ignore[attr-defined]

            def counted(*args: Any) -> None:
                before = len(connections.in_hand())
                accept(*args)
                rounds.append(len(connections.in_hand()) - before)
                if len(connections.in_hand()) == 5:
                    all_there.set()

            loop._accept_connection = counted  # type: ignore[attr-defined]
            await server.start_serving()
            await all_there.wait()
            worker.say(rounds)

        asyncio.run(main())

    worker = offices.start(program)
    address = worker.hear()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(address))
        worker.say("they wait")
        assert worker.hear() == [4, 1]


# -- cluster.listen() --------------------------------------------------------------------------


def test_shared_listen_shares_with_a_plain_bind(offices: Offices) -> None:
    port = free_address()[1]

    def program(worker: Worker) -> None:
        with sharing.shared_listen(worker.ask, worker.tell, ("127.0.0.1", port)) as sock:
            worker.say((sock.getsockname(), sock.gettimeout()))
            while True:
                connection, _ = sock.accept()
                with connection:
                    connection.sendall(b"%d" % worker.number)

    first = offices.start(program, install=False)
    assert first.hear() == (("127.0.0.1", port), None)
    second = offices.start(lambda worker: serve(worker, ("127.0.0.1", port)))
    listening_address(second)
    answers = set()
    while len(answers) < 2:
        answers.add(fetch(("127.0.0.1", port)))
    assert answers == {b"1", b"2"}


def test_an_exclusive_listener_is_the_workers_own(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        with sharing.shared_listen(worker.ask, worker.tell, 0, exclusive=True) as sock:
            worker.say(sock.getsockname())
            worker.hear()

    first, second = offices.start(program), offices.start(program)
    assert first.hear() != second.hear()
    assert first.told == []


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)], ids=str)
def test_an_exclusive_address_is_in_use_for_everybody_else(
    offices: Offices, first: bool, second: bool
) -> None:
    def program(worker: Worker) -> None:
        exclusive = first if worker.number == 1 else second
        address = ("127.0.0.1", worker.hear())
        try:
            with sharing.shared_listen(
                worker.ask, worker.tell, address, exclusive=exclusive
            ) as sock:
                worker.say(sock.getsockname()[1])
                worker.hear()
        except OSError as error:
            worker.say((error.errno, error.address.port))  # type: ignore[attr-defined]

    workers = [offices.start(program), offices.start(program)]
    port = free_address()[1]
    for worker, answer in zip(workers, (port, (errno.EADDRINUSE, port)), strict=True):
        worker.say(port)
        assert worker.hear() == answer


def test_a_failed_bind_does_not_count_for_the_next_one(offices: Offices) -> None:
    """In Node the second worker's listener was then another than the first one's."""
    address = free_address()

    def program(worker: Worker) -> None:
        with tcp(address), socket.socket() as again, pytest.raises(OSError, match="in use"):
            again.bind(address)
        worker.say("closed")
        worker.hear()
        with tcp(address) as sock:
            worker.say(sock.getsockname())
            worker.hear()

    first, second = offices.start(program), offices.start(program)
    for worker in (first, second):
        assert worker.hear() == "closed"
    for worker in (second, first):
        worker.say("again")
        assert worker.hear() == address


def test_shared_listen_on_udp(offices: Offices) -> None:
    def program(worker: Worker) -> None:
        kind = socket.SOCK_DGRAM
        with sharing.shared_listen(worker.ask, worker.tell, ("127.0.0.1", 0), type=kind) as sock:
            worker.say(sock.getsockname())
            data, peer = sock.recvfrom(100)
            sock.sendto(data, peer)
            worker.hear()

    workers = [offices.start(program, install=False), offices.start(program)]
    addresses = [worker.hear() for worker in workers]
    assert addresses[0] == addresses[1]
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(addresses[0])
        client.send(b"hello")
        assert client.recv(100) == b"hello"


def test_an_exclusive_path_has_its_mode_whatever_the_umask(
    offices: Offices, tmp_path: Path
) -> None:
    path = str(tmp_path / "own.sock")

    def program(worker: Worker) -> None:
        os.umask(0o027)
        with sharing.shared_listen(worker.ask, worker.tell, path, exclusive=True, mode=0o602):
            worker.say(stat.S_IMODE(os.stat(path).st_mode))

    assert offices.start(program).hear() == 0o602


def refuse(_: object) -> Any:
    pytest.fail("nothing is to be asked or told")


def test_an_exclusive_path_is_never_open_to_more_than_its_mode_says(tmp_path: Path) -> None:
    with modes_before_chmod() as modes:
        sharing.shared_listen(nobody, nobody, tmp_path / "s", exclusive=True, mode=0o600).close()
    assert modes == [0o600]


def nobody(_body: object) -> NoReturn:
    """Whom an exclusive listener asks and tells."""
    raise AssertionError


def test_an_exclusive_listeners_error_names_the_address() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1:8000") as raised:
        sharing.shared_listen(refuse, refuse, ("192.0.2.1", 8000), exclusive=True)
    assert raised.value.address.port == 8000  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argument", "error", "says"),
    [
        ({"backlog": "x"}, TypeError, "backlog='x'"),
        ({"backlog": 1 << 40}, ValueError, "backlog=1099511627776"),
        ({"mode": "0600"}, TypeError, "mode='0600'.*0o660"),
        ({"mode": -1}, ValueError, "mode=-1"),
        ({"scheduling": "nope"}, ValueError, "'nope'.*'slots'"),
        ({"scheduling": "nope", "exclusive": True}, ValueError, "'nope'"),
    ],
)
def test_a_wrong_argument_is_named_before_anybody_is_asked(
    argument: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        sharing.shared_listen(refuse, refuse, ("127.0.0.1", 0), **argument)


# -- clients that bind a port of their own --------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.0])
def test_a_client_bound_to_a_named_port_connects_and_closes_as_ever(
    offices: Offices, timeout: float | None
) -> None:
    """Also one that does not block, as an event loop's: its port looked like a server's."""

    def program(worker: Worker) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(timeout)
            client.bind(("127.0.0.1", port))
            with contextlib.suppress(BlockingIOError):
                client.connect(worker.hear())
        worker.hear()

    port = free_address()[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        worker = offices.start(program)
        worker.say(server.getsockname())
        server.settimeout(PATIENCE)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert connection.recv(1) == b""
    assert len(worker.wait_told(Release)) == 1


def test_a_listener_inherited_from_the_master_keeps_none_open(offices: Offices) -> None:
    """A worker closes its own and opens the address anew, while it still has the master's."""

    def ask(body: Any) -> object:
        return offices.registry.hold(body)

    def program(worker: Worker) -> None:
        for _ in range(2):
            tcp(held.getsockname()).close()
        worker.say("opened twice")

    with sharing.shared_listen(ask, lambda _: None, ("127.0.0.1", 0)) as held:
        assert offices.start(program).hear() == "opened twice"


def test_unlink_still_takes_a_directorys_descriptor(offices: Offices) -> None:
    """Else `shutil`, imported later, would think that it can remove no tree safely."""
    worker = offices.start(lambda worker: worker.say(os.unlink in os.supports_dir_fd))
    assert worker.hear()
