"""``round_robin``: in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpcluster.scheduling.round_robin import RoundRobin
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


def test_a_busy_worker_is_passed_over_and_has_its_turn_when_it_is_free(table: Table) -> None:
    busy, other = table.worker(), table.worker()
    table.connect()
    assert busy.has_one
    assert [give_to(table, other) for _ in range(3)] == [True] * 3
    busy.accept()
    table.connect()
    assert busy.has_one


def give_to(table: Table, worker: Worker) -> bool:
    table.connect()
    got = worker.has_one
    worker.accept()
    return got


def test_a_new_worker_has_its_turn_next_and_once(table: Table) -> None:
    first, second = table.worker(), table.worker()
    assert [give(table), give(table)] == [first, second]
    new = table.worker()
    assert [give(table) for _ in range(4)] == [new, first, second, new]
