"""Real workers, to which a real master passes connections: nothing is lost, and nothing spins."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mpcluster.scheduling.takers import AHEAD
from tests.running import PATIENCE, PROGRAMS, begin

ACCEPTING = ["round_robin", "least_connections", "ip_hash"]
PROGRAM = PROGRAMS / "passing.py"


class Master:
    """``programs/passing.py``: it says what happens, as JSON, a line each."""

    def __init__(
        self,
        server: str,
        workers: int,
        *,
        tells: bool = False,
        patient: bool = False,
        **settings: Any,
    ) -> None:
        self.program = begin(
            PROGRAM,
            server,
            workers,
            json.dumps(settings),
            env=({"TELLS": "1"} if tells else {}) | ({"PATIENT": "1"} if patient else {}),
            stdin=subprocess.PIPE,
            stderr=None,
        )
        self.heard: list[dict[str, Any]] = []
        self.rest = b""
        listening = [self.expect("listening") for _ in range(workers)]
        self.pids = [what["pid"] for what in listening]
        self.port: int = listening[0]["port"]

    def expect(self, event: str) -> dict[str, Any]:
        """The next event of that name."""
        assert self.program.stdout is not None
        while True:
            for what in self.heard:
                if what["event"] == event:
                    self.heard.remove(what)
                    return what
            ready, _, _ = select.select([self.program.stdout], [], [], PATIENCE)
            assert ready, f"no {event}; heard {self.heard}"
            data = os.read(self.program.stdout.fileno(), 1 << 16)
            assert data, f"the master is gone without {event}; heard {self.heard}"
            *lines, self.rest = (self.rest + data).split(b"\n")
            self.heard += [json.loads(one) for one in lines]

    def order(self, *words: object) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(" ".join(map(str, words)) + "\n")
        self.program.stdin.flush()

    def ask(self) -> dict[str, Any]:
        """What the master counts: calls of its watcher, descriptors."""
        self.order("count")
        return self.expect("count")

    def wait_until(self, **counts: int) -> None:
        """Until the master has been told so much."""
        while not counts.items() <= self.ask().items():
            pass

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def fetch(self) -> int:
        """Who answers."""
        with self.connect() as client:
            return who(client)

    def replacement(self) -> int:
        pid: int = self.expect("listening")["pid"]
        return pid


def who(client: socket.socket) -> int:
    """The process id that the server sends; a connection that ends without one is lost."""
    said = client.recv(64)
    assert said, "the connection ended without an answer"
    return int(said)


@contextlib.contextmanager
def running(
    server: str, workers: int, *, tells: bool = False, patient: bool = False, **settings: Any
) -> Iterator[Master]:
    master = Master(server, workers, tells=tells, patient=patient, **settings)
    try:
        yield master
    finally:
        for pid in master.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        os.killpg(master.program.pid, signal.SIGKILL)
        for pipe in (master.program.stdin, master.program.stdout):
            assert pipe is not None
            pipe.close()
        master.program.wait()


# -- spread ----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["threads", "blocking", "asyncio"])
def test_round_robin_spreads_connections_one_by_one_exactly_evenly(server: str) -> None:
    with running(server, 4, patient=True, scheduling="round_robin") as master:
        served = collections.Counter(master.fetch() for _ in range(80))
        assert served == dict.fromkeys(master.pids, 20)


@pytest.mark.parametrize("server", ["threads", "asyncio"])
def test_least_connections_gives_to_who_has_fewest_open(server: str) -> None:
    with running(server, 2, tells=True, patient=True, scheduling="least_connections") as master:
        held, owner = [], {}
        for _ in range(8):
            held.append(master.connect())
            owner[held[-1]] = who(held[-1])
        assert collections.Counter(owner.values()) == dict.fromkeys(master.pids, 4)
        for client in held:
            if owner[client] == master.pids[0]:
                client.close()
        for _ in range(4):
            master.expect("closed")
        for already in range(4):
            # Programs are quicker than the words that tell the master what they have done.
            master.wait_until(passed=0, open=4 + already)
            held.append(master.connect())
            assert who(held[-1]) == master.pids[0]
        for client in held:
            client.close()


def test_ip_hash_keeps_a_client_with_its_worker_and_then_with_the_replacement() -> None:
    with running("asyncio", 3, scheduling="ip_hash") as master:
        pid = master.fetch()
        assert {master.fetch() for _ in range(10)} == {pid}
        os.kill(pid, signal.SIGKILL)
        heir = master.replacement()
        assert {master.fetch() for _ in range(10)} == {heir}


# -- nothing is lost -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ACCEPTING)
def test_a_killed_worker_loses_no_connection_that_it_had_not_accepted(policy: str) -> None:
    """Stopped first, so that it accepts nothing. The only one: all wait for its replacement."""
    with running("asyncio", 1, scheduling=policy) as master:
        (stopped,) = master.pids
        os.kill(stopped, signal.SIGSTOP)
        clients = [master.connect() for _ in range(20)]
        os.kill(stopped, signal.SIGKILL)
        heir = master.replacement()
        assert {who(client) for client in clients} == {heir}
        for client in clients:
            client.close()


@pytest.mark.parametrize("policy", ACCEPTING)
def test_a_connection_of_which_a_killed_worker_was_told_and_no_more_is_not_lost(
    policy: str,
) -> None:
    """``select`` takes it out of the line, so that its word holds; ``accept()`` never came."""
    with running("polls", 1, scheduling=policy) as master, master.connect() as client:
        (told,) = master.pids
        master.expect("told")
        os.kill(told, signal.SIGKILL)
        assert who(client) == master.replacement()


def test_a_worker_that_is_stopped_delays_nobody_while_another_is_free() -> None:
    with running("asyncio", 2, scheduling="round_robin") as master:
        stopped, other = master.pids
        os.kill(stopped, signal.SIGSTOP)
        assert {master.fetch() for _ in range(20)} == {other}
        os.kill(stopped, signal.SIGCONT)


class Load:
    """Clients that connect without a pause, each on a thread of its own."""

    def __init__(self, master: Master, clients: int) -> None:
        self.master = master
        self.answered = 0
        self.lost: list[int] = []  # the clients' ports
        self.errors: list[Exception] = []
        self.stopping = False
        self.progress = threading.Condition()
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def run(self) -> None:
        while not self.stopping and not self.errors:
            try:
                with self.master.connect() as client:
                    port = client.getsockname()[1]
                    try:
                        said = client.recv(64)
                    except ConnectionResetError:
                        said = b""
            except OSError as error:  # refused, or nobody answers at all
                self.errors.append(error)
                said = b""
            else:
                if not said:
                    self.lost.append(port)
            with self.progress:
                self.answered += bool(said)
                self.progress.notify_all()

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        with self.progress:
            goal = self.answered + count
            assert self.progress.wait_for(lambda: self.answered >= goal or self.errors, PATIENCE)
        assert self.errors == []


@pytest.mark.parametrize(
    ("server", "policy"),
    [
        ("threads", "round_robin"),
        ("blocking", "round_robin"),
        ("asyncio", "round_robin"),
        pytest.param("asyncio", "least_connections", marks=pytest.mark.slow),
        pytest.param("asyncio", "ip_hash", marks=pytest.mark.slow),
    ],
)
def test_workers_killed_under_load_lose_only_what_they_had_acknowledged(
    server: str, policy: str
) -> None:
    """Promise 15; and nobody is refused, and nobody waits for ever."""
    with running(server, 2, scheduling=policy) as master:
        killed = []
        with Load(master, clients=12) as load:
            for _ in range(4):
                load.more(40)
                killed.append(master.pids.pop(0))
                os.kill(killed[-1], signal.SIGKILL)
                master.pids.append(master.replacement())
            load.more(40)
        assert load.errors == []
        master.order("acknowledged")
        acknowledged = master.expect("acknowledged")["ports"]
        theirs = {port for pid in killed for port in acknowledged.get(str(pid), [])}
        assert set(load.lost) <= theirs


# -- nothing spins ---------------------------------------------------------------------------


def test_with_no_worker_free_the_master_is_woken_by_nothing() -> None:
    with running("asyncio", 1, scheduling="round_robin") as master:
        os.kill(master.pids[0], signal.SIGSTOP)
        clients = [master.connect() for _ in range(AHEAD)]
        # The connections lie there; two looks at them, and then the master forgets about it.
        while (counted := master.ask())["pending"] or counted["passed"] != AHEAD:
            pass
        before = master.ask()["calls"]
        clients += [master.connect() for _ in range(50)]
        after = master.ask()["calls"]
        assert after - before == 0
        os.kill(master.pids[0], signal.SIGCONT)
        assert {who(client) for client in clients} == set(master.pids)
        for client in clients:
            client.close()


@pytest.mark.parametrize("server", ["threads", "asyncio"])
def test_no_worker_has_more_connections_than_max_connections(server: str) -> None:
    with running(server, 2, max_connections=2) as master:
        held = [master.connect() for _ in range(4)]
        owner = collections.Counter(who(client) for client in held)
        assert owner == dict.fromkeys(master.pids, 2)
        waiting = [master.connect() for _ in range(3)]
        before = master.ask()["calls"]
        assert master.ask()["calls"] == before
        assert select.select(waiting, [], [], 0)[0] == []
        for client in held:
            client.close()
        for client in waiting:
            who(client)
            client.close()


# -- masses, resets, no descriptors ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ACCEPTING)
def test_thousands_of_connects_and_resets_leave_no_descriptor(policy: str) -> None:
    with running("asyncio", 2, scheduling=policy) as master:
        before = master.ask()["descriptors"]
        for number in range(4000):
            with master.connect() as client:
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert master.fetch() in master.pids
        assert settled(master, before)


def settled(master: Master, before: int) -> bool:
    """Has the master as many descriptors as before, once it has heard of every acceptance?"""
    deadline = time.monotonic() + PATIENCE
    while master.ask()["descriptors"] != before:
        assert time.monotonic() < deadline, "descriptors are left"
    return True


def test_half_open_clients_hold_up_nobody() -> None:
    """They connect, and say nothing, ever."""
    with running("asyncio", 2, scheduling="round_robin") as master:
        silent = [master.connect() for _ in range(200)]
        assert collections.Counter(master.fetch() for _ in range(20)) == dict.fromkeys(
            master.pids, 10
        )
        for client in silent:
            client.close()


def test_a_master_without_descriptors_backs_off_and_loses_nothing() -> None:
    with running("asyncio", 2, scheduling="round_robin") as master:
        master.order("exhaust")
        master.expect("exhausted")
        clients = [master.connect() for _ in range(30)]
        master.expect("resting")
        master.order("relieve")
        assert {who(client) for client in clients} == set(master.pids)
        assert master.fetch() in master.pids
        for client in clients:
            client.close()


# -- leaving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ACCEPTING)
def test_a_drain_gives_back_what_was_passed_and_not_accepted(policy: str) -> None:
    with running("asyncio", 1, scheduling=policy) as master:
        (stopped,) = master.pids
        os.kill(stopped, signal.SIGSTOP)
        clients = [master.connect() for _ in range(5)]
        master.order("replace", stopped)
        heir = master.replacement()
        assert {who(client) for client in clients} == {heir}
        os.kill(stopped, signal.SIGCONT)
        for client in clients:
            client.close()
        assert master.expect("death")["exitcode"] == 0


def test_tls_around_a_listener_works_as_without_a_cluster() -> None:
    """`ssl` asks the listener for its peer and its type."""
    with running("tls", 2, scheduling="round_robin") as master:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
        pids = set()
        for _ in range(2):
            with master.connect() as client, context.wrap_socket(client) as wrapped:
                pids.add(int(wrapped.recv(64)))
        assert pids == set(master.pids)
