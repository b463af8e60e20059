"""Small calls travel in runs; each is still begun, lost and answered for by itself."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import threading
from collections import Counter
from typing import ClassVar

import pytest

from mpcluster import ClusterPool, TaskTimeoutError, WorkerDiedError

#: Seconds after which something that has to come is not awaited any more.
PATIENCE = 60.0


class Counts:
    """How often each task was begun, in memory that the workers share with the test.

    They inherit ``Counts.current``, which is set before a pool is made.
    """

    current: ClassVar[Counts]

    def __init__(self, tasks: int) -> None:
        self._bytes = mmap.mmap(-1, tasks)
        self._heard, self._say = os.pipe()

    def begin(self, task: int) -> None:
        self._bytes[task] += 1

    def wait(self) -> None:
        """In a worker: until the test lets it go on."""
        os.read(self._heard, 1)

    def let_go_on(self, calls: int = 1) -> None:
        os.write(self._say, b"x" * calls)

    def close(self) -> None:
        os.close(self._heard)
        os.close(self._say)

    def __call__(self) -> list[int]:
        return list(self._bytes[:])


@pytest.fixture
def counts():
    Counts.current = Counts(3000)
    yield Counts.current
    Counts.current.close()


@pytest.fixture
def pool(counts):
    """One whose workers are given many calls at once, for it knows that they are short."""
    with ClusterPool(2) as pool:
        assert list(pool.imap(same, range(3000))) == list(range(3000))
        yield pool


def same(value):
    return value


def collected(results) -> list[object]:
    """All results; in the place of one that is an error, its class."""
    seen: list[object] = []
    while True:
        try:
            seen.append(next(results))
        except StopIteration:
            return seen
        except Exception as error:
            seen.append(type(error))


@pytest.mark.parametrize("victim", [0, 1, 700, 1999])
def test_a_worker_that_dies_in_a_run_costs_the_one_call(counts, victim):
    def work(task):
        Counts.current.begin(task)
        if task == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with ClusterPool(2) as pool:
        seen = collected(pool.imap(work, range(2000)))
        assert seen == [WorkerDiedError if n == victim else n for n in range(2000)]
        assert counts()[:2000] == [1] * 2000


def test_calls_submitted_in_a_burst_are_lost_one_by_one_too(counts):
    def work(task):
        Counts.current.begin(task)
        if task in (300, 301, 800):
            os._exit(1)
        return task

    with ClusterPool(2) as pool:
        futures = [pool.submit(work, task) for task in range(1000)]
        lost = [n for n, future in enumerate(futures) if future.exception(PATIENCE)]
        assert lost == [300, 301, 800]
        assert counts()[:1000] == [1] * 1000


def test_a_call_of_a_run_that_may_be_begun_again_is(counts):
    def work(task):
        Counts.current.begin(task)
        if task == 250 and Counts.current()[250] == 1:
            os._exit(1)
        return task

    with ClusterPool(2, retries=1) as pool:
        assert list(pool.imap(work, range(500))) == list(range(500))
        assert counts()[:500] == [2 if n == 250 else 1 for n in range(500)]


def test_what_lies_behind_a_slow_call_goes_to_another_worker(pool, counts):
    """It waits for all others: those in the same run, too."""

    def work(task):
        if task == 1200:
            Counts.current.begin(task)
            Counts.current.wait()
        return task

    results = pool.imap_unordered(work, range(3000))
    seen = [results.next(PATIENCE) for _ in range(2999)]
    assert counts()[1200] == 1
    counts.let_go_on()
    assert results.next(PATIENCE) == 1200
    assert sorted(seen) == [n for n in range(3000) if n != 1200]


def test_only_the_call_of_a_run_that_overruns_its_limit_fails(counts):
    def work(task):
        if task == 600:
            Counts.current.wait()
        return task

    with ClusterPool(2) as pool:
        limited = pool.with_options(task_timeout=0.5)
        seen = collected(limited.imap(work, range(1000)))
        assert seen == [TaskTimeoutError if n == 600 else n for n in range(1000)]


def test_a_worker_that_may_do_few_calls_is_given_no_longer_runs():
    def work(_):
        return os.getpid()

    with ClusterPool(2, maxtasksperchild=7) as pool:
        done = Counter(pool.imap(work, range(100)))
    assert max(done.values()) <= 7
    assert len(done) >= 100 / 7


def test_errors_and_values_of_every_kind_come_in_their_places(pool):
    big = "x" * 100_000  # more than a ring has room for

    def work(task):
        if task % 10 == 3:
            raise ValueError(task)
        return {0: task, 1: [task], 2: big, 5: None, 6: task * 0.5, 7: 1j * task}.get(task % 10)

    expected = [
        {0: n, 1: [n], 2: big, 3: ValueError, 6: n * 0.5, 7: 1j * n}.get(n % 10) for n in range(500)
    ]
    assert collected(pool.imap(work, range(500))) == expected
    futures = [pool.submit(work, n) for n in range(500)]
    assert [f.result(PATIENCE) if n % 10 != 3 else ValueError for n, f in enumerate(futures)] == (
        expected
    )


def test_no_two_calls_get_the_same_object(pool):
    """As if each travelled alone: what one does to its argument, the next does not see."""

    def work(thing):
        thing.append(1)
        return len(thing)

    common: list[int] = []
    assert list(pool.imap(work, [common] * 1000)) == [1] * 1000
    futures = [pool.submit(work, common) for _ in range(1000)]
    assert {future.result(PATIENCE) for future in futures} == {1}


def test_a_call_of_a_run_that_cannot_be_pickled_fails_alone(pool):
    lock = threading.Lock()
    given = [lock if n == 40 else [n] for n in range(100)]
    seen = collected(pool.imap(same, given))
    assert [n for n, value in enumerate(seen) if value != [n]] == [40]


def test_a_function_that_cannot_be_loaded_in_the_worker_fails_each_call(pool):
    class Odd:
        def __call__(self, _):
            return "loaded"

        def __reduce__(self):
            return int, ("no number",)

    assert collected(pool.imap(Odd(), range(50))) == [ValueError] * 50


def test_a_cancelled_call_between_others_is_not_begun_and_they_are_done(pool, counts):
    def work(task):
        Counts.current.begin(task)
        if task < 2:
            Counts.current.wait()
        return task

    futures = [pool.submit(work, task) for task in range(100)]
    assert futures[50].cancel()
    counts.let_go_on(2)
    assert [f.result(PATIENCE) for n, f in enumerate(futures) if n != 50] == [
        n for n in range(100) if n != 50
    ]
    assert counts()[50] == 0


def test_threads_that_share_an_iterator_get_each_result_once(pool):
    results = pool.imap(same, range(20_000))
    seen: list[list[int]] = [[], [], []]

    def consume(mine: list[int]) -> None:
        mine.extend(results)

    threads = [threading.Thread(target=consume, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(itertools.chain(*seen)) == list(range(20_000))


def test_an_iterator_that_was_dropped_reads_no_more_of_its_input():
    ended = threading.Event()

    def endless():
        try:
            yield from itertools.count()
        finally:
            ended.set()

    with ClusterPool(1) as pool:
        results = pool.imap(same, endless())
        assert next(results) == 0
        del results
        assert ended.wait(PATIENCE)
