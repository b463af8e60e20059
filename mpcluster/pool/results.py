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
import threading
import time
import types
from _thread import LockType, allocate_lock
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import _base
from typing import TYPE_CHECKING, Any, Final

from mpcluster.errors import ResultTimeoutError, TaskCancelledError
from mpcluster.events import call
from mpcluster.pool.calls import Options

if TYPE_CHECKING:
    from mpcluster.pool.engine import Engine
    from mpcluster.pool.functions import Function

__all__ = ["ApplyResult"]

_PENDING: Final = _base.PENDING
_FINISHED: Final = _base.FINISHED
_CANCELLED: Final = _base.CANCELLED_AND_NOTIFIED
_OVER: Final = frozenset({_FINISHED, _CANCELLED, _base.CANCELLED})


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
    left: Final = 1
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

    def _publish_at_once(self, value: Any) -> None:
        """Be done from the beginning."""
        self._result = value
        self._state = _FINISHED
        self._pool = None

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
