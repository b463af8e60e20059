"""The results of imap, as their consumer sees them; what brings them is pretended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from mpcluster.pool import records
from mpcluster.pool.arrivals import Arrivals, UnorderedArrivals
from mpcluster.pool.calls import Options
from mpcluster.pool.engine import Engine
from mpcluster.pool.functions import Function
from mpcluster.pool.imap import IMapIterator


class Bringer:
    """In the place of an engine: each wait does the next of what is to come."""

    def __init__(self) -> None:
        self.to_come: deque[Callable[[], object]] = deque()

    def wait(self, _awaited: object, _deadline: float | None) -> None:
        if self.to_come:
            self.to_come.popleft()()


def make(kind: type[Arrivals] = Arrivals) -> tuple[Bringer, Arrivals, IMapIterator]:
    bringer = Bringer()
    engine = cast("Engine", bringer)
    arrivals = kind(engine, None, records.ONE, abs, Function(1), Options())
    return bringer, arrivals, IMapIterator(arrivals)


def test_results_are_put_in_order():
    _, arrivals, results = make()
    arrivals.put(3, [3])
    arrivals.put(1, [1, 2])
    arrivals.put(4, [4, 5])
    assert not arrivals.ready()
    arrivals.put(0, [0])
    arrivals.end_after(6)
    assert list(results) == [0, 1, 2, 3, 4, 5]


def test_unordered_results_come_as_they_are():
    _, arrivals, results = make(UnorderedArrivals)
    arrivals.put(3, [3])
    arrivals.put(1, [1, 2])
    arrivals.end_after(3)
    assert list(results) == [3, 1, 2]


@pytest.mark.parametrize("kind", [Arrivals, UnorderedArrivals])
def test_an_error_comes_in_its_place_and_the_results_behind_it_after_it(kind):
    _, arrivals, results = make(kind)
    error = ValueError("it")
    arrivals.put(0, [0, 1])
    arrivals.put_error(2, error)
    arrivals.put(3, [3])
    arrivals.end_after(4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="it") as caught:
        next(results)
    assert caught.value is error
    assert next(results) == 3
    with pytest.raises(StopIteration):
        next(results)


def test_a_task_that_raises_stop_iteration_does_not_end_the_loop_without_a_word():
    _, arrivals, results = make()
    arrivals.put_error(0, StopIteration())
    arrivals.put(1, [1])
    arrivals.end_after(2)
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)
    assert list(results) == [1]


def test_a_result_that_is_late_can_be_asked_for_again():
    bringer, arrivals, results = make()
    with pytest.raises(TimeoutError):
        results.next(0)
    bringer.to_come.append(lambda: arrivals.put(0, ["there"]))
    assert results.next(60) == "there"


def test_what_interrupts_the_wait_does_not_end_the_results():
    bringer, arrivals, results = make()

    def interrupt() -> None:
        raise KeyboardInterrupt

    bringer.to_come += (interrupt, lambda: arrivals.put(0, [0, 1]))
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert [next(results), next(results)] == [0, 1]


def test_a_second_thread_gets_the_rest_of_what_the_first_is_given():
    """`chain` keeps one piece: a new one in its place would lose what is left of that."""
    _, arrivals, results = make()
    arrivals.put(0, [0, 1, 2])
    arrivals.put(3, [3])
    arrivals.end_after(4)
    source = results._pieces
    first, second = next(source), next(source)
    assert first is second
    assert list(first) == [0, 1, 2]
    assert list(results) == [3]


def test_how_many_are_ahead_is_known_to_the_item():
    _, arrivals, results = make()
    arrivals.given_out = 10
    assert results.ahead == 10
    arrivals.put(0, list(range(10)))
    for taken in range(1, 10):
        next(results)
        assert results.ahead == 10 - taken


def test_at_most_so_many_are_handed_out_at_once():
    _, arrivals, results = make()
    heard: list[int] = []
    arrivals.on_taken = lambda: heard.append(results.ahead)
    arrivals.given_out = 8
    results.bound(3)
    arrivals.put(0, list(range(8)))
    arrivals.end_after(8)
    assert list(results) == list(range(8))
    assert heard == [7, 4, 1, 0]  # with the first of each lot, and at the end


def test_the_end_of_the_pool_comes_after_what_is_there():
    _, arrivals, results = make()
    arrivals.put(0, [0])
    arrivals.put(2, [2])
    arrivals.fail(RuntimeError("ended"))
    arrivals.put(1, [1])  # too late
    assert next(results) == 0
    with pytest.raises(RuntimeError, match="ended"):
        next(results)
    assert list(results) == []


def test_an_input_that_raises_is_the_last_result():
    _, arrivals, results = make()
    arrivals.given_out = 2
    arrivals.end_with(OSError("the input"))
    arrivals.put(0, [0, 1])
    seen: list[Any] = []
    with pytest.raises(OSError, match="the input"):
        seen.extend(results)
    assert seen == [0, 1]
    assert list(results) == []


def test_a_result_that_was_raised_is_kept_by_nobody():
    import gc
    import weakref

    class Mine(Exception):
        pass

    _, arrivals, results = make()
    error: Mine | None = Mine()
    reference = weakref.ref(error)
    arrivals.put_error(0, error)  # type: ignore[arg-type]
    del error
    gc.disable()
    try:
        try:
            next(results)
        except Mine:
            pass
        assert reference() is None
    finally:
        gc.enable()


def test_a_result_that_was_taken_is_kept_by_nobody_while_others_of_its_piece_are_left():
    import weakref

    class Thing:
        pass

    _, arrivals, results = make()
    arrivals.put(0, [Thing(), Thing()])
    taken = weakref.ref(next(results))
    assert taken() is None
