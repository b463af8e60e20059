"""How a program is asked for a sign of life: in this very main thread, by real signals."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from mpcluster.leaving import TRIES, Program


class Asked:
    """A program that is asked, and how often it has answered."""

    def __init__(self) -> None:
        self.answers = 0
        self.program = Program(
            threading.get_ident(), lambda: None, lambda: None, self.handler, grace=0.0
        )

    def handler(self, _number: int, _frame: FrameType | None) -> None:
        self.program.on_sigurg()

    def probe(self) -> int:
        """Ask; how many answers have come by it?"""
        before = self.answers
        self.program.probe(self.alive)
        return self.answers - before

    def alive(self) -> None:
        self.answers += 1


@pytest.fixture(name="asked")
def asked_fixture() -> Iterator[Asked]:
    """It is asked by SIGURG, as a worker is from its fork on."""
    asked = Asked()
    before = signal.signal(signal.SIGURG, asked.handler)
    yield asked
    signal.signal(signal.SIGURG, before)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_the_main_thread_answers(asked: Asked) -> None:
    assert [asked.probe() for _ in range(3)] == [1, 1, 1]


def test_where_it_does_not_get_to_it_nobody_answers_for_it(asked: Asked) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        assert [asked.probe() for _ in range(2 * TRIES)] == [0] * 2 * TRIES
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
    assert asked.answers == 2 * TRIES


@pytest.mark.parametrize("own", ["handler", signal.SIG_IGN, signal.SIG_DFL])
def test_a_program_that_has_taken_the_signal_for_itself_is_answered_for_and_warned_of_once(
    asked: Asked, caplog: pytest.LogCaptureFixture, own: Any
) -> None:
    heard: list[int] = []
    signal.signal(
        signal.SIGURG, own if own != "handler" else lambda number, _frame: heard.append(number)
    )
    assert [asked.probe() for _ in range(3 * TRIES)] == [1] * 3 * TRIES
    (warning,) = warnings(caplog)
    assert "has taken SIGURG for itself" in warning
    assert len(heard) == (TRIES if own == "handler" else 0)  # then it is left alone


def calling_on(to: Callable[..., object]) -> Callable[..., None]:
    def handler(number: int, frame: FrameType | None) -> None:
        to(number, frame)

    return handler


def test_one_whose_handler_calls_on_answers_itself_after_the_first_time(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    signal.signal(signal.SIGURG, calling_on(asked.handler))
    asked.probe()
    assert [asked.probe() for _ in range(2 * TRIES)] == [1] * 2 * TRIES
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        assert asked.probe() == 0  # nobody answers for it any more
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
    assert warnings(caplog) == []


def test_the_one_before_that_is_put_back_answers_again(asked: Asked) -> None:
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    for _ in range(TRIES):
        asked.probe()
    signal.signal(signal.SIGURG, asked.handler)
    asked.probe()  # with it those that were not answered
    assert [asked.probe() for _ in range(3)] == [1, 1, 1]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        assert asked.probe() == 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
