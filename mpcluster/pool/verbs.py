"""What a program asks of a pool: ``apply``, ``map``, ``imap`` and their kin.

All that is Pool-shaped is here, once, over any engine: how a call becomes a result, what is
cut into chunks, which input is read where.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from types import MappingProxyType
from typing import Any, Final

from mpcluster.pool import records
from mpcluster.pool.arrivals import Arrivals, UnorderedArrivals
from mpcluster.pool.calls import Options
from mpcluster.pool.engine import Engine
from mpcluster.pool.imap import IMapIterator, is_inert
from mpcluster.pool.mapresult import Chunk, MapResult
from mpcluster.pool.progress import Progress
from mpcluster.pool.reader import Reader
from mpcluster.pool.results import ApplyResult
from mpcluster.pool.runs import Feed

__all__ = ["RUN", "Verbs"]

RUN: Final = "RUN"
_NO_NAMES: Final[Mapping[str, Any]] = MappingProxyType({})


class Verbs:
    """The calls of a pool; the class that has the workers derives from it."""

    _engine: Engine
    _options: Options
    _chunksize: int | None
    _progress: Any
    _readers: weakref.WeakSet[Reader]
    _processes: Any  # how many workers there shall be
    _state: str

    def _refuse(self) -> None:
        """Raise what a call meets when the pool is not running."""
        raise NotImplementedError

    def _check_running(self) -> None:
        if self._state != RUN:
            self._refuse()

    # -- one call ----------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., Any], args: Any = (), kwds: Mapping[str, Any] = _NO_NAMES
    ) -> Any:
        """Call ``func(*args, **kwds)`` in a worker; wait, and return what it returns."""
        result = self._begin(func, args, kwds)
        self._engine.submit(result)
        return result.get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Any = (),
        kwds: Mapping[str, Any] = _NO_NAMES,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult:
        """As :meth:`apply`, but return the result to be, at once.

        Args:
            func: What is called.
            args: Its arguments.
            kwds: Its keyword arguments.
            callback: Called with the value before the result is ready, in the pool's thread.
            error_callback: Likewise with the error.
        """
        result = self._begin(func, args, kwds)
        if callback is not None:
            result._callback = callback  # noqa: SLF001
        if error_callback is not None:
            result._error_callback = error_callback  # noqa: SLF001
        engine = self._engine
        engine.submit(result)
        engine.attend()
        return result

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ApplyResult:
        """Call ``fn(*args, **kwargs)`` in a worker; as ``concurrent.futures.Executor.submit``."""
        result = self._begin(fn, args, kwargs)
        engine = self._engine
        engine.submit(result)
        engine.attend()
        return result

    def _begin(self, function: Callable[..., Any], args: Any, kwds: Any) -> ApplyResult:
        if self._state != RUN:
            self._refuse()
        engine = self._engine
        if type(args) is not tuple:
            args = tuple(args)
        if kwds:
            kind, given = records.CALL_WITH_NAMES, (args, dict(kwds))
        else:
            kind, given = records.CALL, args
        return ApplyResult(
            engine, self, kind, function, engine.known(function), given, self._options
        )

    # -- many calls --------------------------------------------------------------------------

    def map(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Call ``func`` with each element; return the list of the results, in order."""
        result = self._map(func, iterable, records.MAP, chunksize)
        return result.get()  # type: ignore[no-any-return]

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """As :meth:`map`, with each element unpacked into the arguments."""
        result = self._map(func, iterable, records.STARMAP, chunksize)
        return result.get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """As :meth:`map`, but return the result to be, at once."""
        result = self._map(func, iterable, records.MAP, chunksize, callback, error_callback)
        self._engine.attend()
        return result

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """As :meth:`starmap`, but return the result to be, at once."""
        result = self._map(func, iterable, records.STARMAP, chunksize, callback, error_callback)
        self._engine.attend()
        return result

    def _map(  # noqa: PLR0917
        self,
        function: Callable[..., Any],
        iterable: Iterable[Any],
        kind: int,
        chunksize: int | None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        self._check_running()
        engine = self._engine
        chunksize = self._chunksize if chunksize is None else chunksize
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if not isinstance(iterable, Sized):
            iterable = list(iterable)
        length = len(iterable)
        if chunksize is None:
            chunksize = -(-length // (4 * self._processes)) or 1
        known = engine.known(function)
        result = MapResult(
            engine, self, function, known, self._options, chunksize=chunksize, length=length
        )
        if not length:
            return result
        progress = Progress.of(self._progress, length, engine.call_later)
        result.expect(callback, error_callback, progress)
        try:
            result.chunks = [
                Chunk(result, index, kind, given)
                for index, given in enumerate(_chunks(iterable, chunksize))
            ]
        except Exception as error:  # noqa: BLE001  # the iterable's own
            result.fail(error)
            return result
        result.count_chunks()
        for chunk in result.chunks:
            engine.submit(chunk)
        return result

    def imap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """Yield the results in the order of the elements, as they come.

        An iterable without a length may be endless: it is read only so far ahead as the
        results are taken.

        Args:
            func: Called with each element.
            iterable: The elements.
            chunksize: How many travel, and fail, together. Small tasks are gathered anyhow.
            buffersize: The most results that are ahead of those taken; None leaves it to the
                pool.
        """
        return self._each(Arrivals, func, iterable, chunksize, buffersize)

    def imap_unordered(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """As :meth:`imap`, but yield the results in the order in which they come."""
        return self._each(UnorderedArrivals, func, iterable, chunksize, buffersize)

    def istarmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """As :meth:`imap`, with each element unpacked into the arguments."""
        return self._each(Arrivals, func, iterable, chunksize, buffersize, star=True)

    def istarmap_unordered(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Any:
        """As :meth:`imap_unordered`, with each element unpacked into the arguments."""
        return self._each(UnorderedArrivals, func, iterable, chunksize, buffersize, star=True)

    def istarmap_results(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
    ) -> IMapIterator:
        """As :meth:`istarmap`, but an iterator of chunks where ``chunksize`` is above 1.

        For the executor, whose iterator knows a deadline.
        """
        return self._imap(Arrivals, func, iterable, chunksize, buffersize, star=True)

    def _each(
        self,
        kind_of_arrivals: type[Arrivals],
        function: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        *,
        star: bool = False,
    ) -> Any:
        """What the four above are: one result after the other."""
        it = self._imap(kind_of_arrivals, function, iterable, chunksize, buffersize, star=star)
        return it if chunksize == 1 else itertools.chain.from_iterable(it)

    def _imap(
        self,
        kind_of_arrivals: type[Arrivals],
        function: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        *,
        star: bool = False,
    ) -> IMapIterator:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and (not _is_int(buffersize) or buffersize < 1):
            raise ValueError("buffersize must be None or an int of at least 1")
        engine = self._engine
        chunked = chunksize > 1
        if chunked:
            kind = records.STARMAP if star else records.MAP
        else:
            kind = records.CALL if star else records.ONE
        arrivals = kind_of_arrivals(
            engine, self, kind, function, engine.known(function), self._options
        )
        it = IMapIterator(arrivals)
        length = len(iterable) if isinstance(iterable, Sized) else None
        arrivals.progress = Progress.of(self._progress, length, engine.call_later)
        inert = is_inert(iterable)
        source: Iterable[Any] = iterable
        if chunked:
            source = _chunks(iterable, chunksize)
        elif star:
            source = map(tuple, iterable)
            inert = False
        if inert and buffersize is None:
            engine.submit_all((Feed(arrivals, source),))
        else:
            limit = buffersize
            if limit is None and length is not None:
                limit = 1 << 62
            self._readers.add(Reader(it, arrivals, source, engine, limit))
        return it


def _is_int(value: object) -> bool:
    return isinstance(value, int)


def _chunks(iterable: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    if isinstance(iterable, list | tuple | range):
        for begin in range(0, len(iterable), size):
            yield iterable[begin : begin + size]  # type: ignore[misc]
        return
    items = iter(iterable)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk
