"""xdist's queue of events, seen first by us."""

from __future__ import annotations

import queue

import pytest

from mpcluster.testing.events import EventQueue

NEVER = lambda: None  # noqa: E731


def test_events_come_in_order_as_they_are_seen() -> None:
    seen = EventQueue(lambda event: (event[0].upper(), event[1]), NEVER)
    for name in ("one", "two"):
        seen.put((name, {}))
    assert [seen.get(), seen.get()] == [("ONE", {}), ("TWO", {})]


def test_what_is_kept_back_is_passed_over() -> None:
    kept = []

    def see(event):
        if event[0] == "theirs":
            return event
        kept.append(event)
        return None

    events = EventQueue(see, NEVER)
    for name in ("ours", "theirs"):
        events.put((name, {}))
    assert events.get() == ("theirs", {})
    assert kept == [("ours", {})]


def test_without_an_event_the_patience_ends_as_with_any_queue() -> None:
    events = EventQueue(lambda event: event, NEVER)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.01)
    with pytest.raises(queue.Empty):
        events.get(block=False)


def test_what_is_due_is_looked_at_while_nothing_comes() -> None:
    looks = iter([0.0, 0.0, None])

    def look():
        wait = next(looks)
        if wait is None:
            events.put(("woken", {}))
        return wait

    events = EventQueue(lambda event: event, look)
    assert events.get() == ("woken", {})


def test_at_the_end_what_is_left_is_seen() -> None:
    seen = []
    events = EventQueue(seen.append, NEVER)
    events.put(("left", {}))
    events.drain()
    assert seen == [("left", {})]
