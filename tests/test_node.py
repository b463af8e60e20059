"""What Node's own tests of its cluster ask for, wherever it has a meaning here.

Each test names its model in nodejs/node, test/parallel (``test-cluster-``NAME), or the defect
of Node's that it shall not share. Those that are the subject of another page are tested there:
the end of the master in test_ending.py, forking and settings in test_cluster.py, servers in
test_servers.py, what a listener's address means in test_registry.py.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster import Address, WorkerState, registrar
from tests.happenings import (  # noqa: F401  # one is a fixture
    PATIENCE,
    Diary,
    relatives_fixture,
    settle,
)
from tests.running import environment
from tests.sharers import HOST, LOCAL, free_address, is_refused, needs_ipv6

pytestmark = pytest.mark.usefixtures("relatives")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """One for this test alone."""
    registrar.close()
    yield
    registrar.close()


EVENTS = ("fork", "online", "listening", "message", "disconnect", "death")


def follow(*names: str) -> Diary:
    """Write down events of the whole cluster: the worker's id, the event, what came with it."""
    diary = Diary()
    for name in names or EVENTS:
        cluster.on(name, lambda worker, *args, name=name: diary.write(worker.id, name, *args))
    return diary


def wait() -> None:
    threading.Event().wait()


def pause() -> None:
    while True:
        signal.pause()


def obey(**orders: Callable[[], object]) -> None:
    """In a worker: do in the main thread what the master says, one after the other."""
    said: list[Any] = []
    heard = threading.Semaphore(0)
    cluster.on("message", lambda message: (said.append(message), heard.release()))
    while True:
        heard.acquire()
        orders[said.pop(0)]()


def answers(address: object, count: int = 1) -> list[bytes]:
    """What that many connections are told before they are closed."""
    told = []
    for _ in range(count):
        with socket.create_connection(address, timeout=PATIENCE) as client:  # type: ignore[arg-type]
            told.append(client.recv(100))
    return told


def answer_all(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"%d" % os.getpid())


# -- a worker's life -------------------------------------------------------------------------------


def raise_it() -> None:
    raise ValueError("on purpose")


#: What the master does, what the worker does; exit code, counted as asked for?
WAYS: dict[str, tuple[Callable[[Any], object] | None, Callable[[], object], int, bool]] = {
    "the master asks it to leave": (lambda one: one.disconnect(), wait, 0, True),
    "the master kills it": (lambda one: one.kill(), wait, -signal.SIGKILL, False),
    "by SIGTERM": (lambda one: one.kill(signal.SIGTERM), wait, -signal.SIGTERM, False),
    "it exits": (None, lambda: sys.exit(7), 7, False),
    "it exits without a word": (None, lambda: os._exit(7), 7, False),
    "it raises": (None, raise_it, 1, False),
    "it leaves": (None, lambda: (cluster.worker.disconnect(), wait()), 0, True),  # type: ignore[union-attr]
    "it leaves at once": (None, lambda: cluster.worker.kill(), 0, True),  # type: ignore[union-attr]
    "it comes to its end": (None, lambda: None, 0, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_serves_tells_of_its_life_in_this_order(way: str, capfd: Any) -> None:
    """basic, worker-events, worker-exit, worker-kill, worker-disconnect, worker-destroy.

    The worker's own callback is called before the cluster's, whatever ends it; and nothing of
    what it had said before is missing (in Node ``listening`` may never come).
    """
    master, worker, exitcode, asked_for = WAYS[way]

    def program() -> None:
        with cluster.listen(LOCAL) as listener:
            cluster.send(listener.getsockname())
            worker()

    del capfd  # what it prints of its end
    diary = Diary()
    states: list[WorkerState] = []
    listed: list[bool] = []

    def subscribe(name: str) -> None:
        def own(*args: object) -> None:
            states.append(one.state)
            listed.append(one.id in cluster.workers)
            diary.write("worker", name, *args)

        one.on(name, own)
        cluster.on(name, lambda who, *args: diary.write("cluster", name, *args))

    one = cluster.ClusterProcess(target=program)
    one.is_forked = True  # as fork() makes it, but with callbacks from the first moment on
    for name in EVENTS:
        subscribe(name)
    one.start()
    if master is not None:
        diary.until_count(8)  # fork, online, listening, message; of the worker, of the cluster
        assert not one.exited_after_disconnect
        master(one)
    diary.until("cluster", "death")
    assert diary.lines[::2] == [("worker", *line[1:]) for line in diary.lines[1::2]]
    assert [line[1] for line in diary.lines[::2]] == list(EVENTS)
    (address,), (message,) = [line[2:] for line in diary.lines[::2] if len(line) == 3]
    assert isinstance(address, Address)
    assert message == (address.host, address.port)
    assert states[:1] == [WorkerState.STARTING] or asked_for
    assert states[-2:] == [WorkerState.DISCONNECTED, WorkerState.DEAD]
    assert listed == [True] * 5 + [False]
    assert (one.exitcode, one.exited_after_disconnect) == (exitcode, asked_for)
    assert one.exit_signal == (signal.Signals(-exitcode) if exitcode < 0 else None)


def test_a_worker_is_connected_until_its_disconnect_and_dead_at_its_death() -> None:
    """worker-isconnected, worker-isdead, worker-init."""

    def program() -> None:
        me = cluster.worker
        assert me is not None
        cluster.send((me.id, me.pid == os.getpid(), me.is_connected))
        pause()

    diary = Diary()
    one = cluster.fork(program)
    assert (one.is_connected, one.is_dead) == (True, False)
    one.on("message", lambda message: diary.write(message, one.is_connected, one.is_dead))
    one.on("disconnect", lambda: diary.write("disconnect", one.is_connected))
    one.on("death", lambda: diary.write("death", one.is_connected, one.is_dead))
    diary.until((1, True, True), True, False)
    one.kill()
    diary.until("death", False, True)
    assert diary.lines[1:] == [("disconnect", False), ("death", False, True)]


def test_those_killed_before_they_were_online_die_as_any() -> None:
    """worker-forced-exit, and joyent/node#2047."""
    diary = follow()
    workers = [cluster.fork(wait) for _ in range(20)]
    for worker in workers:
        worker.kill()
    assert cluster.join(PATIENCE)
    for worker in workers:
        mine = [line[1] for line in diary.lines if line[0] == worker.id]
        assert [name for name in mine if name != "online"] == ["fork", "disconnect", "death"]
        assert worker.exitcode == -signal.SIGKILL


def test_one_that_was_asked_to_leave_can_be_killed() -> None:
    """call-and-destroy, kill-disconnect; and nodejs/node#22703, where it was asked again."""

    def deaf() -> None:
        cluster.on("disconnect", lambda: None)
        cluster.send("here")
        wait()

    diary = follow("message")
    one = cluster.fork(deaf)
    diary.until(1, "message", "here")
    one.disconnect().kill()
    assert cluster.join(PATIENCE)
    assert (one.exitcode, one.exited_after_disconnect) == (-signal.SIGKILL, True)


@pytest.mark.parametrize("how", ["kill", "disconnect"])
def test_one_in_an_endless_loop_can_be_ended(how: str) -> None:
    """kill-infinite-loop: it has a callback for its leave, and comes to call none."""

    def spin() -> None:
        cluster.on("disconnect", lambda: None)
        cluster.send("here")
        list(iter(int, 1))  # in C, without end

    diary = follow("message")
    one = cluster.fork(spin)
    diary.until(1, "message", "here")
    if how == "kill":
        one.kill(signal.SIGTERM)
    else:
        one.disconnect(timeout=0)
    assert cluster.join(PATIENCE)
    assert one.exitcode == -signal.SIGTERM


def test_everybody_asked_by_everybody_leaves_once() -> None:
    """concurrent-disconnect, disconnect-race, disconnect-leak."""

    def serve() -> None:
        with cluster.listen(LOCAL):
            wait()

    diary = follow("listening", "disconnect", "death")
    workers = [cluster.fork(serve) for _ in range(8)]
    diary.until_count(8)
    together = threading.Barrier(12)
    calls: list[Callable[[], object]] = [*(one.disconnect for one in workers)]
    calls += [cluster.disconnect] * 4
    askers = [threading.Thread(target=lambda ask=ask: (together.wait(), ask())) for ask in calls]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert cluster.join(PATIENCE)
    assert [one.exitcode for one in workers] == [0] * 8
    for one in workers:
        mine = [line[1] for line in diary.lines if line[0] == one.id]
        assert mine == ["listening", "disconnect", "death"]


def test_an_uncaught_exception_of_one_worker_is_its_own(capfd: Any) -> None:
    """uncaught-exception: the other goes on to serve."""

    def serve() -> None:
        with cluster.listen(LOCAL) as listener:
            answer_all(listener)

    def fail() -> None:
        raise ValueError("on purpose")

    diary = follow("listening", "death")
    server, failure = cluster.fork(serve), cluster.fork(fail)
    diary.until(2, "death")
    diary.until_count(2)
    (address,) = [line[2] for line in diary.lines if line[1] == "listening"]
    assert failure.exitcode == 1
    assert "ValueError: on purpose" in capfd.readouterr().err
    assert answers((address.host, address.port)) == [b"%d" % server.pid]
    server.kill()


# -- leaving ---------------------------------------------------------------------------------------


class Held(BaseHTTPRequestHandler):
    """Answers when the master says so."""

    may_answer = threading.Event()

    def do_GET(self) -> None:
        cluster.send("asked")
        self.may_answer.wait(PATIENCE)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"answer")

    def log_message(self, *_: object) -> None:
        """In a test, to nobody."""


def test_asked_twice_to_leave_it_finishes_what_it_has_and_hears_messages_meanwhile() -> None:
    """worker-wait-server-close; in Node a second ``disconnect()`` aborts the drain with an error."""

    def serve() -> None:
        cluster.on("message", lambda _: Held.may_answer.set())
        with ThreadingHTTPServer((HOST, 0), Held) as server:
            server.serve_forever()

    diary = follow()
    one = cluster.fork(serve)
    diary.until_count(3)
    (address,) = [line[2] for line in diary.lines if line[1] == "listening"]
    client = HTTPConnection(address.host, address.port, timeout=PATIENCE)
    try:
        client.request("GET", "/")
        diary.until(1, "message", "asked")
        for _ in range(3):
            one.disconnect()
            cluster.disconnect(diary.writer("all gone"))
        settle()
        assert is_drained(one)
        one.send("answer it")
        assert client.getresponse().read() == b"answer"
    finally:
        client.close()
    diary.until("all gone")
    assert cluster.join(PATIENCE)
    assert [line[1] for line in diary.lines if line[0] == 1] == list(EVENTS)
    assert (one.exitcode, one.exited_after_disconnect) == (0, True)


def is_drained(one: cluster.ClusterProcess) -> bool:
    return one.state is WorkerState.DRAINING and one.is_connected and one.is_alive()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_listener_of_its_own_keeps_no_worker_that_is_to_leave(kind: int) -> None:
    """disconnect-unshared-tcp, disconnect-unshared-udp; in Node it lives on for ever."""

    def serve() -> None:
        with cluster.listen(LOCAL, type=kind, exclusive=True) as own:
            cluster.send("here")
            own.accept() if kind == socket.SOCK_STREAM else own.recv(1)

    diary = follow()
    one = cluster.fork(serve)
    diary.until(1, "message", "here")
    one.disconnect()
    assert cluster.join(PATIENCE)
    assert [line[1] for line in diary.lines] == [name for name in EVENTS if name != "listening"]
    assert one.exitcode == 0


def test_to_listen_when_asked_to_leave_already_is_answered() -> None:
    """In Node there is neither a callback nor an error, for ever."""

    def program() -> None:
        def late() -> None:
            with cluster.listen(LOCAL) as listener:
                cluster.send(listener.getsockname()[0])
            os._exit(0)

        cluster.on("disconnect", late)
        cluster.send("here")
        wait()

    diary = follow("message")
    one = cluster.fork(program)
    diary.until(1, "message", "here")
    one.disconnect()
    diary.until(1, "message", HOST)


# -- listeners -------------------------------------------------------------------------------------


def test_a_worker_may_close_and_open_again_what_another_shares() -> None:
    """server-restart-rr, server-restart-none, and nodejs/node#60086: no count of failures drifts."""
    address = free_address()
    mine: list[socket.socket] = []

    def fail() -> None:
        try:
            cluster.listen(address)
        except OSError as error:
            cluster.send(errno.errorcode[error.errno or 0])

    def program() -> None:
        obey(
            listen=lambda: (mine.append(cluster.listen(address)), cluster.send("listens")),
            fail=fail,
            close=lambda: (mine.pop().close(), cluster.send("closed")),
        )

    diary = follow("message")
    one, two = cluster.fork(program), cluster.fork(program)
    course = [
        (one, "listen", "listens"),
        (one, "fail", "EADDRINUSE"),
        (one, "close", "closed"),
        (two, "listen", "listens"),
        (one, "listen", "listens"),
        (two, "close", "closed"),
        (two, "listen", "listens"),
    ]
    for number, (who, order, says) in enumerate(course, 1):
        who.send(order)
        diary.until_count(number)
        assert diary.lines[-1] == (who.id, "message", says)
    one.kill()
    two.kill()


def test_the_port_of_another_program_is_in_use_until_it_lets_go() -> None:
    """bind-twice, eaddrinuse, shared-handle-bind-error; joyent/node#6488: not for ever."""

    def program() -> None:
        def listen() -> None:
            try:
                with cluster.listen(address) as listener:
                    cluster.send(listener.getsockname())
            except OSError as error:
                cluster.send((error.errno, str(error), error.address))  # type: ignore[attr-defined]

        obey(listen=listen)

    diary = follow("message")
    address = free_address()
    one = cluster.fork(program)  # first, or it would have the stranger's socket too
    with socket.create_server(address):
        one.send("listen")
        diary.until_count(1)
    one.send("listen")
    diary.until(1, "message", address)
    number, text, where = diary.lines[0][2]  # type: ignore[misc]
    assert number == errno.EADDRINUSE
    assert text == f"[Errno 98] Address already in use: {address[0]}:{address[1]}"
    assert where == Address(socket.AF_INET, *address)
    one.kill()


@pytest.mark.skipif(
    os.getuid() != 0 or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 99,
    reason="root alone has ports that others have not",
)
def test_a_worker_that_gave_up_its_rights_may_listen_where_its_master_may() -> None:
    """bind-privileged-port, shared-handle-bind-privileged-port."""

    def program() -> None:
        # Whatever is imported late is imported by this: nobody may not read root's directories.
        cluster.listen(LOCAL).close()
        os.setuid(65534)
        try:
            socket.create_server((HOST, 98)).close()
        except PermissionError:
            with cluster.listen((HOST, 99)) as listener:
                cluster.send(listener.getsockname())

    diary = follow("message", "death")
    cluster.fork(program, share_ports=False)
    diary.until(1, "death")
    assert diary.lines[0] == (1, "message", (HOST, 99))


def test_what_the_master_may_not_bind_no_worker_gets(tmp_path: Path) -> None:
    """As in eaccess: the error is the master's, with the worker's path in it."""
    path = tmp_path / "file" / "socket"
    (tmp_path / "file").touch()

    def program() -> None:
        try:
            cluster.listen(path)
        except NotADirectoryError as error:
            cluster.send((str(path) in str(error), error.address.path))  # type: ignore[attr-defined]

    diary = follow("message")
    cluster.fork(program)
    diary.until(1, "message", (True, str(path)))


def test_a_relative_path_is_relative_to_the_worker(tmp_path: Path) -> None:
    """net-listen-relative-path: its directory, not the master's."""

    def program() -> None:
        with cluster.listen("./socket"):
            cluster.send(os.path.exists("socket"))
            pause()

    diary = follow("listening", "message")
    one = cluster.fork(program, cwd=tmp_path)
    two = cluster.fork(program, cwd=tmp_path)
    diary.until(1, "message", True)
    diary.until(2, "message", True)
    where = Address(socket.AF_UNIX, path=str(tmp_path / "socket"))
    assert (1, "listening", where) in diary.lines
    one.disconnect()
    two.disconnect()
    assert cluster.join(PATIENCE)
    settle()
    assert not (tmp_path / "socket").exists()


@needs_ipv6
@pytest.mark.parametrize("both", [True, False])
def test_ipv6_alone_or_with_ipv4_is_as_the_first_worker_says(both: bool) -> None:
    """net-listen-ipv6only-false, net-listen-ipv6only-rr, dgram-ipv6only."""
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        port = probe.getsockname()[1]

    def program() -> None:
        with socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=both
        ) as listener:
            cluster.send("here")
            answer_all(listener)

    diary = follow("message")
    workers = [cluster.fork(program), cluster.fork(program)]
    diary.until(1, "message", "here")
    diary.until(2, "message", "here")
    pids = {b"%d" % (one.pid or 0) for one in workers}
    assert set(answers(("::1", port), 8)) <= pids
    if both:
        assert set(answers(("127.0.0.1", port), 8)) <= pids
    else:
        assert is_refused(("127.0.0.1", port))
    for one in workers:
        one.kill()


def test_the_real_port_of_every_kind_of_listener_is_told() -> None:
    """listening-port, net-listen, dgram-1, and joyent/node#4104."""

    def program() -> None:
        with (
            cluster.listen(LOCAL) as one,
            socket.create_server(LOCAL) as two,
            cluster.listen(LOCAL, type=socket.SOCK_DGRAM) as three,
            cluster.listen(LOCAL, exclusive=True),  # its own affair
        ):
            cluster.send([sock.getsockname() for sock in (one, two, three)])
            pause()

    diary = follow("listening", "message")
    one = cluster.fork(program)
    diary.until_count(4)
    *told, (_, _, names) = diary.lines
    assert [(address.host, address.port) for _, _, address in told] == names  # type: ignore[attr-defined]
    assert len(set(names)) == 3  # type: ignore[arg-type]
    one.kill()


def test_connections_wait_out_the_death_of_the_only_worker() -> None:
    """In Node the one under way hangs for ever, and those that come meanwhile are refused."""

    def hoard() -> None:
        with cluster.listen(address, backlog=50):
            cluster.send("here")
            pause()  # and accepts nobody

    def serve() -> None:
        with cluster.listen(address) as listener:
            answer_all(listener)

    address = free_address()
    diary = follow("message", "death")
    one = cluster.fork(hoard)
    diary.until(1, "message", "here")
    clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(5)]
    one.kill()
    diary.until(1, "death")
    clients += [socket.create_connection(address, timeout=PATIENCE) for _ in range(5)]
    two = cluster.fork(serve)
    try:
        assert {client.recv(100) for client in clients} == {b"%d" % two.pid}
    finally:
        for client in clients:
            client.close()
    two.kill()


def test_a_program_under_a_socket_manager_uses_the_socket_that_it_was_given(tmp_path: Path) -> None:
    """dgram-bind-fd and listen({fd}): here by LISTEN_FDS. A server that knows of nothing shares it.

    The first client comes before the program does.
    """
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import mpcluster as cluster, os, socket, sys
            if cluster.is_master:
                cluster.on("listening", lambda worker, address: print(address, flush=True))
                workers = [cluster.fork(), cluster.fork()]
                sys.stdin.read()
                for worker in workers:
                    worker.kill()
            else:
                with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.sendall(b"served")
            """
        )
    )
    with socket.create_server(LOCAL) as given:
        host, port = given.getsockname()
        manager = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.set_inheritable(int(sys.argv[1]), False); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        program = subprocess.Popen(
            [sys.executable, "-c", manager, str(given.fileno()), str(script), host, str(port)],
            pass_fds=[given.fileno()],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        early = socket.create_connection((host, port), timeout=PATIENCE)
    try:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == [f"{host}:{port}\n"] * 2
        with early:
            assert early.recv(100) == b"served"
        assert answers((host, port), 4) == [b"served"] * 4
    finally:
        program.communicate(timeout=PATIENCE)
    assert program.returncode == 0
    assert is_refused((host, port))


# -- messages --------------------------------------------------------------------------------------


def test_a_connection_travels_to_who_shall_answer_it() -> None:
    """net-send, send-socket-to-worker-http-server: accepted here, answered there."""

    def program() -> None:
        def serve(connection: socket.socket) -> None:
            with connection:
                connection.sendall(b"%d" % os.getpid())

        cluster.on("message", serve)
        pause()

    workers = [cluster.fork(program) for _ in range(3)]
    with socket.create_server(LOCAL) as listener:
        for one in workers:
            with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as client:
                connection, _ = listener.accept()
                with connection:
                    one.send(connection)
                assert client.recv(100) == b"%d" % one.pid
                assert client.recv(100) == b""  # nobody else holds it
    for one in workers:
        one.kill()


def test_one_socket_sent_to_two_workers_is_open_in_both() -> None:
    """send-handle-twice."""

    def program() -> None:
        cluster.on("message", lambda end: (end.sendall(b"."), os._exit(0)))
        pause()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE)
        for _ in range(2):
            cluster.fork(program).send(theirs)
        assert ours.recv(1) + ours.recv(1) == b".."
    assert cluster.join(PATIENCE)


def test_a_variable_given_to_one_worker_is_not_its_siblings() -> None:
    """fork-env, and joyent/node#3288: nor the master's; a worker's number is of its own."""

    def program() -> None:
        cluster.send((os.environ.get("GIVEN"), os.environ["MPCLUSTER_WORKER_ID"]))

    diary = follow("message")
    cluster.fork(program, env={"GIVEN": "one"})
    cluster.fork(program)
    diary.until(1, "message", ("one", "1"))
    diary.until(2, "message", (None, "2"))
    assert "GIVEN" not in os.environ
    assert "MPCLUSTER_WORKER_ID" not in os.environ
    assert cluster.join(PATIENCE)


def test_a_worker_that_waits_for_messages_is_not_busy() -> None:
    """process-disconnect's counterpart: the end of its master is the end of it, read or not."""
    code = textwrap.dedent(
        """
        import mpcluster as cluster, os, threading
        def listen():
            cluster.on("message", print)
            cluster.send(os.getpid())
            threading.Event().wait()
        worker = cluster.fork(listen)
        worker.on("message", lambda pid: (print(pid, flush=True), os._exit(5)))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == 5
    with_pidfd = None
    try:
        with_pidfd = os.pidfd_open(int(done.stdout))
        assert select.select([with_pidfd], [], [], PATIENCE)[0]
    except ProcessLookupError:
        pass  # gone already
    finally:
        if with_pidfd is not None:
            os.close(with_pidfd)
