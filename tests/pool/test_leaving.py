"""A pool that is closed does what it has, and leaves: once, and not before it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mpcluster import ClusterExecutor, ClusterPool
from mpcluster.pool import crew
from mpcluster.pool.link import Link

pytestmark = pytest.mark.timeout(60)

#: Seconds after which something is not awaited any more.
PATIENCE = 30.0


def test_the_workers_of_a_closed_pool_stay_for_a_slow_input():
    """Quiet between two items is not the end."""
    goes_on = threading.Event()
    is_waiting = threading.Event()

    def slow() -> Iterator[int]:
        yield -1
        is_waiting.set()
        assert goes_on.wait(PATIENCE)
        yield from (-2, -3)

    pool = ClusterPool(2)
    results = pool.imap(abs, slow())
    assert next(results) == 1
    assert is_waiting.wait(PATIENCE)
    pool.close()
    goes_on.set()
    assert list(results) == [2, 3]
    pool.join()


def test_a_closed_pool_leaves_when_its_input_ends_after_the_last_result():
    """Nobody joins it, and nothing more comes that could tell it."""
    goes_on = threading.Event()

    def slow() -> Iterator[int]:
        yield -1
        assert goes_on.wait(PATIENCE)

    pool = ClusterPool(2)
    workers = pool.workers
    results = pool.imap(abs, slow())
    assert next(results) == 1
    pool.close()
    goes_on.set()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    assert list(results) == []
    pool.join()


def test_a_closed_pool_dismisses_its_workers_once(monkeypatch):
    """And rests until they are gone, instead of looking again and again."""
    pool = ClusterPool(3)
    assert pool.apply(abs, (-1,)) == 1
    dismissals = []
    dismiss = pool._crew.dismiss
    monkeypatch.setattr(pool._crew, "dismiss", lambda: dismissals.append(dismiss()))
    workers = pool.workers
    pool.close()
    for worker in workers:
        worker.join(PATIENCE)
    pool.join()
    assert 1 <= len(dismissals) <= 2  # by the attendant, and by join()


def test_shutdown_and_join_may_be_called_again():
    """As often as one likes, in any order."""
    executor = ClusterExecutor(2)
    assert executor.submit(abs, -1).result() == 1
    executor.shutdown(wait=False)
    executor.shutdown(wait=True)
    executor.shutdown(wait=True)
    pool = ClusterPool(2)
    pool.close()
    pool.join()
    pool.close()
    pool.join()
    pool.terminate()
    pool.join()


def test_a_worker_that_nobody_can_talk_to_does_not_live_and_the_others_are_ended(monkeypatch):
    """The memory that is shared with the second one cannot be mapped here."""
    made = []

    def fails_once(*args):
        made.append(args)
        if len(made) == 2:
            raise MemoryError
        return Link(*args)

    monkeypatch.setattr(crew, "Link", fails_once)
    with pytest.raises(MemoryError):
        ClusterPool(3)
    assert len(made) == 3
