"""What happened in a second, from two looks."""

from __future__ import annotations

from mpcluster.monitor.rates import Rate, between
from tests.monitor.looks import slot, snapshot, worker


def test_what_grew_is_divided_by_the_time_that_it_took() -> None:
    before = snapshot(worker(1, cpu=1.0, accepted=10, messages=20), clock=100)
    now = snapshot(
        worker(1, cpu=2.0, accepted=30, messages=21),
        clock=102,
        slots=(slot(0, accepted=30, messages=21),),
    )
    rates = between(before, now)
    assert rates.workers == {1: Rate(cpu=0.5, accepted=10.0, messages=0.5)}
    assert rates.total == Rate(cpu=0.5, accepted=10.0, messages=0.5)
    assert rates.seconds == 2


def test_a_new_worker_has_done_all_that_it_did_meanwhile() -> None:
    before = snapshot(worker(1), clock=100)
    now = snapshot(worker(2, cpu=0.5, accepted=4, messages=0), clock=102)
    assert between(before, now).workers == {2: Rate(cpu=0.25, accepted=2.0, messages=0.0)}


def test_what_the_dead_did_meanwhile_is_in_the_sum() -> None:
    before = snapshot(worker(1), clock=100, slots=(slot(0, accepted=10, messages=20),))
    now = snapshot(
        worker(2, accepted=1, messages=0), clock=101, slots=(slot(0, accepted=18, messages=25),)
    )
    total = between(before, now).total
    assert (total.accepted, total.messages) == (8, 5)


def test_a_sum_with_a_part_that_is_not_known_is_not_known() -> None:
    before = snapshot(worker(1), worker(2, slot=1), clock=100)
    slots = (slot(0), slot(1, accepted=None))
    now = snapshot(worker(1), worker(2, slot=1, cpu=None), clock=101, slots=slots)
    total = between(before, now).total
    assert (total.cpu, total.accepted, total.messages) == (None, None, 0)


def test_of_one_and_the_same_look_no_rate_is_known() -> None:
    one = snapshot(worker(1))
    rates = between(one, one)
    assert (rates.workers, rates.total) == ({1: Rate()}, Rate())


def test_a_slot_that_was_gone_and_came_again_does_not_count_backwards() -> None:
    before = snapshot(worker(1), clock=100, slots=(slot(0, messages=500),))
    now = snapshot(worker(9), clock=101, slots=(slot(0, messages=3),))
    assert between(before, now).total.messages == 0


def test_with_no_workers_nothing_happens() -> None:
    total = between(snapshot(clock=1), snapshot(clock=2)).total
    assert total == Rate(0, 0, 0)
