"""What a slot's workers have done, the gone ones included."""

from __future__ import annotations

from mpcluster.supervision.ledger import Counts, Ledger
from mpcluster.tally import Tally


def counting(accepted: int | None) -> Tally:
    """A tally as a worker would have left it."""
    tally = Tally()
    tally.cells[0] = accepted or 0
    tally.cells[1] = accepted is None
    return tally


def test_a_workers_end_takes_nothing_from_its_slot() -> None:
    ledger = Ledger()
    ledger.begin(1, 0, counting(5))
    ledger.message(1)
    ledger.end(1)
    ledger.begin(2, 0, counting(2))
    ledger.message(2)
    assert ledger.of_slot(0) == Counts(messages=2, accepted=7)
    assert ledger.of(2) == Counts(messages=1, accepted=2)


def test_the_two_workers_of_a_slot_that_is_rolled_are_added_up() -> None:
    ledger = Ledger()
    ledger.begin(1, 0, counting(5))
    ledger.begin(2, 0, counting(1))
    ledger.begin(3, 1, counting(100))
    assert ledger.of_slot(0).accepted == 6


def test_a_slot_with_a_worker_whose_connections_were_not_counted_has_no_sum() -> None:
    ledger = Ledger()
    ledger.begin(1, 0, counting(None))
    ledger.end(1)
    ledger.begin(2, 0, counting(3))
    assert ledger.of_slot(0) == Counts(messages=0, accepted=None)


def test_nobody_has_done_nothing() -> None:
    ledger = Ledger()
    ledger.message(1)  # a late one, of a worker whose end was told
    ledger.end(1)
    assert ledger.of(1) == ledger.of_slot(0) == Counts()
