"""The end of a pool's work: when nothing is left to do."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from mpcluster.pool.reader import Reader

__all__ = ["Quiet"]


class Quiet:
    """Waited for by ``join()``: nothing is left to do."""

    def __init__(self, engine: Any, readers: Iterable[Reader]) -> None:
        self._engine = engine
        self._readers = readers
        self._lock: Any = None

    def ready(self) -> bool:
        """Is nothing left to do?"""
        return self._engine.is_quiet() and not any(r.is_reading() for r in list(self._readers))

    def enlist(self) -> Any:
        """See :class:`mpcluster.pool.engine.Awaited`."""
        self._lock = threading.Lock()
        self._lock.acquire()
        return self._lock

    def delist(self, _lock: Any) -> None:
        """See :class:`mpcluster.pool.engine.Awaited`."""
        self._lock = None

    def poke(self) -> None:
        """See :class:`mpcluster.pool.engine.Awaited`."""
        lock = self._lock
        if lock is not None:
            try:
                lock.release()
            except RuntimeError:
                pass
