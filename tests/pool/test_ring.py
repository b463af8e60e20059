"""Memory that a pool and a worker share."""

from __future__ import annotations

import os

import pytest

from mpcluster import descriptors
from mpcluster.pool import ring
from mpcluster.pool.records import VALUE
from mpcluster.pool.ring import SIZE, Ring


@pytest.fixture
def ends():
    fd = Ring.create()
    pool, worker = Ring(fd), Ring(fd)
    descriptors.close(fd)
    yield pool, worker
    pool.close()
    worker.close()


def taken(pool: Ring) -> list[tuple[int, bytes]]:
    return [(number, bytes(payload)) for _, _, number, payload in pool.take()]


def test_answers_come_out_as_they_were_laid_in(ends):
    pool, worker = ends
    for number in range(5):
        assert worker.put(VALUE, 0, number, b"x" * number)
    assert taken(pool) == [(number, b"x" * number) for number in range(5)]
    assert taken(pool) == []


def test_a_full_ring_says_so_and_has_room_again_when_it_was_emptied(ends):
    pool, worker = ends
    number = 0
    while worker.put(VALUE, 0, number, b"y" * 1000):
        number += 1
    assert number == SIZE // 1024
    assert len(taken(pool)) == number
    assert worker.put(VALUE, 0, number, b"y" * 1000)


def test_an_answer_larger_than_the_ring_is_refused(ends):
    _, worker = ends
    assert not worker.put(VALUE, 0, 1, b"z" * SIZE)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 23, 100, 4093, 30_000])
def test_nothing_is_lost_where_the_ring_begins_anew(ends, size):
    pool, worker = ends
    sent, seen = [], []
    for number in range(3 * SIZE // (size + 24) + 20):
        payload = os.urandom(size)
        if not worker.put(VALUE, 7, number, payload):
            seen += taken(pool)
            assert worker.put(VALUE, 7, number, payload)
        sent.append((number, payload))
    assert seen + taken(pool) == sent


def test_an_answer_outlives_the_worker_that_laid_it_in():
    fd = Ring.create()
    pool = Ring(fd)
    with descriptors.keep(fd):
        pid = os.fork()
    if not pid:
        Ring(fd).put(VALUE, 0, 3, b"last words")
        os._exit(0)
    os.waitpid(pid, 0)
    descriptors.close(fd)
    assert taken(pool) == [(3, b"last words")]
    pool.close()


def test_waiting_ends_with_the_answer_or_with_the_time(ends):
    pool, worker = ends
    assert not pool.wait(1e-6)
    worker.put(VALUE, 0, 1, b"")
    assert pool.wait(10.0)


def test_the_numbers_of_both_sides_lie_in_cache_lines_of_their_own():
    worker = {ring.BEGUN, ring.SINCE, ring.TAIL, ring.READY}
    pool = {ring.HEAD, ring.FROM, ring.TO}
    assert {cell // 8 for cell in worker}.isdisjoint({cell // 8 for cell in pool})
