"""What the kernel says of one process. What it does not say is None, never 0."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

__all__ = ["Usage", "age", "usage"]

T = TypeVar("T")

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SIZE: Final = re.compile(rb"^(Rss|Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)

#: Where the fields of ``/proc/<pid>/stat`` stand behind the name: proc(5) counts from 1, and
#: the name, which may contain anything, is the second.
_PARENT, _USER, _SYSTEM, _THREADS, _STARTED = 4 - 3, 14 - 3, 15 - 3, 20 - 3, 22 - 3


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process uses.

    Attributes:
        cpu: Processor seconds that it has used so far, in user and in system mode.
        resident: Bytes of memory that it has in RAM, whoever else has them too.
        proportional: Of these, its share: a page that n processes have counts 1/n (PSS). The
            sum over all processes is what they use together.
        own: Bytes that no other process has (USS): what its end would give back.
        threads: How many it has.
        descriptors: How many it has open.
    """

    cpu: float | None = None
    resident: int | None = None
    proportional: int | None = None
    own: int | None = None
    threads: int | None = None
    descriptors: int | None = None

    @property
    def shared(self) -> int | None:
        """Bytes that it has in RAM together with others."""
        if self.resident is None or self.own is None:
            return None
        return self.resident - self.own


def usage(pid: int, *, parent: int | None = None) -> Usage:
    """Look at a process.

    Args:
        pid: Its number; one that is gone uses nothing that is known.
        parent: Whose child it has to be. The number of one that is gone may be another's.
    """
    stat = _or_none(lambda: _stat(pid))
    if stat is None or (parent is not None and stat[_PARENT] != parent):
        return Usage()
    sizes = _or_none(lambda: _sizes(pid)) or {}
    own = [sizes.get(name) for name in (b"Private_Clean", b"Private_Dirty")]
    return Usage(
        (stat[_USER] + stat[_SYSTEM]) / _TICK,
        sizes.get(b"Rss", _or_none(lambda: _resident(pid))),
        sizes.get(b"Pss"),
        None if own[0] is None or own[1] is None else own[0] + own[1],
        stat[_THREADS],
        _or_none(lambda: _descriptors(pid)),
    )


def age(pid: int) -> float | None:
    """Seconds since a process was started; None of one that is gone."""
    stat = _or_none(lambda: _stat(pid))
    return (
        None if stat is None else time.clock_gettime(time.CLOCK_BOOTTIME) - stat[_STARTED] / _TICK
    )


def _or_none(look: Callable[[], T]) -> T | None:
    """None where the process is gone, or not for us to look at (it has another user now)."""
    try:
        return look()
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> list[int]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    state, *numbers = text[text.rindex(b")") + 1 :].split()
    return [ord(state), *map(int, numbers)]


def _sizes(pid: int) -> dict[bytes, int]:
    # The kernel walks the page tables for it: about 1 ms for an interpreter's 25 MB.
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return {found[1]: int(found[2]) * 1024 for found in _SIZE.finditer(file.read())}


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def _descriptors(pid: int) -> int:
    # Its size is their number from Linux 6.2 on, and 0 before.
    return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
