"""The functions that a pool's workers know."""

from __future__ import annotations

import functools
import operator

import pytest

from mpcluster.errors import SerializationError
from mpcluster.pool.functions import DEEPEST, Function, Functions


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def get(self) -> int:
        return self.count


def test_a_function_has_one_entry():
    functions = Functions()
    double = lambda x: 2 * x  # noqa: E731
    assert functions.of(double) is functions.of(double)
    assert functions.of(abs) is functions.of(abs)
    assert functions.of(Counter) is functions.of(Counter)
    assert functions.of(double) is not functions.of(abs)


def test_what_has_a_state_has_a_new_entry_each_time():
    functions = Functions()
    counter = Counter()
    for stateful in (counter.get, functools.partial(operator.add, 1), [].append):
        assert functions.of(stateful) is not functions.of(stateful)


def test_a_closure_that_was_bound_anew_has_a_new_entry():
    functions = Functions()
    value = 1

    def get() -> int:
        return value

    before = functions.of(get)
    assert functions.of(get) is before
    value = 2
    assert functions.of(get) is not before


def test_a_function_is_not_kept_alive_and_its_place_is_not_mistaken():
    functions = Functions()
    numbers = set()
    for n in range(50):
        numbers.add(functions.of(eval(f"lambda: {n}")).number)
    assert len(numbers) == 50
    assert not functions._known


def test_it_is_pickled_once():
    entry = Function(1)
    assert entry.pickled(lambda: 1) is entry.pickled(None)


def test_one_that_cannot_be_pickled_is_named():
    lock = __import__("threading").Lock()
    with pytest.raises(SerializationError, match="closure lock"):
        Function(1).pickled(lambda: lock)


def test_short_calls_are_given_many_at_once_and_long_ones_one_by_one():
    entry = Function(1)
    assert entry.depth == 1
    entry.ran(10, 10 * 1e-7)
    assert entry.depth == DEEPEST
    entry.ran(1, 0.1)  # one that became slow is believed at once
    assert entry.depth == 1
    for _ in range(100):
        entry.ran(10, 10 * 1e-4)
    assert 15 <= entry.depth <= 20


def test_one_short_call_that_was_held_up_does_not_make_a_function_slow():
    entry = Function(1)
    entry.ran(100, 100 * 1e-6)
    entry.ran(1, 0.005)
    assert entry.depth > 400
    for _ in range(5):  # but some of them do
        entry.ran(1, 0.005)
    assert entry.depth == 1
