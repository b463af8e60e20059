"""What every part of a drain wants to know: has it begun, and since when.

Changed once, by :func:`begin`, in a worker. A forked child starts undrained.
"""

from __future__ import annotations

import os
import time

__all__ = ["IDLE", "begin", "has_begun", "seconds"]

#: A kept-alive connection may be closed when it was silent for so long, in seconds. A
#: client that uses it in the very moment loses its request; after a silence that is rare.
IDLE = 1.0

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


def _after_fork_in_child() -> None:
    global _since
    _since = None


os.register_at_fork(after_in_child=_after_fork_in_child)
