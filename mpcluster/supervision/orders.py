"""What a fleet wants done, as values: who decides does nothing, who does decides nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = [
    "Fail",
    "Finish",
    "Kill",
    "Later",
    "Order",
    "Retire",
    "Roll",
    "Start",
    "WorkerLike",
]


class WorkerLike(Protocol):
    """What is to be known of a worker."""

    @property
    def id(self) -> int | None:
        """Its number in the cluster."""

    @property
    def pid(self) -> int | None:
        """Its process id."""


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a worker for this slot; then tell :meth:`Fleet.started`, or that it failed."""

    slot: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Ask this worker to leave when it has finished what it has."""

    worker: WorkerLike


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker; it serves nobody, or not any more."""

    worker: WorkerLike
    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """Call :meth:`Fleet.due` for this slot in so many seconds."""

    seconds: float
    slot: int


@dataclass(frozen=True, slots=True)
class Finish:
    """This roll is over: its old workers take no connection; ``failure``: it was given up."""

    roll: Roll
    failure: str | None


@dataclass(frozen=True, slots=True)
class Fail:
    """No slot has a worker, and none will get one."""

    reason: str


Order: TypeAlias = Start | Retire | Kill | Later | Finish | Fail


class Roll:
    """Replace the workers of some slots, one after the other.

    Args:
        slots: Their numbers.
        reason: Why; for the log.
    """

    def __init__(self, slots: Iterable[int], reason: str) -> None:
        self.left = deque(slots)
        self.reason = reason
        self.under_way: int | None = None

    def __repr__(self) -> str:
        return f"<Roll ({self.reason}) at {self.under_way}, then {list(self.left)}>"
