"""Programs that take a pool, an executor or a context, and are handed ours.

They are the extra ``users-test``; a test whose library is not installed is skipped.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import queue
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import mpcluster
from tests.pool.kinds import make_executor, make_pool

pytestmark = pytest.mark.timeout(90)


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: extra users-test")


# -- scipy ----------------------------------------------------------------------------------


def rosenbrock(x: Any) -> float:
    return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


def test_scipy_minimizes_with_a_pools_map():
    """differential_evolution(workers=pool.map) finds what it finds alone, step by step."""
    optimize = library("scipy.optimize")

    def minimize(workers: Any) -> Any:
        return optimize.differential_evolution(
            rosenbrock, [(-2, 2), (-2, 2)], workers=workers, updating="deferred", rng=7
        )

    with make_pool(2) as pool:
        found = minimize(pool.map)
    pool.join()
    alone = minimize(map)
    assert found.x == pytest.approx(alone.x)
    assert found.nfev == alone.nfev
    assert found.x == pytest.approx([1, 1], abs=1e-3)


# -- emcee ----------------------------------------------------------------------------------


class LogProbability:
    """A callable object, as samplers are often given."""

    def __init__(self, width: float) -> None:
        self.width = width

    def __call__(self, x: Any) -> float:
        return float(-0.5 * (x**2).sum() / self.width)


def test_emcee_samples_with_a_pool():
    """EnsembleSampler(pool=pool) walks where it walks alone."""
    emcee = library("emcee")
    np = library("numpy")
    start = np.random.default_rng(1).random((8, 2))

    def walk(pool: Any) -> Any:
        np.random.seed(3)
        sampler = emcee.EnsembleSampler(8, 2, LogProbability(2.0), pool=pool)
        sampler.run_mcmc(start, 15)
        return sampler.get_chain()

    with make_pool(2) as pool:
        chain = walk(pool)
    pool.join()
    assert (chain == walk(None)).all()


# -- dask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_executor, make_pool])
def test_dask_computes_in_a_pool(make):
    """dask.config.set(pool=...) takes the executor, and the pool."""
    dask = library("dask")
    delayed = dask.delayed
    with make(2) as pool, dask.config.set(pool=pool, scheduler="processes"):
        pids = delayed(set)([delayed(os.getpid)() for _ in range(4)])
        total = delayed(sum)([delayed(pow)(number, 2) for number in range(10)])
        where, squares = dask.compute(pids, total)
    if make is make_pool:
        pool.join()
    assert squares == 285
    assert os.getpid() not in where


# -- a data loader, as torch has one ----------------------------------------------------------


class DataLoader:
    """What torch's does with ``multiprocessing_context=``, without torch."""

    def __init__(self, data: list[int], workers: int, multiprocessing_context: Any) -> None:
        if not isinstance(multiprocessing_context, multiprocessing.context.BaseContext):
            raise TypeError("multiprocessing_context should be a context of multiprocessing")
        self._data = data
        context: Any = multiprocessing_context
        self._done = context.Event()
        self._results = context.Queue()
        self._indices = [context.Queue() for _ in range(workers)]
        self._workers = []
        for indices in self._indices:
            worker = context.Process(
                target=self._work, args=(data, indices, self._results, self._done)
            )
            worker.daemon = True
            worker.start()
            self._workers.append(worker)

    @staticmethod
    def _work(data: list[int], indices: Any, results: Any, done: Any) -> None:
        results.cancel_join_thread()
        while not done.is_set():
            try:
                index = indices.get(timeout=5)
            except queue.Empty:
                continue
            if index is None:
                return
            results.put((index, data[index] * 10, os.getpid()))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in range(len(self._data)):
            self._indices[index % len(self._workers)].put(index)
        came = {}
        for _ in self._data:
            index, value, pid = self._results.get(timeout=30)
            came[index] = value, pid
        yield from (came[index] for index in range(len(self._data)))

    def close(self) -> None:
        self._done.set()
        for indices, worker in zip(self._indices, self._workers, strict=True):
            indices.put(None)
            worker.join(30)
            assert worker.exitcode == 0
            worker.close()
            indices.close()
            indices.join_thread()
        self._results.close()
        self._results.join_thread()


def test_a_data_loader_gets_our_context():
    """multiprocessing_context=mpcluster.get_context(): its queues, events and processes."""
    loader = DataLoader([1, 2, 3, 4, 5], 2, mpcluster.get_context())
    try:
        values, pids = zip(*loader, strict=True)
        assert list(values) == [10, 20, 30, 40, 50]
        assert set(pids) == {worker.pid for worker in loader._workers}
        assert all(isinstance(worker, mpcluster.ClusterProcess) for worker in loader._workers)
    finally:
        loader.close()


def test_an_executor_of_the_standard_library_gets_our_context():
    """ProcessPoolExecutor(mp_context=mpcluster.get_context())."""
    with ProcessPoolExecutor(2, mp_context=mpcluster.get_context()) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]


def test_our_context_makes_our_pools():
    """``mp = mpcluster.get_context()`` in the place of ``import multiprocessing as mp``."""
    with mpcluster.get_context().Pool(2) as pool:
        assert isinstance(pool, mpcluster.ClusterPool)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()
