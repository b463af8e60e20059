"""How far a map has come, for people."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mpcluster.errors import EngineUnavailableError

__all__ = ["Progress"]


class Progress:
    """Tells of finished tasks, in the pool's thread, so that drawing delays no result.

    Args:
        show: True, a dict of tqdm's keywords, or a callable that gets (done, total).
        total: How many there will be, None where that is unknown.
        call_later: Runs a job in the pool's thread.
    """

    def __init__(
        self, show: Any, total: int | None, call_later: Callable[[Callable[[], object]], object]
    ) -> None:
        self._total = total
        self._call_later = call_later
        self._bar: Any = None
        self._told = show if callable(show) else None
        if self._told is None:
            keywords = dict(show) if isinstance(show, dict) else {}
            self._bar = _tqdm()(**{"total": total, **keywords})
        self._done = 0
        self._drawn = 0
        self._is_scheduled = False
        # Guards the count, which several threads may raise. Nothing is called under it.
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, show: Any, total: int | None, call_later: Callable[[Callable[[], object]], object]
    ) -> Progress | None:
        """A progress, or None where none is wanted."""
        return None if show is None or show is False else cls(show, total, call_later)

    def __call__(self, count: int) -> None:
        """So many more are finished. Any thread."""
        with self._lock:
            self._done += count
            if self._is_scheduled:
                return
            self._is_scheduled = True
        self._call_later(self._draw)

    def _draw(self) -> None:
        with self._lock:
            self._is_scheduled = False
            done, new = self._done, self._done - self._drawn
            self._drawn = self._done
        if not new:
            return
        if self._told is not None:
            self._told(done, self._total)
        else:
            self._bar.update(new)

    def close(self) -> None:
        """All is done: draw the last, and end the bar."""
        self._draw()
        if self._bar is not None:
            self._bar.close()


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise EngineUnavailableError(
            'a progress bar needs tqdm: pip install "mpcluster[progress]"'
        ) from None
    return tqdm
