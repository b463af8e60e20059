"""The result of a map, and the chunks that it consists of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mpcluster.pool.calls import Options
from mpcluster.pool.results import ApplyResult

if TYPE_CHECKING:
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.functions import Function

__all__ = ["Chunk", "MapResult"]


class Chunk:
    """A part of a map; a :class:`Call`."""

    count: Final = 1
    left: Final = 1

    __slots__ = ("_index", "_owner", "deaths", "given", "kind", "known_as", "link", "number")

    def __init__(self, owner: MapResult, index: int, kind: int, given: Any) -> None:
        self._owner = owner
        self._index = index
        self.kind = kind
        self.given = given
        self.known_as = owner.known_as
        self.link: Any = None
        self.number = self.deaths = 0

    @property
    def options(self) -> Options:
        """Those of the map."""
        return self._owner.options

    @property
    def function(self) -> Any:
        """That of the map."""
        return self._owner.function

    def finish(self, value: Any) -> None:
        """It has returned ``value``."""
        self.given = None
        self._owner.chunk_finished(self._index, value)

    def fail(self, error: BaseException) -> None:
        """It has raised ``error``."""
        self.given = None
        self._owner.chunk_failed(error)

    def cancel_unsent(self) -> None:
        """Cancel the map; this part of it is in no worker."""
        self._owner.cancel()

    def drop(self, error: BaseException) -> None:
        """The pool has ended."""
        self._owner.drop(error)

    def is_over(self) -> bool:
        """Is the map over? (It was cancelled.)"""
        return self._owner.is_over()


class MapResult(ApplyResult):
    """The result of a map: the list of all, or the first error once all chunks have run."""

    def __init__(
        self,
        engine: Engine,
        pool: object,
        function: Any,
        known_as: Function,
        options: Options,
        *,
        chunksize: int,
        length: int,
    ) -> None:
        super().__init__(engine, pool, 0, function, known_as, None, options)
        self._chunksize = chunksize
        self._values: list[Any] = [None] * length
        self.chunks: list[Chunk] = []
        self._total = 0
        # Counted by one call in C: a chunk that cannot be pickled fails in the thread that
        # sends it, while others arrive in another.
        self._count = itertools.count(1).__next__
        self._error: BaseException | None = None
        self._progress: Any = None
        if not length:
            self._publish_at_once(self._values)

    def expect(
        self,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        progress: Any,
    ) -> None:
        """What is to be called, and drawn, before it is ready."""
        self._progress = progress
        if progress is not None:
            callback = _both(progress.close, callback)
            error_callback = _both(progress.close, error_callback)
        if callback is not None:
            self._callback = callback
        if error_callback is not None:
            self._error_callback = error_callback

    def count_chunks(self) -> None:
        """All its chunks are there, and will be submitted."""
        self._total = len(self.chunks)

    def parts(self) -> Sequence[Any]:
        """The calls that it consists of."""
        return self.chunks

    def _publish(self, state: str) -> None:
        self.chunks = []
        super()._publish(state)

    def chunk_finished(self, index: int, values: list[Any]) -> None:
        """A chunk has returned. One thread at a time."""
        size = self._chunksize
        self._values[index * size : (index + 1) * size] = values
        self._one_less(len(values))

    def chunk_failed(self, error: BaseException) -> None:
        """A chunk has failed; the first error counts."""
        if self._error is None:
            self._error = error
        self._one_less(0)

    def _one_less(self, count: int) -> None:
        arrived = self._count()
        if self._progress is not None:
            self._progress(count)
        if arrived == self._total:
            if self._error is not None:
                self.fail(self._error)
            else:
                self.finish(self._values)


def _both(
    first: Callable[[], object], second: Callable[[Any], object] | None
) -> Callable[[Any], object]:
    def both(argument: Any) -> None:
        first()
        if second is not None:
            second(argument)

    return both
