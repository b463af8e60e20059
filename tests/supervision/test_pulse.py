from __future__ import annotations

from mpcluster.supervision.pulse import BEATS, Pulse


def test_who_answers_is_alive() -> None:
    pulse = Pulse(4.0)
    for beat in range(20):
        _, hung = pulse.beat([1], float(beat))
        assert not hung
        pulse.answered(1)


def test_who_leaves_every_question_unanswered_is_hung() -> None:
    pulse = Pulse(4.0)
    hung = [
        pulse.beat([1, 2], float(beat))[1] for beat in range(BEATS + 1) if not pulse.answered(2)
    ]
    assert hung == [[]] * BEATS + [[1]]


def test_it_is_told_once() -> None:
    pulse = Pulse(4.0)
    hung = [pulse.beat([1], float(beat))[1] for beat in range(2 * BEATS)]
    assert hung.count([1]) == 1


def test_nobody_is_blamed_for_the_time_that_the_master_itself_stood_still() -> None:
    pulse = Pulse(4.0)
    for beat in range(BEATS):
        pulse.beat([1], float(beat))
    assert pulse.beat([1], 1000.0)[1] == []


def test_every_question_has_its_own_number() -> None:
    pulse = Pulse(4.0)
    assert len({pulse.beat([], float(beat))[0] for beat in range(5)}) == 5
