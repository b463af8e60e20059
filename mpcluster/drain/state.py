"""What every part of a drain wants to know: has it begun, and since when.

Changed once, by :func:`begin`, in a worker. A forked child starts undrained.
"""

from __future__ import annotations

import math
import os
import time

__all__ = ["IDLE", "NEVER", "STALLED", "UNSURE", "begin", "has_begun", "patience", "seconds"]

#: A kept-alive connection may be closed when it was silent for so long, in seconds. A
#: client that uses it in the very moment loses its request; after a silence that is rare.
IDLE = 1.0

#: The same, where the kernel cannot say who spoke last (both within one tick of its clock).
UNSURE = 2.0

#: The same, where something may be under way that goes on only if the client does (it reads
#: no further, or has sent half a request), or that may as well be a keep-alive timer.
STALLED = 10.0

#: A request is under way: its end is waited for, in whatever silence.
NEVER = math.inf

_since: float | None = None


def begin() -> bool:
    """Note that the drain begins; ``False`` if it had already."""
    global _since
    if _since is not None:
        return False
    _since = time.monotonic()
    return True


def has_begun() -> bool:
    """Is this process leaving? From then on responses say ``Connection: close``."""
    return _since is not None


def seconds() -> float:
    """Since the drain began."""
    return 0.0 if _since is None else time.monotonic() - _since


def patience(*, between_requests: bool) -> float:
    """For servers that know it."""
    return IDLE if between_requests else NEVER


def _after_fork_in_child() -> None:
    global _since
    _since = None


os.register_at_fork(after_in_child=_after_fork_in_child)
