"""The table of a worker's life."""

from __future__ import annotations

import itertools

import pytest

from mpcluster.states import TRANSITIONS, IllegalStepError, Step, WorkerState, advance

ORDER = list(WorkerState)
ILLEGAL = [pair for pair in itertools.product(WorkerState, Step) if pair not in TRANSITIONS]


@pytest.mark.parametrize(("state", "step"), ILLEGAL, ids=lambda value: value.value)
def test_a_step_that_the_table_does_not_have_raises_and_says_which(
    state: WorkerState, step: Step
) -> None:
    with pytest.raises(IllegalStepError, match=f"a {state.value} worker cannot {step.value}"):
        advance(state, step)


@pytest.mark.parametrize(("state", "step"), TRANSITIONS, ids=lambda value: value.value)
def test_a_step_leads_where_the_table_says_and_never_back(state: WorkerState, step: Step) -> None:
    after = advance(state, step)
    assert after is TRANSITIONS[state, step]
    assert ORDER.index(after) >= ORDER.index(state)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[WorkerState.NEW, Step.DIE] = WorkerState.DEAD  # type: ignore[index]


def test_every_state_but_the_last_can_come_to_its_end() -> None:
    """From everywhere a way leads to DEAD, and through DISCONNECTED."""
    for state in ORDER[1:-1]:
        reached = {state}
        while WorkerState.DEAD not in reached:
            more = {after for (before, _), after in TRANSITIONS.items() if before in reached}
            assert not more <= reached, state
            reached |= more
    into_death = {before for (before, _), after in TRANSITIONS.items() if after is ORDER[-1]}
    assert into_death == {WorkerState.DISCONNECTED, WorkerState.DEAD}


def test_being_asked_to_leave_is_no_error_in_any_state_after_the_start() -> None:
    for state in ORDER[1:]:
        advance(state, Step.DRAIN)


def test_what_is_asked_too_late_changes_nothing() -> None:
    for state in (WorkerState.DRAINING, WorkerState.DISCONNECTED, WorkerState.DEAD):
        assert advance(state, Step.DRAIN) is state
