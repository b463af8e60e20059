"""Calls of a map that travel together."""

from __future__ import annotations

from typing import Any

from mpcluster.pool import records
from mpcluster.pool.calls import Options
from mpcluster.pool.functions import Function
from mpcluster.pool.runs import Feed, Run, Supply


class Taker:
    """Notes what it gets."""

    kind = records.ONE
    options = Options()
    function = abs

    def __init__(self) -> None:
        self.known_as = Function(1)
        self.stopped = False
        self.given_out = 0
        self.length: int | None = None
        self.got: list[Any] = []

    def put(self, index: int, values: list[Any]) -> None:
        self.got.append((index, values))

    def put_error(self, index: int, error: BaseException) -> None:
        self.got.append((index, error))

    def end_after(self, length: int) -> None:
        self.length = length

    def end_with(self, error: BaseException) -> None:
        self.got.append(error)

    def fail(self, error: BaseException) -> None:
        self.got.append(error)


def test_what_is_cut_off_goes_on_where_the_first_part_ends():
    run = Run(Taker(), 10, list("abcdef"))
    run.number = 100
    rest = run.cut(2)
    assert (run.index, run.number, run.all_given()) == (10, 100, ["a", "b"])
    assert (rest.index, rest.number, rest.all_given()) == (12, 102, ["c", "d", "e", "f"])
    assert rest.cut(3).given == "f"
    assert rest.all_given() == ["c", "d", "e"]


def test_a_call_by_itself_is_finished_at_its_index_and_keeps_no_argument():
    taker = Taker()
    given = [object(), object()]
    run = Run(taker, 4, given)
    rest = run.cut(1)
    run.finish("one")
    error = ValueError()
    rest.fail(error)
    assert taker.got == [(4, ["one"]), (5, error)]
    assert given == [None, None]


def test_a_feed_gives_as_many_as_are_asked_for_and_then_the_end():
    taker = Taker()
    feed = Feed(taker, range(5))
    first, is_over = feed.take(3)
    assert first is not None
    assert (first.index, first.all_given(), is_over) == (0, [0, 1, 2], False)
    second, is_over = feed.take(3)
    assert second is not None
    assert (second.index, second.all_given(), is_over) == (3, [3, 4], True)
    assert taker.length == 5


def test_a_feed_whose_dict_has_changed_ends_with_the_error():
    taker = Taker()
    changing = {1: 1, 2: 2}
    feed = Feed(taker, changing)
    feed.take(1)
    changing[3] = 3
    assert feed.take(1) == (None, True)
    assert isinstance(taker.got[0], RuntimeError)


def test_what_is_added_to_a_supply_is_told_of_once():
    supply = Supply(Taker())
    assert supply.add("a")  # nobody would look for it
    assert supply.has_to_be_submitted()
    assert not supply.add("b")
    assert not supply.has_to_be_submitted()


def test_a_supply_that_was_emptied_has_to_be_told_of_again():
    supply = Supply(Taker())
    supply.add("a")
    assert supply.has_to_be_submitted()
    run, is_over = supply.take(10)
    assert run is not None
    assert (run.index, run.all_given(), is_over) == (0, ["a"], True)
    assert supply.add("b")
    assert supply.has_to_be_submitted()
    run, is_over = supply.take(1)
    assert run is not None
    assert (run.index, is_over) == (1, True)


def test_a_supply_of_which_something_is_left_stays_known():
    supply = Supply(Taker())
    supply.add("a")
    supply.add("b")
    assert supply.has_to_be_submitted()
    assert supply.take(1)[1] is False
    assert not supply.has_to_be_submitted()


def test_of_a_map_that_was_stopped_nothing_more_is_given():
    taker = Taker()
    supply = Supply(taker)
    supply.add("a")
    taker.stopped = True
    assert supply.take(1) == (None, True)
    assert Feed(taker, range(3)).take(1) == (None, True)
