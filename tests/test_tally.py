"""A worker's counts: written by the worker, read by its parent, and by nobody below it."""

from __future__ import annotations

import os
from collections.abc import Callable

from mpcluster import tally
from mpcluster.tally import Tally


def in_a_child(program: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            program()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_parent_sees_what_a_worker_has_counted_and_keeps_it_when_that_is_gone() -> None:
    mine = Tally()

    def worker() -> None:
        tally.keep(mine)
        for _ in range(3):
            tally.accepted()

    in_a_child(worker)
    assert mine.accepted == 3


def test_who_has_no_tally_counts_nothing() -> None:
    tally.accepted()
    tally.uncounted()
    tally.keep(None)
    tally.accepted()


def test_what_a_worker_forks_itself_does_not_count_as_the_worker() -> None:
    mine = Tally()

    def worker() -> None:
        tally.keep(mine)
        tally.accepted()
        in_a_child(tally.accepted)
        in_a_child(tally.uncounted)

    in_a_child(worker)
    assert mine.accepted == 1


def test_where_some_are_not_counted_no_number_is_told() -> None:
    mine = Tally()

    def worker() -> None:
        tally.keep(mine)
        tally.accepted()
        tally.uncounted()

    in_a_child(worker)
    assert mine.accepted is None
    assert "None" in repr(mine)
