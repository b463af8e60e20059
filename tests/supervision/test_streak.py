from __future__ import annotations

from mpcluster.supervision import Rules
from mpcluster.supervision.streak import Streak

RULES = Rules(backoff=1, max_backoff=5, min_uptime=10, max_crashes=7)


def test_the_first_restart_comes_at_once_and_each_further_one_waits_twice_as_long() -> None:
    streak = Streak(RULES)
    assert [streak.died(None) for _ in range(6)] == [0, 1, 2, 4, 5, 5]


def test_after_too_many_in_a_row_it_gives_up() -> None:
    streak = Streak(RULES)
    waits = [streak.died(3.0) for _ in range(7)]
    assert waits[-1] is None
    assert None not in waits[:-1]


def test_a_worker_that_was_stable_ends_the_row() -> None:
    streak = Streak(RULES)
    for _ in range(5):
        streak.died(None)
    assert streak.died(10.0) == 0


def test_a_long_row_does_not_overflow() -> None:
    streak = Streak(Rules(backoff=1, max_backoff=5, max_crashes=10_000))
    assert [streak.died(None) for _ in range(5_000)][-1] == 5
