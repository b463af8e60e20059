"""``round_robin``: in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpcluster.scheduling import line, queued
from mpcluster.scheduling.patience import TICK
from mpcluster.scheduling.round_robin import RoundRobin
from mpcluster.scheduling.takers import AHEAD
from tests.dealing import Table, Worker


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table(RoundRobin)
    yield table
    table.close()


def give(table: Table) -> Worker:
    """Connect; who got it, and has accepted it."""
    table.connect()
    (worker,) = [worker for worker in table.workers if worker.end.fileno() >= 0 and worker.has_one]
    worker.accept()
    return worker


def test_connections_one_by_one_go_round_in_strict_order(table: Table) -> None:
    workers = [table.worker() for _ in range(4)]
    assert [give(table) for _ in range(40)] == workers * 10


def test_a_burst_is_spread_evenly(table: Table) -> None:
    workers = [table.worker() for _ in range(4)]
    table.connect(40)
    for _ in range(10):
        for worker in workers:
            worker.accept()
    assert [len(worker.connections) for worker in workers] == [10] * 4


def test_one_that_is_quicker_gets_no_more_of_a_burst(table: Table) -> None:
    quick, late = table.worker(), table.worker()
    table.connect(40)
    while quick.has_one or late.has_one:
        while quick.has_one:
            quick.accept()
        late.accept()
    assert (len(quick.connections), len(late.connections)) == (20, 20)


def test_a_worker_has_a_few_connections_ahead_and_is_then_waited_for(table: Table) -> None:
    quick, late = table.worker(), table.worker()
    table.connect(20)
    while quick.has_one:
        quick.accept()
    assert len(quick.connections) == AHEAD + 1
    assert queued(table.listener) == 20 - (AHEAD + 1) - AHEAD
    late.accept()
    assert quick.has_one


def test_with_everybody_waited_for_nothing_wakes_the_master(table: Table) -> None:
    quick, _ = table.worker(), table.worker()
    table.connect(20)
    while quick.has_one:
        quick.accept()
    table.watch.calls = 0
    table.connect(50)
    assert table.watch.calls == 0


def test_one_that_lets_them_lie_is_waited_for_no_longer_and_loses_none(table: Table) -> None:
    stopped, other = table.worker(), table.worker()
    clients = table.connect(20)
    served = []
    for _ in range(3):
        while other.has_one:
            served.append(other.accept())
        table.wind(TICK)
    while other.has_one:
        served.append(other.accept())
    assert stopped.taken == []
    assert len(served) == len(clients)
    unserved = {client.getsockname() for client in clients}
    assert {server.getpeername() for server in served} == unserved


def test_the_next_that_lies_behind_one_that_was_accepted_late_is_looked_at_too(
    table: Table,
) -> None:
    stopped, other = table.worker(), table.worker()
    table.connect(AHEAD)
    other.die()  # so that there is nobody to whom they could go
    for _ in range(3):
        table.wind(TICK)
    stopped.accept()
    other = table.worker()
    for _ in range(3):
        table.wind(TICK)
    assert not stopped.has_one
    assert other.has_one


def test_a_worker_that_is_full_is_not_waited_for() -> None:
    table = Table(RoundRobin, limit=1)
    full, other = table.worker(), table.worker()
    table.connect()
    full.accept()
    table.connect()
    other.accept()
    other.connections.pop().close()
    other.say(line.ENDED, 1)
    table.connect()
    assert (full.has_one, other.has_one) == (False, True)
    table.close()


def test_a_new_worker_has_its_turn_next_and_once(table: Table) -> None:
    first, second = table.worker(), table.worker()
    assert [give(table), give(table)] == [first, second]
    new = table.worker()
    assert [give(table) for _ in range(4)] == [new, first, second, new]
