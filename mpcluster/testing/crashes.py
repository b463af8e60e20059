"""What is said of a worker that died: how, in which test, and what that had written."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from mpcluster.testing.line import ControllerEnd

__all__ = ["Running", "amend", "describe_end"]

#: Bytes of captured output that a report shows.
MOST_SHOWN: Final = 65536


@dataclass(slots=True)
class Running:
    """The test that a worker runs.

    Attributes:
        since: When it began, by the monotonic clock, in seconds.
        sections: What its earlier phases have written.
        overran: Seconds of ``--mpcluster-timeout``, once it has been killed for it.
    """

    nodeid: str
    since: float
    sections: list[tuple[str, str]] = field(default_factory=list)
    overran: float | None = None


def describe_end(end: ControllerEnd) -> str:
    """Say how a worker ended: "killed by SIGSEGV", "exited with status 3"."""
    if end.trouble:
        return end.trouble
    code = end.exitcode
    if code is None:
        return "lost"
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def amend(report: pytest.TestReport, end: ControllerEnd, running: Running | None) -> None:
    """Add to xdist's report of a crashed test what is known of its end."""
    said = describe_end(end)
    if running is not None and running.overran is not None:
        said = f"ran longer than --mpcluster-timeout={running.overran:g} seconds, {said}"
    report.longrepr = f"{report.longrepr}: {said}"
    if running is not None and running.nodeid == report.nodeid:
        report.sections += running.sections
    for name, fd in zip(("stdout", "stderr"), end.captured, strict=False):
        _add(report, f"Captured {name} before the end", _read(fd))
    _add(report, "Captured stderr of the worker", end.tail)


def _add(report: Any, title: str, data: bytes) -> None:
    text = data.decode(errors="replace")
    if text.strip():
        report.sections.append((title, text))


def _read(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, MOST_SHOWN, max(0, size - MOST_SHOWN))
    except OSError:
        return b""
