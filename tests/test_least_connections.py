"""``least_connections``: to who has the fewest open now."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mpcluster.scheduling import line
from mpcluster.scheduling.least_connections import LeastConnections
from tests.dealing import Table, Worker


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table(LeastConnections)
    yield table
    table.close()


def give(table: Table, times: int = 1) -> list[Worker]:
    """Connect; who got them, and has accepted them."""
    got = []
    for _ in range(times):
        table.connect()
        (worker,) = [one for one in table.workers if one.end.fileno() >= 0 and one.has_one]
        worker.accept()
        got.append(worker)
    return got


def test_equals_take_turns(table: Table) -> None:
    workers = [table.worker() for _ in range(3)]
    assert give(table, 9) == workers * 3


def test_who_has_fewer_is_given_more(table: Table) -> None:
    first, second = table.worker(), table.worker()
    give(table, 6)
    for _ in range(3):
        second.close_one()
    assert give(table, 3) == [second] * 3
    assert give(table, 2) == [first, second]


def test_a_new_worker_catches_up(table: Table) -> None:
    table.worker()
    give(table, 4)
    new = table.worker()
    assert give(table, 4) == [new] * 4


def test_a_death_frees_all_that_the_worker_had(table: Table) -> None:
    first, _ = table.worker(), table.worker()
    give(table, 8)
    first.die()
    replacement = table.worker()
    assert give(table, 4) == [replacement] * 4


def test_more_ends_than_connections_are_none(table: Table) -> None:
    first, second = table.worker(), table.worker()
    first.say(line.ENDED, 7)
    assert give(table, 4) == [first, second] * 2


def test_several_ends_may_be_told_at_once(table: Table) -> None:
    first, _ = table.worker(), table.worker()
    give(table, 6)
    first.say(line.ENDED, 3)
    assert give(table, 3) == [first] * 3


def test_what_was_said_before_a_client_came_counts_whichever_the_kernel_tells_first(
    table: Table,
) -> None:
    first, second = table.worker(), table.worker()
    give(table, 2)
    line.say(first.end, line.ENDED, 1)
    client = socket.create_connection(table.address)
    table.clients.append(client)
    table.watch.callbacks[table.listener.fileno()](0)
    assert (first.has_one, second.has_one) == (True, False)
    line.say(first.end, line.COUNTED, first.take())
    table.clients.append(socket.create_connection(table.address))
    line.say(first.end, line.ENDED, 1)
    table.watch.callbacks[table.listener.fileno()](0)
    assert (first.has_one, second.has_one) == (True, False)
