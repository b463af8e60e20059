"""``ClusterPool``: takes the place of ``multiprocessing.Pool``."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable
from multiprocessing import util
from typing import Any, Final, Self, TypeVar

from mpcluster.errors import EngineUnavailableError, PoolClosedError, TaskCancelledError
from mpcluster.pool import stock
from mpcluster.pool.calls import Options
from mpcluster.pool.crew import Crew
from mpcluster.pool.making import cores, forking, maker, share_resource_tracker
from mpcluster.pool.quiet import Quiet
from mpcluster.pool.reader import Reader
from mpcluster.pool.verbs import RUN, Verbs
from mpcluster.pool.worker import Plan

__all__ = ["ClusterPool"]

INIT: Final = "INIT"
CLOSE: Final = "CLOSE"
TERMINATE: Final = "TERMINATE"
#: In a forked child: the pool is its parent's.
INHERITED: Final = "INHERITED"

C = TypeVar("C", bound=Callable[..., object])
_UNSET: Final[Any] = object()


class ClusterPool(Verbs):
    """A pool of worker processes; every method and promise of ``multiprocessing.pool.Pool``.

    A worker that dies costs the one task that it ran, and is replaced. Tasks need not be
    importable. Results are ``concurrent.futures.Future``s as well, and can be awaited.

    Args:
        processes: How many workers; as many as there are cores without it.
        initializer: Called first in each worker, as ``initializer(*initargs)``.
        initargs: Inherited by the fork, not pickled.
        maxtasksperchild: Tasks (chunks, in a map) after which a worker is replaced.
        context: A fork context of ``multiprocessing``; its ``Process`` makes the workers.
        engine: Where tasks run; None for the processes of this machine.
        task_timeout: Seconds that a task may run. Then its worker is killed, and only that
            task fails, with :class:`~mpcluster.TaskTimeoutError`.
        retries: How often a task is begun again when its worker dies.
        max_memory: Bytes of resident memory past which a worker is replaced after its task.
        name: Takes the place of ``ForkPoolWorker`` in the workers' names.

    Raises:
        ValueError: A number is out of range, or ``context`` does not fork.
        TypeError: ``initializer`` cannot be called.
        EngineUnavailableError: There is no such engine.
    """

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:  # noqa: N802
        """Make a worker's process; recipes for ``multiprocessing`` override it."""
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        engine: str | None = None,
        task_timeout: float | None = None,
        retries: int = 0,
        max_memory: int | None = None,
        name: str | None = None,
    ) -> None:
        self._life = _Life()
        self._crew: Crew | None = None
        #: The pool that this one is a view of: it lives as long as its views.
        self._origin: ClusterPool | None = None
        if engine is not None and engine != "local":
            raise EngineUnavailableError(f"there is no engine {engine!r}; leave it out")
        self._ctx = forking(context)
        if processes is None:
            processes = cores()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not _is_int(maxtasksperchild) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_memory is not None and not max_memory > 0:
            raise ValueError(f"max_memory must be a positive number of bytes, not {max_memory!r}")
        self._options = _checked(task_timeout, retries)
        self._chunksize: int | None = None
        self._progress: Any = None
        self._pid = os.getpid()
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        share_resource_tracker()
        crew = self._crew = Crew(
            maker(self, self._ctx, name),
            Plan(initializer, tuple(initargs), max_memory, stock.share(processes)),
            processes,
            maxtasksperchild,
        )
        self._engine = crew.dispatcher
        if task_timeout is not None:
            self._engine.has_timeouts = True
        try:
            crew.fill()
        except BaseException:
            crew.end(TaskCancelledError("the pool could not be started"))
            raise
        self._terminate = util.Finalize(self, _end, args=(crew, self._readers), exitpriority=15)
        self._state = RUN
        _all.add(self)

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:  # noqa: N803
        if self._origin is None and self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        kind = type(self)
        return (
            f"<{kind.__module__}.{kind.__qualname__} state={self._state} "
            f"pool_size={len(self._pool)}>"
        )

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # -- what programs look at in multiprocessing's ------------------------------------------

    @property
    def _state(self) -> str:
        return self._life.state

    @_state.setter
    def _state(self, state: str) -> None:
        self._life.state = state

    @property
    def _pool(self) -> list[Any]:
        return self._crew.processes if self._crew is not None else []

    @property
    def _processes(self) -> int:
        return self._crew.size if self._crew is not None else 0

    #: What programs look at in an executor (dask does, before it calls `submit`).
    _max_workers = _processes

    @property
    def _cache(self) -> dict[int, Any]:
        return self._engine.unfinished()

    def _repopulate_pool(self) -> None:
        assert self._crew is not None
        self._crew.fill()

    @property
    def broken_by(self) -> BaseException | None:
        """Why the pool cannot be used any more, or None: an initializer has raised."""
        return self._crew.error if self._crew is not None else None

    def _refuse(self) -> None:
        if self._state == INHERITED:
            raise PoolClosedError(
                f"this pool belongs to process {self._pid}; a forked child makes one of its own"
            )
        raise PoolClosedError("Pool not running")

    # -- the same pool, seen otherwise ---------------------------------------------------------

    def with_options(
        self,
        *,
        task_timeout: float | None = _UNSET,
        retries: int = _UNSET,
        progress: Any = _UNSET,
        chunksize: int | None = _UNSET,
    ) -> ClusterPool:
        """Return this very pool, with other defaults for the calls made through it.

        Args:
            task_timeout: Seconds that one task may run.
            retries: How often a task is begun again when its worker dies.
            progress: True for a tqdm bar, a dict of its keywords, or a callable that gets
                (done, total); total is None where it is unknown.
            chunksize: For ``map`` and its like.
        """
        seen = object.__new__(type(self))  # not copy.copy: that asks __reduce__, which refuses
        seen.__dict__.update(self.__dict__)
        seen._origin = self._origin or self
        options = self._options
        seen._options = _checked(
            options.timeout if task_timeout is _UNSET else task_timeout,
            options.retries if retries is _UNSET else retries,
        )
        if seen._options.timeout is not None:
            self._engine.has_timeouts = True
        seen._progress = self._progress if progress is _UNSET else progress
        seen._chunksize = self._chunksize if chunksize is _UNSET else chunksize
        if seen._chunksize is not None and seen._chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {seen._chunksize:n}")
        return seen

    # -- the workers ---------------------------------------------------------------------------

    @property
    def workers(self) -> list[Any]:
        """The living workers, as processes: ``pid``, ``is_alive()``, ``exitcode``."""
        return list(self._pool)

    def resize(self, processes: int) -> None:
        """Have so many workers from now on.

        New ones are there when this returns; those too many leave when they have done what
        they have.
        """
        self._check_running()
        if not _is_int(processes) or processes < 1:
            raise ValueError("Number of processes must be at least 1")
        assert self._crew is not None
        self._crew.resize(processes)

    def on(self, event: str, callback: C | None = None) -> Any:
        """Call ``callback(process)`` in the pool's thread at each ``"death"`` of a worker.

        Without a callback: a decorator.
        """
        assert self._crew is not None
        emitter = self._crew.emitter
        if callback is None:
            return lambda function: emitter.add(event, function)
        return emitter.add(event, callback)

    def off(self, event: str, callback: Callable[..., object] | None = None) -> None:
        """Unsubscribe ``callback``, or everybody."""
        assert self._crew is not None
        self._crew.emitter.discard(event, callback)

    def stats(self) -> dict[str, int]:
        """Numbers of now: workers, idle, busy, queued, under_way, and deaths so far."""
        assert self._crew is not None
        return {
            "workers": len(self._pool),
            **self._engine.counts(),
            "deaths": self._crew.deaths,
        }

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; the workers leave when all is done."""
        if self._state == RUN:
            self._state = CLOSE
            crew = self._crew
            assert crew is not None
            engine = self._engine

            readers = self._readers
            has_left = False

            def leave() -> None:
                # It may be quiet between two items of a slow input.
                nonlocal has_left
                if not has_left and not any(r.is_reading() for r in list(readers)):
                    has_left = True
                    engine.call_later(crew.dismiss)

            engine.when_quiet(leave)
            if engine.is_quiet():
                leave()

    def terminate(self) -> None:
        """End the workers at once; results that are not there raise an error."""
        if self._state == INHERITED:
            return
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for the workers to leave. After :meth:`close` or :meth:`terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        assert self._crew is not None
        if self._state == CLOSE and not self._crew.is_over:
            for reader in list(self._readers):
                reader.unbound()
            self._engine.wait(Quiet(self._engine, self._readers), None)
            self._crew.dismiss()
            self._crew.join()
            self._terminate()
        self._crew.join()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more work; as ``concurrent.futures.Executor.shutdown``.

        Args:
            wait: Return when all is done and the workers are gone.
            cancel_futures: Cancel what has not begun.
        """
        if self._state == INHERITED:
            return
        self.close()
        if cancel_futures:
            self._engine.cancel_queued()
        if wait:
            self.join()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()


class _Life:
    """What a pool and all its views have in common."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = INIT


def _end(crew: Crew, readers: Iterable[Reader]) -> None:
    for reader in list(readers):
        reader.stop()
    crew.end(TaskCancelledError("the pool was terminated before this task was done"))


def _checked(timeout: float | None, retries: int) -> Options:
    if timeout is not None and not timeout > 0:
        raise ValueError(f"task_timeout must be seconds above 0, not {timeout!r}")
    if not _is_int(retries) or retries < 0:
        raise ValueError(f"retries must be a number from 0 on, not {retries!r}")
    return Options(timeout, retries)


def _is_int(value: object) -> bool:
    return isinstance(value, int)


_all: weakref.WeakSet[ClusterPool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in list(_all):
        pool._state = INHERITED
    _all.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
