"""A fleet with pretended workers: what is ordered, whatever happens, and in which order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from mpcluster.supervision import Rules, SlotState
from mpcluster.supervision.fleet import Fleet
from mpcluster.supervision.orders import (
    Fail,
    Finish,
    Kill,
    Later,
    Order,
    Retire,
    Roll,
    Start,
)


@dataclass
class Pretended:
    id: int
    pid: int


@dataclass
class Yard:
    """Carries out what a fleet orders, as far as nothing has to be forked for it."""

    fleet: Fleet
    now: float = 0.0
    orders: list[Order] = field(default_factory=list)
    refuse: bool = False
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def do(self, orders: list[Order]) -> list[Order]:
        """Carry out; return all that was ordered by it."""
        done: list[Order] = []
        pending = list(orders)
        while pending:
            order = pending.pop(0)
            done.append(order)
            if isinstance(order, Start):
                if self.refuse:
                    pending[:0] = self.fleet.could_not_start(order.slot, "no room")
                else:
                    number = next(self._ids)
                    worker = Pretended(number, 1000 + number)
                    pending[:0] = self.fleet.started(order.slot, worker, self.now)
        self.orders += done
        return done

    def serving(self, slot: int) -> int:
        member = self.fleet.slots[slot].serving
        assert member is not None
        assert member.worker.id is not None
        return member.worker.id

    def incoming(self, slot: int) -> int:
        member = self.fleet.slots[slot].incoming
        assert member is not None
        assert member.worker.id is not None
        return member.worker.id

    def ready(self, worker: int) -> list[Order]:
        return self.do(self.fleet.got_ready(worker, self.now))

    def parks(self, worker: int) -> list[Order]:
        return self.do(self.fleet.parked(worker))

    def dies(
        self, worker: int, ending: str = "exited with 1", *, crashed: bool = True
    ) -> list[Order]:
        return self.do(self.fleet.died(worker, ending, crashed=crashed, now=self.now))

    def states(self) -> list[SlotState]:
        return [slot.state for _, slot in sorted(self.fleet.slots.items())]


def yard(size: int = 3, *, filled: bool = True, **rules: object) -> Yard:
    made = Yard(Fleet(Rules(**rules), size))  # type: ignore[arg-type]
    if filled:
        made.do(made.fleet.fill())
        for slot in range(size):
            made.ready(made.serving(slot))
    return made


def test_every_slot_is_filled_once() -> None:
    it = yard(filled=False)
    assert it.do(it.fleet.fill()) == [Start(0), Start(1), Start(2)]
    assert it.fleet.fill() == []
    assert it.states() == [SlotState.BOOTING] * 3


def test_a_crashed_worker_is_replaced_in_its_own_slot() -> None:
    it = yard()
    assert it.dies(it.serving(1)) == [Start(1)]
    assert it.fleet.slots[1].restarts == 1


def test_one_that_crashes_again_and_again_waits_longer_and_longer_then_is_given_up() -> None:
    it = yard(2, max_crashes=3, backoff=1)
    it.dies(it.serving(0))
    assert it.dies(it.serving(0)) == [Later(1.0, 0)]
    assert it.do(it.fleet.due(0)) == [Start(0)]
    assert it.dies(it.serving(0)) == []
    assert it.states() == [SlotState.GIVEN_UP, SlotState.READY]


def test_with_every_slot_given_up_it_fails_and_says_why() -> None:
    it = yard(2, max_crashes=1)
    it.dies(it.serving(0))
    (failed,) = it.dies(it.serving(1), "was killed by SIGSEGV")
    assert isinstance(failed, Fail)
    assert "slot 1) was killed by SIGSEGV" in failed.reason


def test_a_worker_that_was_stable_is_replaced_at_once_whatever_was_before() -> None:
    it = yard(1, max_crashes=3, min_uptime=10)
    it.dies(it.serving(0))
    it.ready(it.serving(0))
    it.now = 11
    assert it.dies(it.serving(0)) == [Start(0)]
    assert it.fleet.slots[0].streak.count == 1


@pytest.mark.parametrize(
    ("restart", "crashed", "again"),
    [
        ("always", False, True),
        ("on-failure", False, False),
        ("on-failure", True, True),
        ("never", True, False),
    ],
)
def test_who_is_started_again(restart: str, crashed: bool, again: bool) -> None:
    it = yard(2, restart=restart)
    orders = it.dies(it.serving(0), crashed=crashed)
    assert orders == ([Start(0)] if again else [])
    assert (it.fleet.slots[0].state is SlotState.CLOSED) is not again


def test_it_is_over_when_no_worker_is_left_that_is_to_come_back() -> None:
    it = yard(1, restart="never")
    assert not it.fleet.is_over
    it.dies(it.serving(0))
    assert it.fleet.is_over


def test_a_fork_that_the_system_refuses_is_tried_again_later() -> None:
    it = yard(1, filled=False, backoff=1)
    it.refuse = True
    assert it.do(it.fleet.fill()) == [Start(0), Start(0), Later(1.0, 0)]
    it.refuse = False
    assert it.do(it.fleet.due(0)) == [Start(0)]
    assert it.states() == [SlotState.BOOTING]


class TestReload:
    def test_each_old_worker_leaves_only_when_the_new_one_is_ready(self) -> None:
        it = yard()
        old = [it.serving(slot) for slot in range(3)]
        roll, orders = it.fleet.reload()
        assert it.do(orders) == [Start(0)]
        for slot in range(3):
            assert it.serving(slot) == old[slot]
            orders = it.ready(it.incoming(slot))
            assert isinstance(orders[0], Retire)
            assert orders[0].worker.id == old[slot]
            assert orders[1:] == ([Start(slot + 1)] if slot < 2 else [])
        assert it.fleet.roll is None
        assert [it.parks(worker) for worker in old] == [[], [], [Finish(roll, None)]]

    def test_a_replacement_that_dies_aborts_it_and_the_old_ones_serve_on(self) -> None:
        it = yard()
        old = [it.serving(slot) for slot in range(3)]
        roll, orders = it.fleet.reload()
        it.do(orders)
        (finish,) = it.dies(it.incoming(0))
        assert isinstance(finish, Finish)
        assert finish.roll is roll
        assert "exited with 1" in str(finish.failure)
        assert [it.serving(slot) for slot in range(3)] == old
        assert it.states() == [SlotState.READY] * 3

    def test_a_replacement_that_does_not_get_ready_is_ended(self) -> None:
        it = yard()
        _, orders = it.fleet.reload()
        it.do(orders)
        (kill,) = it.fleet.ready_overdue(it.incoming(0))
        assert isinstance(kill, Kill)
        assert kill.worker.id == it.incoming(0)
        (finish,) = it.dies(it.incoming(0), "was killed by SIGTERM")
        assert isinstance(finish, Finish)
        assert "was not ready after 60 s, and was killed by SIGTERM" in str(finish.failure)

    def test_one_that_is_merely_slow_at_the_first_start_is_left_alone(self) -> None:
        it = yard(filled=False)
        it.do(it.fleet.fill())
        assert it.fleet.ready_overdue(it.serving(0)) == []

    def test_of_two_more_that_come_meanwhile_one_follows(self) -> None:
        it = yard(1)
        first, orders = it.fleet.reload()
        it.do(orders)
        second, orders = it.fleet.reload()
        assert orders == []
        assert second is not first
        third, orders = it.fleet.reload()
        assert (third, orders) == (second, [])
        old = [it.serving(0), it.incoming(0)]
        assert it.ready(old[1])[1:] == [Start(0)]
        assert it.parks(old[0]) == [Finish(first, None)]
        it.ready(it.incoming(0))
        assert it.parks(old[1]) == [Finish(second, None)]

    def test_the_old_one_dies_while_the_new_one_boots(self) -> None:
        it = yard(1)
        roll, orders = it.fleet.reload()
        it.do(orders)
        new = it.incoming(0)
        assert it.dies(it.serving(0)) == []
        assert it.serving(0) == new
        assert it.ready(new) == [Finish(roll, None)]

    def test_both_die(self) -> None:
        it = yard(1)
        roll, orders = it.fleet.reload()
        it.do(orders)
        new = it.incoming(0)
        it.dies(it.serving(0))
        finish, start = it.dies(new)
        assert isinstance(finish, Finish)
        assert finish.roll is roll
        assert finish.failure is not None
        assert start == Start(0)

    def test_one_that_still_boots_is_started_anew(self) -> None:
        it = yard(1, filled=False)
        it.do(it.fleet.fill())
        booting = it.serving(0)
        roll, orders = it.fleet.reload()
        (kill,) = it.do(orders)
        assert isinstance(kill, Kill)
        assert it.dies(booting) == [Start(0)]
        assert it.ready(it.serving(0)) == [Finish(roll, None)]
        assert it.fleet.slots[0].streak.count == 0

    def test_slots_that_were_given_up_get_another_try(self) -> None:
        it = yard(2, max_crashes=1)
        it.dies(it.serving(0))
        roll, orders = it.fleet.reload()
        assert it.do(orders) == [Start(0)]
        it.ready(it.serving(0))
        old = it.serving(1)
        it.ready(it.incoming(1))
        assert it.parks(old) == [Finish(roll, None)]

    def test_a_slot_that_is_scaled_away_meanwhile_does_not_hold_it_up(self) -> None:
        it = yard(2)
        roll, orders = it.fleet.reload()
        it.do(orders)
        it.ready(it.incoming(0))
        new = it.incoming(1)
        orders = it.do(it.fleet.scale(1))
        retired = [order.worker.id for order in orders if isinstance(order, Retire)]
        assert new in retired
        leaving = [one for one in it.fleet.members if one != it.serving(0)]
        *before, last = [it.parks(one) for one in leaving]
        assert (before, last) == ([[]] * 2, [Finish(roll, None)])

    def test_a_fork_that_is_refused_aborts_it(self) -> None:
        it = yard(2)
        it.refuse = True
        roll, orders = it.fleet.reload()
        assert it.do(orders) == [Start(0), Finish(roll, "no room")]
        assert it.states() == [SlotState.READY] * 2


class TestTheEndOfAReload:
    """It waits for the old workers to take no connection any more, and for nothing else."""

    def settling(self, it: Yard) -> tuple[Roll, int]:
        """A reload that waits for the last old worker; return that, too."""
        old = [it.serving(slot) for slot in it.fleet.slots]
        roll, orders = it.fleet.reload()
        it.do(orders)
        for slot in it.fleet.slots:
            it.ready(it.incoming(slot))
        for worker in old[:-1]:
            it.parks(worker)
        assert it.fleet.at_work == "reload"
        assert Finish(roll, None) not in it.orders
        return roll, old[-1]

    def test_the_death_of_an_old_worker_is_as_good_as_its_word(self) -> None:
        it = yard(2)
        roll, old = self.settling(it)
        assert it.dies(old, "was killed by SIGKILL") == [Finish(roll, None)]
        assert it.fleet.at_work is None

    def test_one_whose_slot_is_scaled_away_is_waited_for(self) -> None:
        it = yard(2)
        roll, old = self.settling(it)
        it.do(it.fleet.scale(1))
        assert it.dies(old, crashed=False) == [Finish(roll, None)]

    def test_one_that_had_parked_of_its_own_will_before_is_not_waited_for(self) -> None:
        it = yard(1)
        it.parks(it.serving(0))
        roll, orders = it.fleet.reload()
        it.do(orders)
        assert it.ready(it.incoming(0))[1:] == [Finish(roll, None)]

    def test_a_worker_that_was_retired_before_it_began_is_waited_for(self) -> None:
        it = yard(2)
        scaled_away = it.serving(1)
        it.do(it.fleet.scale(1))
        roll, old = self.settling(it)
        assert it.parks(old) == []
        assert it.parks(scaled_away) == [Finish(roll, None)]

    def test_the_workers_that_serve_on_are_not_waited_for(self) -> None:
        it = yard(3)
        worker = it.serving(1)
        found = it.fleet.recycle(worker, "is old")
        assert found is not None
        it.do(found[1])
        it.ready(it.incoming(1))
        assert it.parks(worker) == [Finish(found[0], None)]

    def test_the_next_reload_begins_meanwhile(self) -> None:
        it = yard(1)
        first, oldest = self.settling(it)
        second, orders = it.fleet.reload()
        assert it.do(orders) == [Start(0)]
        old = it.serving(0)
        it.ready(it.incoming(0))
        assert it.parks(old) == []
        assert it.parks(oldest) == [Finish(first, None), Finish(second, None)]

    def test_a_stop_leaves_it_to_the_end_of_the_old_workers(self) -> None:
        it = yard(1)
        roll, old = self.settling(it)
        assert Finish(roll, None) not in it.do(it.fleet.close())
        assert it.dies(old, crashed=False) == [Finish(roll, None)]


class TestRecycle:
    def test_only_that_worker_is_replaced(self) -> None:
        it = yard()
        worker = it.serving(1)
        found = it.fleet.recycle(worker, "is old")
        assert found is not None
        assert it.do(found[1]) == [Start(1)]
        (retire,) = it.ready(it.incoming(1))
        assert isinstance(retire, Retire)
        assert it.parks(worker) == [Finish(found[0], None)]

    def test_not_while_its_slot_is_to_be_reloaded_anyway(self) -> None:
        it = yard()
        it.do(it.fleet.reload()[1])
        assert it.fleet.recycle(it.serving(2), "is old") is None

    def test_not_one_that_is_gone(self) -> None:
        it = yard()
        worker = it.serving(1)
        it.dies(worker)
        assert it.fleet.recycle(worker, "is old") is None


class TestScale:
    def test_up_fills_new_slots(self) -> None:
        it = yard(1)
        assert it.do(it.fleet.scale(3)) == [Start(1), Start(2)]

    def test_down_drains_those_with_the_highest_numbers(self) -> None:
        it = yard(3)
        leaving = {it.serving(1), it.serving(2)}
        orders = it.do(it.fleet.scale(1))
        assert {order.worker.id for order in orders if isinstance(order, Retire)} == leaving
        assert [order for worker in leaving for order in it.dies(worker, crashed=False)] == []
        assert list(it.fleet.slots) == [0]

    def test_with_no_slots_left_it_waits_for_more(self) -> None:
        it = yard(1)
        worker = it.serving(0)
        it.do(it.fleet.scale(0))
        it.dies(worker, crashed=False)
        assert not it.fleet.is_over
        assert it.do(it.fleet.scale(1)) == [Start(0)]

    def test_a_slot_that_comes_back_has_its_old_number(self) -> None:
        it = yard(2)
        it.do(it.fleet.scale(1))
        assert it.do(it.fleet.scale(2)) == [Start(1)]


def test_after_close_nobody_is_started_and_it_is_over_with_the_last_death() -> None:
    it = yard(2)
    roll, orders = it.fleet.reload()
    it.do(orders)
    orders = it.do(it.fleet.close())
    assert [order for order in orders if isinstance(order, Finish)] == [
        Finish(roll, "the supervisor was stopped")
    ]
    for worker in list(it.fleet.members):
        assert not it.fleet.is_over
        assert it.dies(worker, crashed=False) == []
    assert it.fleet.is_over
