"""What is seen at one look, as values: of the master, the slots, the workers, the listeners.

None is what could not be known. Nothing in here looks at anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .processes import Usage

__all__ = ["Listener", "Master", "Slot", "Snapshot", "Worker"]


@dataclass(frozen=True, slots=True)
class Master:
    """This process.

    Attributes:
        pid: Its number.
        program: The name of its script.
        host: The name of the machine.
        uptime: Seconds since it was started; None where the kernel does not tell.
        usage: What it uses.
        connections: That it has open: accepted and not yet passed on, for the most part.
    """

    pid: int
    program: str
    host: str
    uptime: float | None
    usage: Usage
    connections: int | None


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot, and what became of all the workers that it ever had.

    Attributes:
        number: From 0 on.
        state: Of :class:`mpcluster.SlotState`, as its value.
        restarts: How often it has lost its worker.
        trouble: The last that went wrong.
        accepted: Connections that its workers accepted; None where some were not counted.
        messages: That its workers sent.
    """

    number: int
    state: str
    restarts: int
    trouble: str | None
    accepted: int | None
    messages: int


@dataclass(frozen=True, slots=True)
class Worker:
    """One living worker.

    Attributes:
        id: Its number in the cluster.
        pid: Of its process.
        slot: The number of its slot.
        place: ``"serving"``, ``"incoming"`` or ``"leaving"``.
        state: Of :class:`mpcluster.WorkerState`, as its value.
        serves: It is ready, and goes on.
        uptime: Seconds since it was forked.
        ready_for: Seconds since it was ready; None: it is not yet.
        usage: What it uses.
        connections: That it has open, of shared listeners.
        accepted: That its program has accepted so far; None where they are not counted.
        messages: That have come from it.
    """

    id: int
    pid: int | None
    slot: int
    place: str
    state: str
    serves: bool
    uptime: float
    ready_for: float | None
    usage: Usage
    connections: int | None
    accepted: int | None
    messages: int


@dataclass(frozen=True, slots=True)
class Listener:
    """One shared listener.

    Attributes:
        address: ``host:port``, or a path.
        protocol: ``"tcp"``, ``"udp"`` or ``"unix"``.
        policy: How its connections are spread.
        workers: Ids of those that use it.
        waiting: Connections that wait to be accepted; None where the kernel does not tell.
    """

    address: str
    protocol: str
    policy: str
    workers: tuple[int, ...]
    waiting: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was at one moment.

    Attributes:
        time: Of the look, in seconds since the epoch.
        clock: The same moment in monotonic seconds, to count rates by.
        master: This process.
        under_way: What is just done to the slots (``"reload"``); None: nothing.
        failure: Why the supervisor has given up; None if it has not.
        slots: By number.
        workers: By slot, the oldest first.
        listeners: The oldest first.
    """

    time: float
    clock: float
    master: Master
    under_way: str | None
    failure: str | None
    slots: tuple[Slot, ...]
    workers: tuple[Worker, ...]
    listeners: tuple[Listener, ...]

    @property
    def serving(self) -> int:
        """How many workers are ready and go on."""
        return sum(worker.serves for worker in self.workers)

    def as_dict(self) -> dict[str, Any]:
        """Return it in dicts, lists, numbers and strings, as JSON has them."""
        found = {"serving": self.serving, **asdict(self)}
        for one in (found["master"], *found["workers"]):
            one.update(one.pop("usage"))
        return found
