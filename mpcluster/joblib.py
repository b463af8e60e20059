"""A backend for joblib, and so for scikit-learn: ``Parallel`` on a ``ClusterPool``.

::

    import joblib, mpcluster.joblib

    mpcluster.joblib.register()
    with joblib.parallel_config("mpcluster", n_jobs=4):
        GridSearchCV(model, grid).fit(x, y)

What stands beside the name in ``parallel_config`` is the pool's: ``retries=1`` gives a task that
lost its worker another try, ``task_timeout=60`` ends one that takes longer. A worker that dies
fails the call with ``WorkerDiedError``; the next call has a new pool.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mpcluster.errors import EngineUnavailableError
from mpcluster.pool.pool import ClusterPool

try:
    import joblib
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ImportError as error:
    raise EngineUnavailableError(
        f"mpcluster.joblib needs joblib ({error}): pip install 'mpcluster[joblib]'"
    ) from error

__all__ = ["ClusterBackend", "register"]

NAME = "mpcluster"


def register(*, make_default: bool = False) -> None:
    """Make the backend known to joblib as ``"mpcluster"``. A second call changes nothing.

    Args:
        make_default: Use it wherever no backend is named, for the rest of the program.
    """
    joblib.register_parallel_backend(NAME, ClusterBackend, make_default=make_default)


class ClusterBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What joblib asks of a backend, done by a pool that lives as long as the call.

    A ``Parallel`` that is used in a ``with`` keeps its pool until the end of it. joblib's own
    batching stays in force: it never has more than ``pre_dispatch`` tasks on their way, of which
    the pool could make batches. A ``Parallel`` inside of a task runs in threads of the worker, as
    with joblib's other backends.

    joblib calls :meth:`submit` also from the thread in which a result has come, to hand over the
    next task; all else comes from the thread that called ``Parallel``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    _pool: ClusterPool | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers ``n_jobs`` means; -1 is one for each processor.

        Raises:
            ValueError: It is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs < 0:
            return max(int(joblib.cpu_count()) + 1 + n_jobs, 1)
        return n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,  # noqa: ARG002
        require: str | None = None,  # noqa: ARG002
        **_: Any,
    ) -> int:
        """Make the pool; return the number of its workers. One worker is the caller itself."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        threads = self.inner_max_num_threads or max(int(joblib.cpu_count()) // n_jobs, 1)
        self._pool = ClusterPool(
            n_jobs, _limit_threads, (threads,), name="joblib", **self.backend_kwargs
        )
        return n_jobs

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None
    ) -> Future[Any]:
        """Have a batch done; ``callback`` gets its future when it is."""
        assert self._pool is not None, "joblib configures a backend first"
        future: Future[Any] = self._pool.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """Return the results of a batch, or raise what it raised."""
        return future.result()

    def terminate(self) -> None:
        """End the pool; what is under way is given up."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()
            pool.join()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002
        """Give up what is under way, and be ready for more if that is asked for."""
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


def _limit_threads(threads: int) -> None:
    """In a worker: let BLAS and OpenMP use their share of the processors.

    Their settings in the environment come too late for a forked process. It also keeps GNU's
    OpenMP from waiting for threads that the fork has not copied.
    """
    try:
        import threadpoolctl
    except ImportError:  # then there is hardly anything to be limited
        return
    threadpoolctl.threadpool_limits(threads)
