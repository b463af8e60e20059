"""Finding a server's object for a connection, by the descriptor.

Servers keep their connections in sets. To go through the set for each connection of a look
takes seconds where there are thousands, and the interpreter with it: so one walk serves all
connections of a look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["ByDescriptor"]

#: Seconds that a walk is good for: less than between two looks of the drain.
_FRESH = 0.02


class ByDescriptor:
    """In the drain's thread alone.

    Args:
        walk: Every object, each with the transport (or what has ``get_extra_info``) that it
            has at the moment, or None.
    """

    def __init__(self, walk: Callable[[], Iterable[tuple[Any, Any]]]) -> None:
        self._walk = walk
        self._found: dict[int, tuple[Any, Any]] = {}
        self._until = 0.0

    def get(self, fd: int) -> Any:
        """The object whose transport is on this descriptor; ``None``: there is none."""
        if time.monotonic() >= self._until:
            self._found = {_descriptor(pair[1]): pair for pair in self._walk()}
            self._until = time.monotonic() + _FRESH
        pair = self._found.get(fd)
        if pair is None or _descriptor(pair[1]) != fd:  # closed since, its number is another's
            return None
        return pair[0]


def _descriptor(transport: Any) -> int:
    sock = None if transport is None else transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())
