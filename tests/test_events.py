"""Callbacks by name, and events that nobody has subscribed to yet."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from typing import Any

import pytest

from mpcluster.events import Emitter, KeptEvents, call, report

NAMES = ("message", "death")


class Owner:
    """Stands for a worker object."""


def heard(*names: str) -> Any:
    return lambda _owner, event: event in names


def taken(kept: KeptEvents, *names: str, key: object = None) -> list[tuple[object, ...]]:
    return [(event, *args) for _, event, args in kept.take(heard(*names), key)]


class TestEmitter:
    def test_the_callbacks_come_in_the_order_of_their_subscription(self) -> None:
        emitter = Emitter(NAMES)
        first, second = emitter.add("death", print), emitter.add("death", len)
        assert emitter.take("death") == (first, second)

    def test_the_same_callback_twice_is_called_twice(self) -> None:
        emitter = Emitter(NAMES)
        emitter.add("death", print)
        emitter.add("death", print)
        assert emitter.take("death") == (print, print)

    def test_one_for_one_time_is_gone_after_it(self) -> None:
        emitter = Emitter(NAMES)
        emitter.add("death", print, once=True)
        emitter.add("death", len)
        assert emitter.take("death") == (print, len)
        assert emitter.take("death") == (len,)

    def test_an_unknown_event_is_refused_with_the_list_of_those_there_are(self) -> None:
        emitter = Emitter(NAMES)
        text = "there is no event 'exit'; there are: message, death"
        with pytest.raises(ValueError, match=text):
            emitter.add("exit", print)
        with pytest.raises(ValueError, match=text):
            emitter.discard("exit")

    def test_what_cannot_be_called_is_refused_and_not_subscribed(self) -> None:
        emitter = Emitter(NAMES)
        with pytest.raises(TypeError, match="a callback for 'death' must be callable, not 42"):
            emitter.add("death", 42)  # type: ignore[type-var]
        assert not emitter.has("death")

    def test_unsubscribing_takes_the_latest_subscription_of_a_callback(self) -> None:
        emitter = Emitter(NAMES)
        emitter.add("death", print)
        emitter.add("death", len)
        emitter.add("death", print)
        emitter.discard("death", print)
        assert emitter.take("death") == (print, len)

    def test_unsubscribing_without_a_callback_takes_all_of_that_event(self) -> None:
        emitter = Emitter(NAMES)
        emitter.add("death", print)
        emitter.add("message", print)
        emitter.discard("death")
        assert not emitter.has("death")
        assert emitter.has("message")

    def test_unsubscribing_what_is_not_subscribed_is_no_error(self) -> None:
        emitter = Emitter(NAMES)
        emitter.discard("death", print)
        emitter.discard("death")
        assert not emitter.has("death")

    def test_a_delivery_sees_the_set_that_it_began_with(self) -> None:
        emitter = Emitter(NAMES)
        emitter.add("death", lambda: emitter.add("death", print))
        (callback,) = emitter.take("death")
        callback()
        assert emitter.take("death") == (callback, print)

    def test_the_subscriber_is_told_of_after_the_subscription_stands(self) -> None:
        seen: list[tuple[str, bool]] = []
        emitter = Emitter(NAMES, lambda event: seen.append((event, emitter.has(event))))
        emitter.add("death", print)
        assert seen == [("death", True)]

    def test_subscriptions_of_many_threads_are_all_there(self) -> None:
        emitter = Emitter(NAMES)
        begin = threading.Barrier(8)

        def subscribe() -> None:
            begin.wait()
            for _ in range(200):
                emitter.add("message", print)

        threads = [threading.Thread(target=subscribe) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(emitter.take("message")) == 1600


class TestKeptEvents:
    def test_they_come_in_the_order_in_which_they_came_across_names_and_workers(self) -> None:
        kept, one, two = KeptEvents(), Owner(), Owner()
        kept.keep(1, one, "online", ())
        kept.keep(2, two, "online", (2,))
        kept.keep(1, one, "message", ("a",))
        assert taken(kept, "online", "message") == [("online",), ("online", 2), ("message", "a")]
        assert len(kept) == 0

    def test_what_nobody_hears_stays_in_its_place(self) -> None:
        kept, owner = KeptEvents(), Owner()
        for event in ("fork", "online", "message"):
            kept.keep(1, owner, event, ())
        assert taken(kept, "online") == [("online",)]
        assert taken(kept, "fork", "message") == [("fork",), ("message",)]

    def test_those_of_one_worker_come_in_their_order_across_names(self) -> None:
        kept, owner = KeptEvents(), Owner()
        for number, event in enumerate(("message", "listening", "message")):
            kept.keep(1, owner, event, (number,))
        in_order = [("message", 0), ("listening", 1), ("message", 2)]
        assert taken(kept, "message", "listening", key=1) == in_order

    def test_those_of_one_worker_can_be_taken_alone(self) -> None:
        kept, owner = KeptEvents(), Owner()
        kept.keep(1, owner, "message", ("mine",))
        kept.keep(2, owner, "message", ("yours",))
        assert taken(kept, "message", key=1) == [("message", "mine")]
        assert kept.events(2) == ("message",)
        assert kept.events(1) == ()

    def test_whoever_stops_listening_in_between_leaves_the_rest_in_order(self) -> None:
        kept, owner = KeptEvents(), Owner()
        for number in range(3):
            kept.keep(1, owner, "message", (number,), weight=10)
        first = next(kept.take(heard("message")))
        assert first[2] == (0,)
        assert "entries=2 bytes=20" in repr(kept)
        assert taken(kept, "message") == [("message", 1), ("message", 2)]

    def test_an_entry_that_is_taken_or_dropped_in_between_is_passed_over(self) -> None:
        kept, owner = KeptEvents(), Owner()
        for number in range(3):
            kept.keep(1, owner, "message", (number,))
        outer = kept.take(heard("message"))
        assert next(outer)[2] == (0,)
        assert next(kept.take(heard("message")))[2] == (1,)
        assert [args for _, _, args in outer] == [(2,)]

    def test_past_the_number_the_oldest_goes_and_that_is_told(self) -> None:
        kept, owner = KeptEvents(most=2), Owner()
        assert kept.keep(1, owner, "message", (1,))
        assert kept.keep(1, owner, "message", (2,))
        assert not kept.keep(1, owner, "message", (3,))
        assert taken(kept, "message") == [("message", 2), ("message", 3)]

    def test_past_the_weight_the_oldest_goes_until_it_fits(self) -> None:
        kept, owner = KeptEvents(weight=100), Owner()
        kept.keep(1, owner, "message", (1,), weight=60)
        kept.keep(1, owner, "message", (2,), weight=40)
        assert not kept.keep(1, owner, "message", (3,), weight=50)
        assert taken(kept, "message") == [("message", 2), ("message", 3)]
        assert "bytes=0" in repr(kept)

    def test_one_that_is_heavier_than_the_bound_is_kept_alone(self) -> None:
        kept, owner = KeptEvents(weight=100), Owner()
        kept.keep(1, owner, "message", (1,), weight=10)
        kept.keep(1, owner, "message", (2,), weight=1000)
        assert taken(kept, "message") == [("message", 2)]

    def test_a_worker_kept_weakly_is_not_kept_alive(self) -> None:
        kept, owner = KeptEvents(), Owner()
        kept.keep(1, owner, "death", (), weakly=True)
        del owner
        gc.collect()
        assert taken(kept, "death") == []
        assert len(kept) == 0

    def test_a_worker_is_kept_alive_by_default(self) -> None:
        kept = KeptEvents()
        kept.keep(1, Owner(), "death", ())
        gc.collect()
        assert taken(kept, "death") == [("death",)]

    def test_forgetting_one_worker_leaves_the_others(self) -> None:
        kept, owner = KeptEvents(), Owner()
        kept.keep(1, owner, "online", ())
        kept.keep(1, owner, "message", (), weight=7)
        kept.keep(2, owner, "message", ())
        kept.forget(1)
        kept.forget(3)
        assert len(kept) == 1
        assert "bytes=0" in repr(kept)

    def test_events_of_one_name_can_be_spared_from_it(self) -> None:
        kept, owner = KeptEvents(), Owner()
        kept.keep(1, owner, "online", ())
        kept.keep(1, owner, "message", ("said",))
        kept.forget(1, but="message")
        assert kept.events(1) == ("message",)


class TestReporting:
    @pytest.fixture
    def unraisable(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        seen: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", seen.append)
        return seen

    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
    def test_what_a_callback_raises_goes_to_the_hook_and_the_log_and_no_further(
        self, error: BaseException, unraisable: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        def callback(_number: int) -> None:
            raise error

        with caplog.at_level(logging.ERROR, "mpcluster"):
            call(callback, 1)
        (seen,) = unraisable
        assert seen.exc_value is error
        assert seen.object is callback
        assert "callback" in seen.err_msg
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[1] is error

    def test_without_a_log_it_is_told_once(
        self, unraisable: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        monkeypatch.setattr(logging.getLogger("mpcluster"), "hasHandlers", lambda: False)
        report("here", ValueError("no"), None)
        assert len(unraisable) == 1
        assert capfd.readouterr().err == ""

    def test_a_hook_that_fails_itself_stops_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def hook(_: object) -> None:
            raise RuntimeError("the hook")

        monkeypatch.setattr(sys, "unraisablehook", hook)
        report("here", ValueError("no"), None)
        assert "sys.unraisablehook itself failed" in caplog.text

    def test_the_interpreters_own_hook_prints_it(
        self, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
        report("in the watcher", ValueError("what it was"), None)
        printed = capfd.readouterr().err
        assert "in the watcher" in printed
        assert "ValueError: what it was" in printed
