"""What goes between a session and its worker: packed where it is plain, and its end told once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import execnet
import pytest
from execnet.gateway_base import dumps_internal, loads_internal

from mpcluster.testing.packing import ControllerChannel, LostChannel, WorkerChannel, pack

END = object()


class Wire:
    """Stands for execnet's channel: what one end sends waits here for the other."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed_with: list[Any] = []
        self.callback: Any = None
        self.is_closed = False
        self.is_broken = False
        self._receiveclosed = threading.Event()

    def send(self, item: object) -> None:
        if self.is_broken:
            raise OSError("nobody is there")
        self.sent.append(loads_internal(dumps_internal(item)))

    def receive(self) -> Any:
        return self.sent.pop(0)

    def setcallback(self, callback: Any, endmarker: object) -> None:
        self.callback = callback

    def isclosed(self) -> bool:
        return self.is_closed

    def close(self, error: object) -> None:
        self.closed_with.append(error)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def heard(wire: Wire) -> list[Any]:
    """What the controller's session is told of all that was sent."""
    told: list[Any] = []
    other = Wire()
    ControllerChannel(other, {}).setcallback(told.append, END)
    for item in wire.sent:
        other.callback(item)
    return told


def report(when: str, *sections: object) -> tuple[str, dict[str, Any]]:
    data = {"when": when, "nodeid": "test_it", "outcome": "passed", "sections": list(sections)}
    return "testreport", {"data": data}


PLAIN = ("name", {"a": [1, 2.5, None, True], "b": (b"bytes", {1, 2}, frozenset("x"), "\u20ac")})


def test_what_is_plain_arrives_as_it_was(wire) -> None:
    WorkerChannel(wire).send(PLAIN)
    assert heard(wire) == [PLAIN]
    assert isinstance(wire.sent[0], bytes)


def test_what_execnet_cannot_send_it_refuses_in_its_own_words(wire) -> None:
    class Number(int):
        pass

    assert pack((Number(1),)) is None
    with pytest.raises(execnet.DumpError, match="Number"):
        WorkerChannel(wire).send(("name", {"value": Number(1)}))


class Waiting:
    """Stands for the queue of a worker's tests."""

    def __init__(self, *waiting: int) -> None:
        self.waiting = list(waiting)

    @contextlib.contextmanager
    def lock(self) -> Iterator[list[int]]:
        yield self.waiting


BEGUN, FINISHED, COMPLETE = (("logstart", {}), ("logfinish", {}), ("runtest_protocol_complete", {}))


def lengths(wire: Wire, channel: WorkerChannel, *events: object) -> list[int]:
    """Send the events; return after each how many messages have gone."""
    numbers = []
    for event in events:
        channel.send(event)
        numbers.append(len(wire.sent))
    return numbers


def test_the_last_test_is_told_of_at_once(wire) -> None:
    events = [BEGUN, report("setup"), report("call"), report("teardown"), FINISHED, COMPLETE]
    channel = WorkerChannel(wire)
    channel.watch(Waiting())
    assert lengths(wire, channel, *events) == [1, 1, 2, 2, 2, 3]
    assert heard(wire) == events


def test_the_end_of_a_test_goes_with_the_beginning_of_the_next(wire) -> None:
    channel = WorkerChannel(wire)
    channel.watch(Waiting(7))
    events = [report("teardown"), FINISHED, COMPLETE, BEGUN]
    assert lengths(wire, channel, *events) == [0, 0, 0, 1]
    assert heard(wire) == events


def test_a_test_that_is_stolen_takes_along_what_waited_for_its_beginning(wire) -> None:
    channel = WorkerChannel(wire)
    channel.watch(tests := Waiting(7))
    channel.send(COMPLETE)
    tests.waiting.clear()
    assert lengths(wire, channel, stolen := ("unscheduled", {"indices": [7]})) == [1]
    assert heard(wire) == [COMPLETE, stolen]


@pytest.mark.parametrize(
    "said",
    [
        report("setup", ["Captured stdout setup", "written"]),
        ("testreport", {"data": {"when": "setup", "outcome": "failed", "sections": []}}),
    ],
)
def test_a_setup_that_has_something_to_say_is_heard_before_the_test_runs(wire, said) -> None:
    assert lengths(wire, WorkerChannel(wire), said) == [1]


def test_what_is_held_is_sent_before_the_end(wire) -> None:
    channel = WorkerChannel(wire)
    channel.send(report("teardown"))
    channel.close("keyboard-interrupted")
    assert heard(wire) == [report("teardown")]
    assert wire.closed_with == ["keyboard-interrupted"]


def test_a_command_arrives_as_it_was(wire) -> None:
    ControllerChannel(wire, {}).send(PLAIN)
    assert WorkerChannel(wire).receive() == PLAIN


def test_ids_of_tests_are_kept_once_for_all_workers() -> None:
    known: dict[str, str] = {}
    lists = []
    for _ in range(2):
        wire = Wire()
        told: list[Any] = []
        ControllerChannel(wire, known).setcallback(told.append, END)
        ids = [f"test_it[{number}]" for number in range(3)]
        wire.callback(pack((("collectionfinish", {"ids": ids}),)))
        lists.append(told[0][1]["ids"])
    assert lists[0] == lists[1]
    assert lists[0] is not lists[1]
    assert all(one is other for one, other in zip(*lists, strict=True))


def test_the_end_that_comes_while_the_callback_is_set_is_told_once(wire) -> None:
    told: list[Any] = []
    wire._receiveclosed.set()  # execnet found neither queue nor callback
    ControllerChannel(wire, {}).setcallback(told.append, END)
    assert told == [END]
    wire.callback(END)  # or it found the callback after all
    assert told == [END]


def test_a_worker_that_has_said_that_it_ends_can_be_sent_more(wire) -> None:
    channel = ControllerChannel(wire, {})
    wire.is_broken = wire.is_closed = True
    channel.send(("runtests", {"indices": [1]}))
    assert not wire.sent


def test_a_worker_that_was_never_there_has_an_end_too() -> None:
    told: list[Any] = []
    channel = LostChannel()
    channel.send(("runtests", {}))
    channel.setcallback(told.append, END)
    assert told == [END]
    assert channel.isclosed()
