"""One line of the log: who says it, when, and how it is written. Values; nothing is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

__all__ = ["FORMS", "Assembly", "Form", "Line", "as_json", "as_text"]

#: Bytes of a line that is not over after which it is written all the same.
LONGEST: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """What one process says.

    Attributes:
        time: Seconds since 1970.
        pid: Whose.
        text: Without an end.
        stream: ``stdout`` or ``stderr`` of a worker; ``log``: the master's.
        level: The master's: ``info``, ``warning``, ``error``.
        slot: Of a worker; None: it is the master.
        worker: Its id.
    """

    time: float
    pid: int
    text: str
    stream: str = "log"
    level: str | None = None
    slot: int | None = None
    worker: int | None = None


Form: TypeAlias = Callable[[Line], bytes]


def as_text(line: Line) -> bytes:
    """``2026-11-25 09:00:00.123 slot 0 (4711) | hello``."""
    time = datetime.fromtimestamp(line.time).astimezone()
    who = "master" if line.slot is None else f"slot {line.slot}"
    level = f"{line.level}: " if line.level in {"warning", "error", "critical"} else ""
    moment = f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"
    return f"{moment} {who} ({line.pid}) | {level}{line.text}\n".encode(errors="backslashreplace")


def as_json(line: Line) -> bytes:
    """An object a line; the time in UTC."""
    time = datetime.fromtimestamp(line.time, UTC).isoformat(timespec="milliseconds")
    whole: dict[str, object] = {
        "time": time.replace("+00:00", "Z"),
        "from": "master" if line.slot is None else "worker",
        "pid": line.pid,
        "stream": line.stream,
        "level": line.level,
        "slot": line.slot,
        "worker": line.worker,
        "text": line.text,
    }
    shown = {name: value for name, value in whole.items() if value is not None}
    return json.dumps(shown, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


#: By the names that `--log-form` knows; ``raw`` is no form: workers write for themselves.
FORMS: Final[dict[str, Form]] = {"text": as_text, "json": as_json}


class Assembly:
    """Makes lines of what arrives in pieces."""

    def __init__(self) -> None:
        self._begun = b""

    def add(self, piece: bytes) -> Iterator[str]:
        """Yield the lines that this piece completes."""
        *whole, self._begun = (self._begun + piece).split(b"\n")
        for line in whole:
            yield _decode(line)
        while len(self._begun) >= LONGEST:
            yield _decode(self._begun[:LONGEST])
            self._begun = self._begun[LONGEST:]

    def end(self) -> Iterator[str]:
        """Yield what was left without an end."""
        if self._begun:
            yield _decode(self._begun)
        self._begun = b""


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="backslashreplace")
