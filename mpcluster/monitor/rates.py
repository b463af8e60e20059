"""What happened between two looks, for each second of that time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .views import Slot, Snapshot, Worker

__all__ = ["Rate", "Rates", "between"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one worker, or of all. None is not known.

    Attributes:
        cpu: Processor seconds a second: 1.0 is one processor.
        accepted: Connections a second.
        messages: Messages a second.
    """

    cpu: float | None = None
    accepted: float | None = None
    messages: float | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Between two snapshots.

    Attributes:
        seconds: That lay between them.
        total: Of all workers. What those did that have ended meanwhile is in it, but for
            the processor time.
        master: Its processor seconds a second.
        workers: By id.
    """

    seconds: float
    total: Rate
    master: float | None
    workers: dict[int, Rate]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def between(before: Snapshot, now: Snapshot) -> Rates:
    """Compare two snapshots of one supervisor.

    Args:
        before: The earlier one.
        now: The later one; where it is none, no rate is known.
    """
    seconds = now.clock - before.clock
    earlier = {worker.id: worker for worker in before.workers}
    workers = {one.id: _of_worker(earlier.get(one.id), one, seconds) for one in now.workers}
    total = Rate(
        _sum(rate.cpu for rate in workers.values()),
        _of_slots(before, now, seconds, "accepted"),
        _of_slots(before, now, seconds, "messages"),
    )
    master = _growth(before.master.usage.cpu, now.master.usage.cpu, seconds)
    return Rates(seconds, total, master, workers)


def _of_worker(before: Worker | None, now: Worker, seconds: float) -> Rate:
    if before is None:  # all that it did it did meanwhile
        return Rate(
            _growth(0, now.usage.cpu, seconds),
            _growth(0, now.accepted, seconds),
            _growth(0, now.messages, seconds),
        )
    return Rate(
        _growth(before.usage.cpu, now.usage.cpu, seconds),
        _growth(before.accepted, now.accepted, seconds),
        _growth(before.messages, now.messages, seconds),
    )


def _of_slots(before: Snapshot, now: Snapshot, seconds: float, what: str) -> float | None:
    earlier = {slot.number: slot for slot in before.slots}

    def growth(slot: Slot) -> float | None:
        since = earlier.get(slot.number)
        return _growth(0 if since is None else getattr(since, what), getattr(slot, what), seconds)

    return _sum(map(growth, now.slots))


def _growth(before: float | None, now: float | None, seconds: float) -> float | None:
    if before is None or now is None or seconds <= 0:
        return None
    return max(0.0, now - before) / seconds  # less: a slot that went and came again began anew


def _sum(parts: Iterable[float | None]) -> float | None:
    """None if one of them is not known: a part is not the whole."""
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total
