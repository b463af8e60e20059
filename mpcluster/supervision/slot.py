"""One place for a worker, with a number that stays: the life of a slot as one table.

A slot has at most one worker that serves, and while it is rolled one more that is to take
its place. Workers come and go; number 0 is always number 0 (what is to run once in a
cluster asks ``cluster.worker.slot == 0``)::

    EMPTY ──START──► BOOTING ──GET_READY──► READY ──ROLL──► ROLLING
      ▲                │                      │ ▲              │ │
      └──────DIE───────┴──────────DIE─────────┘ └──TAKE_OVER───┘ └─ the serving one dies:
      │                                         └──FAIL_TO_ROLL┘    the new one is BOOTING
      ├─WAIT──► WAITING   (until its worker is started again)
      └─GIVE_UP──► GIVEN_UP   (it has crashed too often; a reload tries again)

    CLOSE leads from everywhere to CLOSED, for good.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from mpcluster.states import IllegalStepError

__all__ = ["TRANSITIONS", "SlotState", "SlotStep", "advance"]


class SlotState(enum.Enum):
    """Where a slot stands."""

    EMPTY = "empty"
    BOOTING = "booting"
    READY = "ready"
    ROLLING = "rolling"
    WAITING = "waiting"
    GIVEN_UP = "given up"
    CLOSED = "closed"


class SlotStep(enum.Enum):
    """What can happen to a slot."""

    START = "start"  # a worker was forked for it
    GET_READY = "get ready"  # its worker is ready
    ROLL = "roll"  # a replacement was forked beside the one that serves
    TAKE_OVER = "take over"  # the replacement is ready
    FAIL_TO_ROLL = "fail to roll"  # the replacement is gone
    DIE = "die"  # the worker that serves is gone
    WAIT = "wait"  # for the next try
    GIVE_UP = "give up"
    CLOSE = "close"  # no worker is wanted here any more


_S = SlotState
_E = SlotStep

TRANSITIONS: Mapping[tuple[SlotState, SlotStep], SlotState] = MappingProxyType(
    {
        (_S.EMPTY, _E.START): _S.BOOTING,
        (_S.EMPTY, _E.WAIT): _S.WAITING,
        (_S.EMPTY, _E.GIVE_UP): _S.GIVEN_UP,
        #
        (_S.WAITING, _E.START): _S.BOOTING,
        (_S.GIVEN_UP, _E.START): _S.BOOTING,
        #
        (_S.BOOTING, _E.GET_READY): _S.READY,
        (_S.BOOTING, _E.DIE): _S.EMPTY,
        #
        (_S.READY, _E.ROLL): _S.ROLLING,
        (_S.READY, _E.DIE): _S.EMPTY,
        #
        (_S.ROLLING, _E.TAKE_OVER): _S.READY,
        (_S.ROLLING, _E.FAIL_TO_ROLL): _S.READY,
        (_S.ROLLING, _E.DIE): _S.BOOTING,
        #
        **{(state, _E.CLOSE): _S.CLOSED for state in _S},
    }
)


def advance(state: SlotState, step: SlotStep) -> SlotState:
    """Return the state that ``step`` leads to from ``state``.

    Raises:
        IllegalStepError: The table has no such step.
    """
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise IllegalStepError(f"a slot that is {state.value} cannot {step.value}") from None
