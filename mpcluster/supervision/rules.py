"""What a supervisor is told to keep to: one frozen record, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

__all__ = ["READY_WHEN", "RESTART", "Rules"]

RESTART = ("always", "on-failure", "never")
READY_WHEN = ("auto", "online", "listening", "explicit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When workers are started again, count as ready, and are replaced.

    Attributes:
        restart: Who is started again: ``"always"``, ``"on-failure"`` (not after exit code 0)
            or ``"never"``.
        backoff: Seconds before the second restart in a row (the first comes at once); each
            further one waits twice as long.
        max_backoff: Seconds that a restart waits at most.
        min_uptime: Seconds; a worker that lived longer, ready, has ended the row.
        max_crashes: So many ends in a row, none of them after ``min_uptime``, and the slot is
            given up. With every slot given up the supervisor fails.
        ready: What makes a worker ready: ``"listening"`` (its first shared listener),
            ``"explicit"`` (it calls ``cluster.ready()``), ``"auto"`` (whichever comes first)
            or ``"online"`` (it runs).
        ready_timeout: Seconds that a worker has for it. A replacement that takes longer is
            ended and its reload aborted; another is warned of and left alone.
        drain_timeout: Seconds that a worker which is to leave has to finish what it has.
        heartbeat: Seconds without a sign of life of the worker's main thread (or of the
            event loop there) after which it counts as hung; None does not look.
        max_age: Seconds after which a worker is replaced.
        max_tasks: Tasks, as told by ``cluster.worker.count()``, after which it is.
        max_memory: Bytes of memory (its proportional share of what is shared) after which
            it is; looked at every five seconds.
        jitter: Part by which the limits differ at most from worker to worker, so that not
            all of them are replaced at one time: 0.1 is from 90 to 110 per cent.

    Raises:
        TypeError, ValueError: An argument is of a wrong type, or out of range.
    """

    restart: str = "always"
    backoff: float = 0.5
    max_backoff: float = 30.0
    min_uptime: float = 5.0
    max_crashes: int = 6
    ready: str = "auto"
    ready_timeout: float = 60.0
    drain_timeout: float = 30.0
    heartbeat: float | None = None
    max_age: float | None = None
    max_tasks: int | None = None
    max_memory: int | None = None
    jitter: float = 0.1

    @classmethod
    def named(cls, rules: dict[str, Any]) -> Self:
        """Return those; the others are as usual.

        Raises:
            TypeError, ValueError: There is no such rule, or its value is none.
        """
        names = [field.name for field in fields(cls)]
        for rule in rules:
            if rule not in names:
                raise TypeError(f"there is no rule {rule!r}; there are: {', '.join(names)}")
        return cls(**rules)

    def __post_init__(self) -> None:
        _check_word("restart", self.restart, RESTART)
        _check_word("ready", self.ready, READY_WHEN)
        for name in ("backoff", "max_backoff", "min_uptime", "ready_timeout", "drain_timeout"):
            _check_number(name, getattr(self, name), "seconds")
        for name, unit in (("heartbeat", "seconds"), ("max_age", "seconds")):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), unit, positive=True)
        for name, unit in (("max_tasks", "tasks"), ("max_memory", "bytes")):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), unit, whole=True, positive=True)
        _check_number("max_crashes", self.max_crashes, "crashes", whole=True, positive=True)
        _check_number("jitter", self.jitter, "parts of one")
        if self.jitter >= 1:
            raise ValueError(f"jitter must be less than 1, not {self.jitter!r}")


def _check_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}")


def _check_number(
    name: str, value: object, unit: str, *, whole: bool = False, positive: bool = False
) -> None:
    types = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, types):
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{name} must be {kind} of {unit}, not {value!r}")
    assert isinstance(value, int | float)
    if not value >= 0 or math.isinf(value) or (positive and not value):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name} must be {least} {unit}, not {value!r}")
