"""What a master says of itself, and how that is shown."""

from __future__ import annotations

import dataclasses
from typing import Any

from mpcluster.supervision import Supervisor

__all__ = ["as_text", "duration", "slots", "snapshot"]


def slots(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Every slot, as values that JSON knows."""
    return [{**dataclasses.asdict(one), "state": one.state.value} for one in supervisor.status()]


def snapshot(supervisor: Supervisor, program: str) -> dict[str, Any]:
    """What the monitor sees of it; ``program``: what that is called."""
    from mpcluster.monitor import snapshot as monitors  # nobody may ever ask

    return monitors.take(supervisor, program=program).as_dict()


def as_text(status: dict[str, Any]) -> str:
    """The answer to `status`, for people."""
    head = (
        f"{status['program']}: {status['state']}, workers: {status['workers']}, master "
        f"{status['pid']}, for {duration(status['uptime'])}"
    )
    rows = [("slot", "state", "worker", "pid", "uptime", "restarts", "trouble")]
    rows += [
        (
            str(one["slot"]),
            one["state"],
            _shown(one["worker_id"]),
            _shown(one["pid"]),
            "-" if one["uptime"] is None else duration(one["uptime"]),
            str(one["restarts"]),
            one["trouble"] or "",
        )
        for one in status["slots"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([head, *lines])


def duration(seconds: float) -> str:
    """As people read it: ``42s``, ``3m12s``, ``5h07m``, ``12d3h``."""
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
