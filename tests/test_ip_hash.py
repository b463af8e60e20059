"""``ip_hash``: one client address, one worker."""

from __future__ import annotations

import collections
import socket
from collections.abc import Iterator

import pytest

from mpcluster import scheduling
from mpcluster.scheduling import waiting
from mpcluster.scheduling.ip_hash import IpHash, slot_of
from mpcluster.scheduling.round_robin import RoundRobin
from tests.dealing import Table, Worker, served_by

#: Addresses of clients; all of 127.0.0.0/8 is this machine's.
CLIENTS = [f"127.77.{n // 200}.{n % 200 + 1}" for n in range(40)]


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table(IpHash)
    yield table
    table.close()


def whose(table: Table) -> dict[str, Worker]:
    """Connect each client once; who got it, and has accepted it."""
    found = {}
    for client in CLIENTS:
        table.connect(source=client)
        (worker,) = [one for one in table.workers if one.end.fileno() >= 0 and one.has_one]
        worker.accept()
        found[client] = worker
    return found


# -- the hash ------------------------------------------------------------------------------------


def test_the_clients_are_spread_over_all_slots() -> None:
    slots = tuple(range(4))
    counts = collections.Counter(
        slot_of(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", slots) for n in range(4000)
    )
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > 900  # 1,000 each, six deviations off


def test_a_slot_that_goes_moves_no_client_but_its_own() -> None:
    hosts = [f"10.0.{n // 256}.{n % 256}" for n in range(500)]
    for host in hosts:
        before = slot_of(host, (0, 1, 2, 3))
        after = (0, 1, 3)[slot_of(host, (0, 1, 3))]
        assert before in {after, 2}


@pytest.mark.parametrize("host", ["2001:db8::1", "::1", "fe80::1%eth0"])
def test_ipv6_has_slots_too(host: str) -> None:
    assert slot_of(host, (0, 1, 2)) in {0, 1, 2}


def test_the_zone_of_an_address_does_not_count() -> None:
    slots = tuple(range(16))
    assert slot_of("fe80::5%eth0", slots) == slot_of("fe80::5", slots)


def test_an_ipv4_client_is_the_same_on_a_dual_stack_port() -> None:
    slots = tuple(range(16))
    for host in CLIENTS:
        assert slot_of(f"::ffff:{host}", slots) == slot_of(host, slots)


# -- clients and workers ---------------------------------------------------------------------------


def test_a_client_stays_with_its_worker(table: Table) -> None:
    for _ in range(4):
        table.worker()
    first = whose(table)
    assert whose(table) == first
    assert len(set(first.values())) == 4


def test_a_replacement_inherits_the_clients_of_its_predecessor(table: Table) -> None:
    for _ in range(3):
        table.worker()
    before = whose(table)
    dead = table.workers[1]
    dead.die()
    replacement = table.worker()
    after = whose(table)
    assert after == {
        client: replacement if worker is dead else worker for client, worker in before.items()
    }


def test_until_there_is_a_replacement_others_serve_them(table: Table) -> None:
    for _ in range(3):
        table.worker()
    before = whose(table)
    dead = table.workers[1]
    dead.die()
    for client, worker in whose(table).items():
        assert worker is before[client] or before[client] is dead


def test_after_a_rolling_reload_each_client_is_with_the_replacement_of_its_worker(
    table: Table,
) -> None:
    old = [table.worker() for _ in range(3)]
    before = whose(table)
    heirs = {}
    for worker in old:
        heirs[worker] = table.worker()  # ready first
        table.policy.drain(worker.route)  # then the old one leaves
        worker.leave()
    assert whose(table) == {client: heirs[worker] for client, worker in before.items()}


def test_a_client_waits_for_its_worker_while_others_are_served(table: Table) -> None:
    first, second = table.worker(), table.worker()
    clients = {worker: client for client, worker in whose(table).items()}
    table.connect(source=clients[first])
    (waits,) = table.connect(source=clients[first])
    (served,) = table.connect(source=clients[second])
    assert served_by(served, second.accept())
    assert not second.has_one
    first.accept()
    assert served_by(waits, first.accept())


def test_those_that_wait_for_a_worker_move_when_it_dies(table: Table) -> None:
    first, second = table.worker(), table.worker()
    clients = {worker: client for client, worker in whose(table).items()}
    waiting = table.connect(3, source=clients[first])
    first.die()
    for client in waiting:
        assert served_by(client, second.accept())


def test_those_that_wait_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 8)
    table.worker()
    table.connect(20)
    assert not table.watches_listener
    assert scheduling.queued(table.listener) == 20 - 1 - 8


def test_clients_of_a_unix_path_go_round_with_a_word(caplog) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert scheduling.choose("ip_hash", sock, event_loop=False) is RoundRobin
    assert "no address" in caplog.text
