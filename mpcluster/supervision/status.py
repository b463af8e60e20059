"""What is to be seen of a supervisor from outside: its slots and its workers as they are.

Values, made in the watcher's thread between two events: nothing in them is half-way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mpcluster.process import ClusterProcess
from mpcluster.states import WorkerState

from .fleet import Fleet, Member
from .ledger import NOTHING, Counts, Ledger
from .slot import SlotState

__all__ = ["SlotStatus", "WorkerStatus", "slots_of", "workers_of"]

#: It has been asked to leave, or does so of its own will.
_GOING: Final = frozenset({WorkerState.DRAINING, WorkerState.DISCONNECTED, WorkerState.DEAD})


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One slot, as it is at this moment.

    Attributes:
        slot: Its number.
        state: Where it stands.
        worker_id: Of the worker that serves, or boots; None without one.
        pid: Of that worker.
        uptime: Seconds since it was forked.
        restarts: How often the slot has lost its worker, those that were retired included.
        trouble: The last that went wrong here.
        done: What all the workers did that it ever had.
    """

    slot: int
    state: SlotState
    worker_id: int | None
    pid: int | None
    uptime: float | None
    restarts: int
    trouble: str | None
    done: Counts = NOTHING


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One living worker, as it is at this moment.

    Attributes:
        id: Its number in the cluster.
        pid: Of its process.
        slot: The number of its slot.
        place: ``"serving"`` (or on its way to that, alone in its slot), ``"incoming"`` (about
            to take another one's place) or ``"leaving"``.
        state: Where it stands in its own life.
        uptime: Seconds since it was forked.
        ready_for: Seconds since it was ready; None: it is not yet.
        done: What it did.
    """

    id: int
    pid: int | None
    slot: int
    place: str
    state: WorkerState
    uptime: float
    ready_for: float | None
    done: Counts

    @property
    def serves(self) -> bool:
        """Is it ready, and does it go on?"""
        return self.ready_for is not None and self.place == "serving"


def slots_of(fleet: Fleet, ledger: Ledger, now: float) -> list[SlotStatus]:
    """Every slot, by number. ``now`` in monotonic seconds."""
    found = []
    for slot in sorted(fleet.slots.values(), key=lambda one: one.number):
        member = slot.serving
        found.append(
            SlotStatus(
                slot.number,
                slot.state,
                None if member is None else member.worker.id,
                None if member is None else member.worker.pid,
                None if member is None else now - member.started,
                slot.restarts,
                slot.trouble,
                ledger.of_slot(slot.number),
            )
        )
    return found


def workers_of(
    fleet: Fleet, processes: Mapping[int, ClusterProcess], ledger: Ledger, now: float
) -> list[WorkerStatus]:
    """Every living worker, by slot and then by age, the oldest first."""
    found = []
    for key, member in sorted(fleet.members.items(), key=lambda item: (item[1].slot, item[0])):
        process = processes.get(key)
        if process is None:
            continue  # it is gone, and its death is just being told
        state = process.state
        found.append(
            WorkerStatus(
                key,
                process.pid,
                member.slot,
                _place(fleet, member, state),
                state,
                now - member.started,
                None if member.ready_since is None else now - member.ready_since,
                ledger.of(key),
            )
        )
    return found


def _place(fleet: Fleet, member: Member, state: WorkerState) -> str:
    slot = fleet.slots.get(member.slot)
    if slot is None or member.was_ended or state in _GOING:
        return "leaving"
    if member is slot.incoming:
        return "incoming"
    return "serving" if member is slot.serving else "leaving"
