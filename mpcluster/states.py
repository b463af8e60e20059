"""The life of a worker, as its parent sees it: one table.

A worker is started, comes online, perhaps listens, perhaps is asked to leave, loses its
channel and dies. Not every worker passes through every state (one that is killed while it
starts goes from ``STARTING`` to ``DISCONNECTED`` to ``DEAD``), but none goes back, and
every one ends in the last two, in this order. What is asked of a worker again, or too
late, changes nothing: a second ``disconnect()`` leaves ``DRAINING`` and ``DEAD`` as they
are. Any other step is a bug of ours: it raises and the state stays.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["STARTED", "TRANSITIONS", "IllegalStepError", "Step", "WorkerState", "advance"]


class WorkerState(enum.Enum):
    """Where a worker stands in its life."""

    NEW = "new"
    STARTING = "starting"
    ONLINE = "online"
    LISTENING = "listening"
    DRAINING = "draining"
    DISCONNECTED = "disconnected"
    DEAD = "dead"


class Step(enum.Enum):
    """What can happen to a worker."""

    START = "start"  # the parent has forked it
    COME_ONLINE = "come online"  # it runs
    LISTEN = "listen"  # one of its listeners is up
    DRAIN = "drain"  # it was asked to leave
    DISCONNECT = "disconnect"  # its channel is closed
    DIE = "die"  # its process is gone and reaped


class IllegalStepError(RuntimeError):
    """A step that the table does not have: a bug in mpcluster."""


_S = WorkerState
_E = Step

TRANSITIONS: Mapping[tuple[WorkerState, Step], WorkerState] = MappingProxyType(
    {
        (_S.NEW, _E.START): _S.STARTING,
        #
        (_S.STARTING, _E.COME_ONLINE): _S.ONLINE,
        (_S.STARTING, _E.DRAIN): _S.DRAINING,
        (_S.STARTING, _E.DISCONNECT): _S.DISCONNECTED,
        #
        (_S.ONLINE, _E.LISTEN): _S.LISTENING,
        (_S.ONLINE, _E.DRAIN): _S.DRAINING,
        (_S.ONLINE, _E.DISCONNECT): _S.DISCONNECTED,
        #
        (_S.LISTENING, _E.LISTEN): _S.LISTENING,
        (_S.LISTENING, _E.DRAIN): _S.DRAINING,
        (_S.LISTENING, _E.DISCONNECT): _S.DISCONNECTED,
        # what was under way when the worker was asked to leave may still arrive
        (_S.DRAINING, _E.COME_ONLINE): _S.DRAINING,
        (_S.DRAINING, _E.LISTEN): _S.DRAINING,
        (_S.DRAINING, _E.DRAIN): _S.DRAINING,
        (_S.DRAINING, _E.DISCONNECT): _S.DISCONNECTED,
        #
        (_S.DISCONNECTED, _E.DRAIN): _S.DISCONNECTED,
        (_S.DISCONNECTED, _E.DIE): _S.DEAD,
        #
        (_S.DEAD, _E.DRAIN): _S.DEAD,
    }
)


def advance(state: WorkerState, step: Step) -> WorkerState:
    """Return the state that ``step`` leads to from ``state``.

    Raises:
        IllegalStepError: The table has no such step.
    """
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise IllegalStepError(f"a {state.value} worker cannot {step.value}") from None


#: Where every worker's life begins; looked up once, and not at each start.
STARTED: Final = advance(WorkerState.NEW, Step.START)
