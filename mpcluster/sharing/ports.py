"""Port 0: which sockets may yet become servers, and the how-manieth of its kind each is.

A socket that binds port 0 may be a client's. It is bound privately, and remembered here
until it shows what it is: ``listen()`` or ``getsockname()`` make it the worker's n-th
server of that address, ``connect()`` makes it a client. As in Node, the n-th of every
worker is the same listener; the count starts anew when all of them are closed.

And the places at one address: a program may bind several sockets to it, if each says so
(``SO_REUSEPORT``). Each has the lowest free number, from 0.

**Lock.** Held for the counting only, by any thread; new in a forked child, which starts
without servers of its own.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from .copies import Identity, identify

__all__ = [
    "claim",
    "claim_place",
    "forget",
    "give_back",
    "give_back_place",
    "remember",
    "take",
    "undecided",
]


@dataclass
class _Count:
    upcoming: int = 0
    used: set[int] = field(default_factory=set)


_lock = threading.Lock()
undecided: dict[int, tuple[Identity, object]] = {}
_counts: dict[object, _Count] = {}
_places: dict[object, set[int]] = {}


def remember(fd: int, address: object) -> None:
    """Descriptor ``fd`` was bound privately to ``address``, port 0."""
    undecided[fd] = (identify(fd), address)


def take(fd: int) -> object | None:
    """The address of an undecided socket, which is thereby decided; ``None`` for others."""
    entry = undecided.pop(fd, None) if undecided else None
    if entry is None or entry[0] != identify(fd):
        return None
    return entry[1]


def forget(fd: int) -> None:
    """The socket is closed, or a client."""
    undecided.pop(fd, None)


def claim(kind: object) -> int:
    """The ordinal of a new server among this worker's of the same kind (family ... host)."""
    with _lock:
        count = _counts.setdefault(kind, _Count())
        ordinal = count.upcoming
        count.upcoming += 1
        count.used.add(ordinal)
        return ordinal


def give_back(kind: object, ordinal: int) -> None:
    """The server with that ordinal is closed."""
    with _lock:
        count = _counts.get(kind)
        if count is None:
            return
        count.used.discard(ordinal)
        if not count.used:
            del _counts[kind]


def claim_place(key: object) -> int:
    """The place of one more socket at an address that allows several."""
    with _lock:
        taken = _places.setdefault(key, set())
        place = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(place)
        return place


def give_back_place(key: object, place: int) -> None:
    """The socket at that place is closed."""
    with _lock:
        taken = _places.get(key, set())
        taken.discard(place)
        if not taken:
            _places.pop(key, None)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    undecided.clear()
    _counts.clear()
    _places.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
