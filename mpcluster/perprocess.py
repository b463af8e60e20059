"""What a process has once, and a forked child begins without.

The watcher, the family of workers, the worker itself: each module keeps its own here, under
its own name. One handler for all of them, for each one that runs in a child touches pages
that the child has to copy: some 25 µs, at every fork.
"""

from __future__ import annotations

import os
from _thread import get_ident
from typing import Any, Final

__all__ = ["AT_END", "before", "begin_with", "bequests", "mine"]

_mine: dict[str, Any] = {}

#: What the processes before this one had, the parent's last. Kept, for its finalizers would
#: close numbers which mean something else in this process.
_inherited: list[dict[str, Any]] = []

#: What the child of a fork begins with, by the thread that is about to make it. That one puts it
#: in, and takes it out in the parent.
bequests: dict[int, dict[str, Any]] = {}


def mine() -> dict[str, Any]:
    """What this process has, by name. ``setdefault`` is atomic: what it returns counts."""
    return _mine


def before() -> dict[str, Any]:
    """In a child: what its parent had at the fork; nothing in a process that is none."""
    return _inherited[-1] if _inherited else {}


#: Under which name a child may have what is to be called when its program is over.
AT_END: Final = "at its end"


def begin_with(belongings: dict[str, Any]) -> None:
    """In a child that was bequeathed nothing: have these."""
    global _mine
    _mine = belongings


def _after_fork_in_child() -> None:
    global _mine
    _inherited.append(_mine)
    _mine = bequests.get(get_ident()) or {}
    bequests.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
