from __future__ import annotations

import pytest

from mpcluster.states import IllegalStepError
from mpcluster.supervision.slot import TRANSITIONS, SlotState, SlotStep, advance


def test_every_state_can_be_closed_and_closed_is_for_good() -> None:
    assert all(advance(state, SlotStep.CLOSE) is SlotState.CLOSED for state in SlotState)
    assert [step for state, step in TRANSITIONS if state is SlotState.CLOSED] == [SlotStep.CLOSE]


def test_a_step_that_the_table_does_not_have_raises() -> None:
    with pytest.raises(IllegalStepError, match="a slot that is empty cannot get ready"):
        advance(SlotState.EMPTY, SlotStep.GET_READY)


def test_every_state_can_be_reached() -> None:
    reached = {SlotState.EMPTY}
    for _ in SlotState:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(SlotState)
