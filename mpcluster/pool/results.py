"""What a program holds of work under way: one class for two worlds.

An :class:`ApplyResult` is what ``multiprocessing`` returns from ``apply_async`` (``get``,
``wait``, ``ready``, ``successful``) and a ``concurrent.futures.Future`` (``result``,
``add_done_callback``, ``wait()``, ``as_completed()``), and can be awaited.

It is made for bursts of thousands: nothing but a dict of a few names is made with it. The
condition of a Future, its lists of waiters and of callbacks are made by the first that asks
for them. Whoever asks does so, and then looks whether the result has come; whoever brings the
result sets it, and then looks whether anybody has asked. The interpreter lets no two threads
write past each other, so one of them sees the other.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
import types
from _thread import LockType, allocate_lock
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import _base
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpcluster.errors import ResultTimeoutError, TaskCancelledError
from mpcluster.events import call

if TYPE_CHECKING:
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.functions import Function

__all__ = ["ApplyResult", "Call", "Chunk", "MapResult", "Options"]

_PENDING: Final = _base.PENDING
_FINISHED: Final = _base.FINISHED
_CANCELLED: Final = _base.CANCELLED_AND_NOTIFIED
_OVER: Final = frozenset({_FINISHED, _CANCELLED, _base.CANCELLED})


class Options:
    """How calls are to be treated.

    Args:
        timeout: Seconds that one call may run, or None.
        retries: How often a call is begun again when its worker dies.
    """

    __slots__ = ("retries", "timeout")

    def __init__(self, timeout: float | None = None, retries: int = 0) -> None:
        self.timeout = timeout
        self.retries = retries


class Call(Protocol):
    """One piece of work, as the engine sees it: run once, finished once."""

    kind: int  #: how it is called (:mod:`mpcluster.pool.records`)
    known_as: Function
    link: Any  #: where it is under way, None before
    number: int  #: the order's number there
    deaths: int  #: how many workers have died of it

    @property
    def count(self) -> int:
        """For how many calls it stands (:class:`mpcluster.pool.runs.Run`)."""

    @property
    def given(self) -> Any:
        """The arguments, as its kind wants them."""

    @property
    def options(self) -> Options:
        """How it is to be treated."""

    @property
    def function(self) -> Any:
        """What is called; None when it is over."""

    def finish(self, value: Any) -> None:
        """It has returned ``value``."""

    def fail(self, error: BaseException) -> None:
        """It has raised ``error``, or cannot be run."""

    def drop(self, error: BaseException) -> None:
        """The pool has ended, and it will not be run."""

    def is_over(self) -> bool:
        """Is there nothing to run any more? (It was cancelled.)"""


class Doomed:
    """What is left of a cancelled call that a worker has been sent, and may yet begin.

    It holds the place of the call there. Taken back in time it is passed over; if the worker
    begins it, it overruns its limit at once, and the worker is ended.
    """

    given = function = None
    deaths = 0
    count: Final = 1
    options = Options(0.0, 0)

    def __init__(self, call: Call, link: Any) -> None:
        self.kind = call.kind
        self.known_as = call.known_as
        self.link = link
        self.number = call.number

    def finish(self, _value: Any) -> None:
        """It came to its end before it was ended."""

    def fail(self, _error: BaseException) -> None:
        """It was ended."""

    def drop(self, _error: BaseException) -> None:
        """The pool has ended."""

    def cancel_unsent(self) -> None:
        """It is cancelled already."""

    def is_over(self) -> bool:
        """There is nothing to run."""
        return True


class ApplyResult(concurrent.futures.Future):  # type: ignore[type-arg]
    """The result of one call; also the call itself, as long as it is under way.

    Attributes:
        kind, given, function, known_as, options, link, number, deaths: See :class:`Call`.
    """

    known_as: Function

    # The defaults of nearly all results.
    _state: str = _PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _callback: Callable[[Any], object] | None = None
    _error_callback: Callable[[BaseException], object] | None = None
    _made_condition: threading.Condition | None = None
    _sleepers: list[LockType] | None = None
    _called_back: list[Callable[[Any], object]] | None = None
    link: Any = None
    number = deaths = 0
    count: Final = 1
    function: Any

    # Deliberately not the base's, which makes a condition and two lists. By position: it is
    # made for each call.
    def __init__(  # noqa: PLR0917
        self,
        engine: Engine,
        pool: object,
        kind: int,
        function: Any,
        known_as: Function,
        given: Any,
        options: Options,
    ) -> None:
        self._engine = engine
        self._pool = pool  # it is not dropped before its work is done
        self.kind = kind
        self.function = function
        self.known_as = known_as
        self.given = given
        self.options = options

    # -- what concurrent.futures looks into ------------------------------------------------

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made_condition
        if made is None:
            made = self.__dict__.setdefault("_made_condition", threading.Condition())
        return made

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self.__dict__.setdefault("_made_waiters", [])  # type: ignore[no-any-return]

    @property
    def _done_callbacks(self) -> list[Any]:
        return self._called_back or []

    # -- for the engine ----------------------------------------------------------------------

    def finish(self, value: Any) -> None:
        """It has returned `value`."""
        if self._callback is not None:
            self._engine.call_later(lambda: self._finish_with_callback(value))
        elif self._state is _PENDING:
            self._result = value
            self._publish(_FINISHED)

    def fail(self, error: BaseException) -> None:
        """It has raised `error`, or cannot be run."""
        if self._error_callback is not None:
            self._engine.call_later(lambda: self._fail_with_callback(error))
        elif self._state is _PENDING:
            self._exception = error
            self._publish(_FINISHED)

    def parts(self) -> Sequence[Any]:
        """The calls that it consists of."""
        return (self,)

    def cancel_unsent(self) -> None:
        """Cancel it; it is in no worker."""
        if self._state is _PENDING:
            self._publish(_CANCELLED)

    def drop(self, error: BaseException) -> None:
        """The pool has ended: fail, without a word to the callbacks of ``apply_async``."""
        self._callback = self._error_callback = None
        self.fail(error)

    def is_over(self) -> bool:
        """Has it a result, or been cancelled?"""
        return self._state is not _PENDING

    def _finish_with_callback(self, value: Any) -> None:
        if self._state is _PENDING:
            assert self._callback is not None
            call(self._callback, value)
            self._callback = None
            self._result = value
            self._publish(_FINISHED)

    def _fail_with_callback(self, error: BaseException) -> None:
        if self._state is _PENDING:
            assert self._error_callback is not None
            call(self._error_callback, error)
            self._error_callback = None
            self._exception = error
            self._publish(_FINISHED)

    def _publish(self, state: str) -> None:
        """Be done, and tell everybody who has asked."""
        self._state = state
        self.given = self.function = self.link = self._pool = None
        if self._sleepers is not None:
            self._wake()
        if self._made_condition is not None:
            with self._made_condition:
                for waiter in self._waiters:
                    if state is _CANCELLED:
                        waiter.add_cancelled(self)
                    elif self._exception is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                self._made_condition.notify_all()
        if self._called_back is not None:
            self._engine.call_later(self._call_back)

    def _wake(self) -> None:
        assert self._sleepers is not None
        while self._sleepers:
            try:
                self._sleepers.pop().release()
            except IndexError:  # another thread has
                break

    def _call_back(self) -> None:
        assert self._called_back is not None
        while self._called_back:
            try:
                callback = self._called_back.pop(0)
            except IndexError:
                break
            call(callback, self)

    def enlist(self) -> LockType:
        """Return a lock that is released when it is done, or when somebody has to look.

        For a thread that drives nothing itself; :meth:`delist` ends it.
        """
        lock = allocate_lock()
        lock.acquire()
        if self._sleepers is None:
            self.__dict__.setdefault("_sleepers", [])
        self._sleepers.append(lock)  # type: ignore[union-attr]
        return lock

    def delist(self, lock: LockType) -> None:
        """Release that lock no more."""
        try:
            self._sleepers.remove(lock)  # type: ignore[union-attr]
        except ValueError:
            pass

    def poke(self) -> None:
        """Let those that sleep look again: the engine has nobody who drives it."""
        if self._sleepers:
            self._wake()

    # -- multiprocessing ---------------------------------------------------------------------

    def ready(self) -> bool:
        """Is the result there?"""
        return self._state is not _PENDING

    def successful(self) -> bool:
        """Did the call return? (Not: raise.)

        Raises:
            ValueError: The result is not there yet.
        """
        if self._state is _PENDING:
            raise ValueError(f"{self!r} not ready")
        return self._state is _FINISHED and self._exception is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there, or for ``timeout`` seconds."""
        if self._state is _PENDING:
            self._engine.wait(self, None if timeout is None else time.monotonic() + timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it; raise what the call raised.

        Raises:
            multiprocessing.TimeoutError, TimeoutError: It is not there after ``timeout`` seconds.
        """
        if self._state is _PENDING:
            self._engine.wait(self, None if timeout is None else time.monotonic() + timeout)
            if self._state is _PENDING:
                raise ResultTimeoutError(f"no result within {timeout} s")
        if self._state is not _FINISHED:
            raise TaskCancelledError("this call was cancelled")
        error = self._exception
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del self, error  # the traceback holds this frame

    # -- concurrent.futures ------------------------------------------------------------------

    result = get

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the call and return what it raised, or None."""
        self.wait(timeout)
        if self._state is _PENDING:
            raise ResultTimeoutError(f"no result within {timeout} s")
        if self._state is not _FINISHED:
            raise TaskCancelledError("this call was cancelled")
        return self._exception

    def done(self) -> bool:
        """Is the result there, or the call cancelled?"""
        return self._state is not _PENDING

    def running(self) -> bool:
        """Is a worker busy with it right now?"""
        return self._state is _PENDING and self._engine.is_running(self)

    def cancelled(self) -> bool:
        """Was it cancelled?"""
        return self._state is _CANCELLED

    def cancel(self) -> bool:
        """Do not run it; if a worker runs it already, end that worker.

        Returns:
            Is it cancelled? False when the result was there already.
        """
        if self._state is _PENDING and self._engine.cancel(self):
            self._publish(_CANCELLED)
        return self._state is _CANCELLED

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(self)`` in a thread of the pool's when it is done, or here if it is."""
        if self._called_back is None:
            self.__dict__.setdefault("_called_back", [])
        callbacks: list[Any] = self._called_back  # type: ignore[assignment]
        callbacks.append(fn)
        if self._state is not _PENDING:
            try:
                callbacks.remove(fn)
            except ValueError:
                return  # it is being called
            call(fn, self)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio  # its 8 MB make each fork a quarter dearer; who awaits has it

        return asyncio.wrap_future(self).__await__()

    __class_getitem__: Any = classmethod(types.GenericAlias)


class Chunk:
    """A part of a map; a :class:`Call`."""

    count: Final = 1

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
            self._result = self._values
            self._state = _FINISHED
            self._pool = None

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
