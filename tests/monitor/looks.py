"""Snapshots made up, for what is done with them."""

from __future__ import annotations

from typing import Any

from mpcluster.monitor.processes import Usage
from mpcluster.monitor.snapshot import Listener, Master, Slot, Snapshot, Worker


def worker(number: int, slot: int = 0, **changes: Any) -> Worker:
    usage = Usage(
        cpu=changes.pop("cpu", 1.0),
        resident=3000,
        proportional=2000,
        own=1000,
        threads=2,
        descriptors=9,
    )
    what: dict[str, Any] = {
        "id": number, "pid": 1000 + number, "slot": slot, "place": "serving", "state": "listening",
        "serves": True, "uptime": 10.0, "ready_for": 9.0, "usage": usage, "connections": 4,
        "accepted": 10, "messages": 20, **changes,
    }  # fmt: skip
    return Worker(**what)


def slot(number: int, **changes: Any) -> Slot:
    what = {
        "state": "ready",
        "restarts": 0,
        "trouble": None,
        "accepted": 10,
        "messages": 20,
        **changes,
    }
    return Slot(number, **what)


def snapshot(*workers: Worker, clock: float = 100.0, **changes: Any) -> Snapshot:
    what: dict[str, Any] = {
        "time": 1e9 + clock,
        "clock": clock,
        "master": Master(999, "app.py", "host", 60.0, Usage(cpu=3.0), 0),
        "under_way": None,
        "failure": None,
        "slots": tuple(slot(number) for number in sorted({one.slot for one in workers})),
        "workers": workers,
        "listeners": (Listener("127.0.0.1:8000", "tcp", "shared", (1,), 0),),
        **changes,
    }
    return Snapshot(**what)
