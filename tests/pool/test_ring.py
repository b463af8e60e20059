"""Memory that a pool and a worker share."""

from __future__ import annotations

import os
from random import Random

import pytest

from mpcluster import descriptors
from mpcluster.pool import ring
from mpcluster.pool.records import VALUE, VALUES, body
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


# -- runs --------------------------------------------------------------------------------------


def values(pool: Ring) -> list[tuple[int, list[object], int]]:
    return [(number, *payload) for _, _, number, payload in pool.take()]


def test_of_an_open_run_all_that_is_there_can_be_taken(ends):
    pool, worker = ends
    assert worker.add(5, 1000, body("a"))
    assert worker.add(6, 1000, body("b"))
    assert values(pool) == [(5, ["a", "b"], 0)]
    assert values(pool) == []
    assert worker.add(7, 1000, body("c"))
    assert values(pool) == [(7, ["c"], 0)]


def test_the_time_of_a_run_is_told_at_its_end_and_for_all_of_it(ends):
    pool, worker = ends
    for number in range(3):
        worker.add(number, 200, body(number))
    assert values(pool) == [(0, [0, 1, 2], 0)]
    worker.add(3, 400, body(3))
    worker.end_run()
    assert list(pool.take()) == [(VALUES, 10, 3, ([3], 4))]
    assert values(pool) == []


def test_an_answer_of_another_kind_ends_a_run(ends):
    pool, worker = ends
    worker.add(1, 0, body(None))
    worker.put(VALUE, 0, 2, b"alone")
    worker.add(3, 0, body(2.5))
    kinds = [(kind, number) for kind, _, number, _ in pool.take()]
    assert kinds == [(VALUES, 1), (VALUE, 2), (VALUES, 3)]


def test_a_number_that_does_not_follow_begins_another_run(ends):
    pool, worker = ends
    worker.add(1, 0, body(1))
    worker.add(9, 0, body(9))
    assert values(pool) == [(1, [1], 1), (9, [9], 0)]


def test_a_value_larger_than_a_run_is_refused_and_leaves_the_ring_whole(ends):
    pool, worker = ends
    worker.add(1, 0, body(1))
    assert not worker.add(2, 0, body("x" * SIZE))
    assert worker.put(VALUE, 0, 2, b"by another way")
    assert worker.add(3, 0, body(3))
    assert [number for _, _, number, _ in pool.take()] == [1, 2, 3]


def test_a_full_ring_refuses_values_and_takes_them_again_when_it_was_emptied(ends):
    pool, worker = ends
    number = 0
    while worker.add(number, 0, body("v" * 100)):
        number += 1
    assert sum(len(got) for _, got, _ in values(pool)) == number
    assert worker.add(number, 0, body("v"))
    assert values(pool) == [(number, ["v"], 0)]


@pytest.mark.parametrize("seed", range(5))
def test_no_value_is_lost_whenever_the_ring_is_looked_into(ends, seed):
    """Taken after any number of them: the header of an open run is never written over."""
    pool, worker = ends
    random = Random(seed)
    sent: list[str] = []
    seen: list[object] = []
    while len(sent) < 6000:
        value = "w" * random.choice((0, 1, 10, 100, 3000))
        if random.random() < 0.01:
            worker.end_run()
        while not worker.add(len(sent), 0, body(value)):
            for number, got, _ in values(pool):
                assert number == len(seen) or not got
                seen += got
        sent.append(value)
        if random.random() < 0.05:
            for _, got, _ in values(pool):
                seen += got
    for _, got, _ in values(pool):
        seen += got
    assert seen == sent


def test_who_waits_for_an_answer_is_not_told_of_those_that_it_has_taken(ends):
    pool, worker = ends
    worker.add(1, 0, body(1))
    assert pool.wait(0)
    assert values(pool)
    assert not pool.wait(0)  # though the run is open
    worker.add(2, 0, body(2))
    assert pool.wait(0)
