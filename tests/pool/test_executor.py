"""ClusterExecutor, as a program uses it."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import signal
import time

import pytest

from mpcluster import ClusterExecutor, WorkerDiedError


@pytest.fixture
def executor():
    with ClusterExecutor(2) as executor:
        yield executor


def test_submit_wait_and_as_completed(executor):
    futures = [executor.submit(pow, n, 2) for n in range(50)]
    assert concurrent.futures.wait(futures, timeout=60).not_done == set()
    assert {f.result() for f in concurrent.futures.as_completed(futures)} == {
        n * n for n in range(50)
    }


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_takes_several_iterables_and_ends_with_the_shortest(executor, chunksize):
    mapped = executor.map(pow, range(10), itertools.count(), chunksize=chunksize)
    assert list(mapped) == [n**n for n in range(10)]


def test_map_over_an_endless_iterable_returns_and_yields(executor):
    assert list(itertools.islice(executor.map(abs, itertools.count()), 5)) == [0, 1, 2, 3, 4]


def test_map_is_late_with_the_built_in_timeout_error(executor):
    with pytest.raises(TimeoutError):
        list(executor.map(time.sleep, [60], timeout=0.05))
    executor.kill_workers()


def test_wrong_arguments_are_refused_as_by_the_process_pool_executor():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            ClusterExecutor(wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ClusterExecutor(1, initializer=3)
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        ClusterExecutor(1, max_tasks_per_child=0)


def test_after_shutdown_it_refuses_and_what_it_had_is_done():
    executor = ClusterExecutor(2)
    futures = [executor.submit(abs, n) for n in range(100)]
    executor.shutdown()
    executor.shutdown()
    assert [f.result() for f in futures] == list(range(100))
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.map(abs, [1])


def test_cancel_futures_cancels_what_has_not_begun(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    executor = ClusterExecutor(1)
    first = executor.submit(gate.read_bytes)
    rest = [executor.submit(abs, n) for n in range(100)]
    executor.shutdown(wait=False, cancel_futures=True)
    gate.write_bytes(b"go")
    executor.shutdown()
    assert first.result() == b"go"
    assert all(f.cancelled() for f in rest)


def test_one_death_fails_one_future_and_the_executor_goes_on(executor):
    futures = [executor.submit(abs, n) for n in range(20)]
    futures[10] = executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerDiedError):
        futures[10].result()
    assert executor.submit(abs, -1).result() == 1
    assert [f.result() for n, f in enumerate(futures) if n != 10] == [
        n for n in range(20) if n != 10
    ]


@pytest.mark.parametrize("verb", ["kill_workers", "terminate_workers"])
def test_the_workers_can_be_ended_at_once(executor, verb):
    processes = executor.pool.workers
    late = executor.submit(time.sleep, 600)
    getattr(executor, verb)()
    assert not any(p.is_alive() for p in processes)
    with pytest.raises((WorkerDiedError, concurrent.futures.CancelledError)):
        late.result()


def test_each_future_of_an_ended_executor_raises_an_error_of_its_own(executor):
    futures = [executor.submit(time.sleep, 600) for _ in range(6)]
    executor.kill_workers()
    errors = [future.exception() for future in futures]
    assert len({id(error) for error in errors}) == len(futures)
