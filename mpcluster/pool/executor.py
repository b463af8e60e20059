"""``ClusterExecutor``: takes the place of ``concurrent.futures.ProcessPoolExecutor``."""

from __future__ import annotations

import concurrent.futures
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpcluster import interpreter
from mpcluster.errors import PoolClosedError, WorkerDiedError
from mpcluster.pool.failures import anew
from mpcluster.pool.pool import INHERITED, TERMINATE, ClusterPool
from mpcluster.pool.results import ApplyResult

__all__ = ["ClusterExecutor"]


class ClusterExecutor(concurrent.futures.Executor):
    """A ``concurrent.futures.Executor`` over a :class:`~mpcluster.ClusterPool`.

    Unlike ``ProcessPoolExecutor``, it is not broken by the death of a worker.

    Args:
        max_workers: How many workers; as many as there are cores without it.
        mp_context: A fork context of ``multiprocessing``.
        initializer: Called first in each worker, as ``initializer(*initargs)``.
        initargs: Inherited by the fork, not pickled.
        max_tasks_per_child: Tasks after which a worker is replaced.
        options: The keyword arguments of :class:`~mpcluster.ClusterPool`: ``task_timeout``,
            ``retries``, ``max_memory``, ``name``.

    Raises:
        ValueError: A number is out of range.
        TypeError: ``initializer`` cannot be called, or a number is none.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._pool = ClusterPool(
            max_workers, initializer, initargs, max_tasks_per_child, mp_context, **options
        )
        self._is_shut_down = False
        _expect_the_end(self._pool)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._pool!r}>"

    @property
    def pool(self) -> ClusterPool:
        """The pool beneath."""
        return self._pool

    # -- what programs look at in ProcessPoolExecutor ------------------------------------------

    @property
    def _max_workers(self) -> int:
        return self._pool._max_workers  # noqa: SLF001

    @property
    def _processes(self) -> dict[int, Any]:
        return {process.pid: process for process in self._pool.workers}

    def __del__(self) -> None:
        # Executors are dropped without a word: what was submitted is still done.
        pool = getattr(self, "_pool", None)
        if pool is not None and not self._is_shut_down:
            pool.close()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ApplyResult:
        """Call ``fn(*args, **kwargs)`` in a worker.

        Raises:
            RuntimeError: The executor was shut down.
            BrokenExecutor: Its initializer has raised.
        """
        self._check()
        error = self._pool.broken_by
        if isinstance(error, WorkerDiedError):
            raise anew(error)
        return self._pool.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As :meth:`concurrent.futures.Executor.map`; of endless iterables, too.

        Args:
            fn: Called with one element of each iterable.
            iterables: Inputs; the shortest counts.
            timeout: Seconds from now until each result must be there.
            chunksize: How many travel, and fail, together.
            buffersize: The most results that are ahead of those taken.

        Raises:
            TimeoutError: From the iterator, when a result is late.
            ValueError: A number is out of range.
        """
        self._check()
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        inputs: Iterable[Any] = zip(*iterables, strict=False)
        if buffersize is None and all(hasattr(i, "__len__") for i in iterables):
            inputs = list(inputs)
        results = self._pool.istarmap_results(fn, inputs, chunksize, buffersize)
        iterator = _until(results, deadline, chunked=chunksize > 1)
        if isinstance(inputs, list):
            return iterator
        return _Droppable(iterator, results.abandon)

    def _check(self) -> None:
        if self._is_shut_down:
            raise PoolClosedError("cannot schedule new futures after shutdown")
        if _has_ended:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more calls.

        Args:
            wait: Return when all is done and the workers are gone.
            cancel_futures: Cancel what has not begun.
        """
        self._is_shut_down = True
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def terminate_workers(self) -> None:
        """End the workers at once by SIGTERM, as of Python 3.14; those that stay, by SIGKILL."""
        self._is_shut_down = True
        self._pool.terminate()

    def kill_workers(self) -> None:
        """End the workers at once by SIGKILL, as of Python 3.14."""
        self._is_shut_down = True
        for process in self._pool.workers:
            process.kill()
        self._pool.terminate()


# -- the end of the interpreter ------------------------------------------------------------------

# The pools of executors, whose work is done before the interpreter ends: a pool's own is given
# up then. A forked child inherits pools that refuse everything, and waits for none of them.
_pools: weakref.WeakSet[ClusterPool] = weakref.WeakSet()
_is_expected = _has_ended = False


def _expect_the_end(pool: ClusterPool) -> None:
    global _is_expected
    _pools.add(pool)
    if not _is_expected:
        _is_expected = True
        interpreter.before_the_end(_finish)


def _finish() -> None:
    global _has_ended
    _has_ended = True
    for pool in list(_pools):
        if pool._state not in (INHERITED, TERMINATE):  # noqa: SLF001
            pool.shutdown(wait=True)


class _Droppable:
    """The results of an input without a length: to drop them is to want no more of it.

    ``shutdown()`` waits for what was submitted, which of an endless input has no end. Its items
    under way hold the results themselves, so these cannot tell that nobody looks.
    """

    def __init__(self, results: Iterator[Any], drop: Callable[[], object]) -> None:
        self._results = results
        self._drop = drop

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """Want no more of it."""
        self._drop()

    def __del__(self) -> None:
        self._drop()


def _until(results: Any, deadline: float | None, *, chunked: bool) -> Iterator[Any]:
    """Iterate, with what is left until the deadline for each result."""
    if deadline is None:
        return itertools.chain.from_iterable(results) if chunked else iter(results)

    def each() -> Iterator[Any]:
        while True:
            try:
                result = results.next(max(0.0, deadline - time.monotonic()))
            except StopIteration:
                return
            if chunked:
                yield from result
            else:
                yield result

    return each()
