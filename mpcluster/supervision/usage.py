"""What a process uses, as the kernel has it."""

from __future__ import annotations

import os
import re

__all__ = ["memory"]

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory(pid: int) -> int | None:
    """Return its memory in bytes, what it shares with others counted in proportion.

    All of what it has resident where the kernel does not tell more; None when it is gone.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = _PSS.search(file.read())
        if found is not None:
            return int(found[1]) * 1024
    except OSError:
        pass  # gone, or not for us to read
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None
