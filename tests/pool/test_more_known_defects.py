"""Further defects of other pools, each as a test that ours has not got it.

The number in the docstring is that of the report; where a program had none, it says whose it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from multiprocessing.pool import MaybeEncodingError
from typing import Any

import pytest

from mpcluster import TaskTimeoutError
from tests import running
from tests.pool import crashing
from tests.pool.crashing import Accident, Board, happen
from tests.pool.kinds import is_ours, make_executor, make_pool
from tests.pool.test_known_defects import PATIENCE, kill, sleep_for_ever

pytestmark = pytest.mark.timeout(60)

WORKERS = 2
TASKS = 12

ours_alone = pytest.mark.skipif(not is_ours(), reason="the standard pools have no such option")


@pytest.fixture
def board() -> Iterator[Board]:
    Board.current = Board(TASKS, WORKERS)
    yield Board.current
    Board.current.close()
    del Board.current


def test_a_worker_dies_while_it_receives_a_task():
    """pebble#163: the task was lost. It was never begun, so another worker does it."""
    with make_pool(1) as pool:
        pid = pool.apply(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        result = pool.apply_async(len, (b"x" * (20 << 20),))  # more than a socket takes
        kill(pid)
        assert result.get() == 20 << 20
    pool.join()


def make_a_lock() -> Any:
    return threading.Lock()


def test_a_result_that_does_not_pickle():
    """mpire, no number: it hung."""
    with make_pool(WORKERS) as pool:
        with pytest.raises(MaybeEncodingError) as caught:
            pool.apply_async(make_a_lock).get()
        assert "lock" in caught.value.exc
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@ours_alone
def test_a_task_of_a_map_overruns_its_time():
    """billiard, like #248: the parent itself ended, by os._exit(1)."""
    with make_pool(WORKERS) as pool:
        limited = pool.with_options(task_timeout=0.5)
        results = limited.imap(nap, [0, 3600, 0, 0])
        assert next(results) == 0
        with pytest.raises(TaskTimeoutError):
            next(results)
        assert list(results) == [0, 0]
        with pytest.raises(TaskTimeoutError):
            limited.map(nap, [0, 3600, 0, 0], chunksize=1)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def spin() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


@ours_alone
def test_a_task_that_overruns_its_time_ignores_sigterm():
    """pebble#129: it was never killed, and took a whole processor for days."""
    with make_pool(WORKERS, task_timeout=0.5) as pool:
        with pytest.raises(TaskTimeoutError):
            pool.apply(spin)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


@ours_alone
def test_tasks_are_cancelled_as_fast_as_they_begin():
    """pebble#153: a task given to a worker that was being stopped for another never ended."""
    with make_executor(WORKERS) as executor:
        for number in range(30):
            futures = [executor.submit(nap, 3600) for _ in range(WORKERS)]
            others = [executor.submit(abs, -number) for _ in range(4)]
            for future in futures:
                future.cancel()
            assert [other.result(PATIENCE) for other in others] == [number] * 4
            assert all(future.cancelled() for future in futures)


def test_a_death_is_noticed_though_nobody_asks():
    """billiard, no number: it was noticed after ten seconds, or when somebody asked."""
    heard = threading.Event()
    with make_pool(WORKERS) as pool:
        pool.apply_async(os.kill, (0, 0))
        pool.apply_async(os._exit, (3,), error_callback=lambda _: heard.set())
        assert heard.wait(PATIENCE)
    pool.join()


def map_in_a_pool_of_its_own(numbers: list[int]) -> list[int]:
    with make_pool(WORKERS) as pool:
        result = pool.map(abs, numbers)
    pool.join()
    return result


def test_a_pool_in_a_worker_of_a_pool():
    """pebble#31: daemonic processes are not allowed to have children."""
    with make_pool(WORKERS) as pool:
        assert pool.map(map_in_a_pool_of_its_own, [[-1, -2], [-3]]) == [[1, 2], [3]]
    pool.join()


def test_lambdas_and_closures():
    """mpire, no number: a lambda in apply() hung; elsewhere it raises."""
    factor = 7
    with make_pool(WORKERS) as pool:
        assert pool.apply(lambda: factor) == 7
        assert pool.map(lambda number: number * factor, range(4)) == [0, 7, 14, 21]
    pool.join()


def test_a_function_that_is_defined_after_the_pool():
    """multiprocess#19, jupyter/notebook#5261: the workers did not know it."""
    program = running.python("""
        from tests.pool.kinds import make_pool
        pool = make_pool(2)
        class Later:
            def __init__(self, value): self.value = value
        def late(value): return Later(value + 1)
        print([later.value for later in pool.map(late, range(3))])
        pool.close()
        pool.join()
    """)
    assert (program.returncode, program.stdout) == (0, "[1, 2, 3]\n"), program.stderr


def test_shared_memory_outlives_a_worker_that_looked_into_it():
    """gh-82300: the worker's resource tracker removed it when the worker ended."""
    program = running.python("""
        from multiprocessing.shared_memory import SharedMemory
        from tests.pool.kinds import make_pool

        def look(name):
            shared = SharedMemory(name)
            seen = bytes(shared.buf[:3])
            shared.close()
            return seen

        pool = make_pool(1)
        shared = SharedMemory(create=True, size=10)
        shared.buf[:3] = b"abc"
        print(pool.apply(look, (shared.name,)))
        pool.close()
        pool.join()
        again = SharedMemory(shared.name)
        print(bytes(again.buf[:3]))
        again.close()
        shared.close()
        shared.unlink()
    """)
    assert program.stdout == "b'abc'\nb'abc'\n", program.stderr
    assert (program.returncode, program.stderr) == (0, "")


def wait_at_the_gate(_: object) -> int:
    Board.current.meet()
    return -1


def wait_or_return(number: int) -> int:
    return wait_at_the_gate(number) if number < 0 else number


@pytest.mark.parametrize("method", ["imap_unordered", "submit"])
def test_no_task_waits_behind_a_long_one_while_a_worker_is_idle(board, method):
    """ray#29466, ray#29453: short tasks waited for the long one before them.

    Thousands of short tasks come first, so that a pool that learns from them has learnt the
    wrong thing.
    """
    with make_pool(WORKERS) as pool:
        assert sum(pool.imap_unordered(abs, range(3000))) == sum(range(3000))
        short = list(range(200))
        if method == "imap_unordered":
            results = pool.imap_unordered(wait_or_return, [-1, *short])
            done = [next(results) for _ in short]
        else:
            long = pool.apply_async(wait_or_return, (-1,))
            pending = [pool.apply_async(wait_or_return, (number,)) for number in short]
            done = [result.get() for result in pending]
        assert sorted(done) == short
        assert board.hear() == b"h"
        os.write(board._open_gate, b"g")
        assert (next(results) if method == "imap_unordered" else long.get()) == -1
    pool.join()


def test_a_tuple_is_one_argument():
    """mpire, no number: map() spread a tuple over the function's parameters."""
    with make_pool(WORKERS) as pool:
        assert pool.map(len, [(1, 2), ()]) == [2, 0]
        assert list(pool.imap(len, [(1, 2), ()])) == [2, 0]
        assert pool.starmap(operator.sub, [(3, 1), (9, 2)]) == [2, 7]
    pool.join()


def test_many_tasks_are_submitted_while_nobody_reads():
    """gh-105829: the pipe that wakes the manager was full, and submit() never returned."""
    with make_executor(WORKERS) as executor:
        futures = [executor.submit(abs, -number) for number in range(20_000)]
        assert [future.result() for future in futures] == list(range(20_000))


def crash_with(_: bytes) -> None:
    happen("segfault")


def test_workers_crash_while_big_tasks_are_on_their_way(board):
    """gh-94777: the thread that fed them waited for a reader that was gone."""
    with make_executor(WORKERS) as executor:
        futures = [executor.submit(crash_with, b"x" * (4 << 20)) for _ in range(6)]
        assert all(future.exception() is not None for future in futures)


class DoesNotPickle:
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("will not travel")


def test_shutdown_at_once_after_a_task_that_does_not_pickle():
    """gh-125451, bpo-39104: shutdown() and the thread that reported the error met in a deadlock."""
    for wait_for_it in (True, False):
        executor = make_executor(WORKERS)
        assert executor.submit(abs, -1).result() == 1
        with pytest.raises(Exception, match="will not travel"):
            future = executor.submit(id, DoesNotPickle())
            executor.shutdown(wait=wait_for_it)
            future.result(PATIENCE)
        executor.shutdown(wait=True)


def test_shutdown_without_waiting_and_a_worker_that_dies_then(board):
    """gh-132969, gh-119592: the executor's thread met a state that was taken away already."""
    executor = make_executor(WORKERS)
    last = executor.submit(sleep_for_ever)
    assert board.hear() == b"s"
    lost = [executor.submit(happen, "SIGKILL") for _ in range(3)]
    others = [executor.submit(abs, -number) for number in range(10)]
    executor.shutdown(wait=False)
    assert all(future.exception(PATIENCE) is not None for future in lost)
    assert [future.result(PATIENCE) for future in others] == list(range(10))
    kill_the_sleeper(executor, last)
    executor.shutdown(wait=True)


def kill_the_sleeper(executor: Any, last: Any) -> None:
    for pid in list(executor._processes):
        with contextlib.suppress(ProcessLookupError):  # it had nothing more to do, and has left
            kill(pid)
    assert last.exception(PATIENCE) is not None


def test_a_pool_is_closed_with_work_outstanding():
    """gh-96995: it was torn down while results were on their way."""
    pool = make_pool(WORKERS)
    pending = [pool.apply_async(abs, (-number,)) for number in range(500)]
    pool.close()
    pool.join()
    assert [result.get() for result in pending] == list(range(500))


def test_a_pool_is_ended_while_tasks_are_handed_over():
    """gh-79448, gh-76067, gh-82980: threads that submitted, and terminate(), raced for the pool."""
    for _ in range(5):
        pool = make_pool(WORKERS)
        stopped = threading.Barrier(4)

        def submit(pool: Any = pool, stopped: threading.Barrier = stopped) -> None:
            stopped.wait()
            for number in itertools.count():
                try:
                    pool.apply_async(abs, (number,))
                except (ValueError, RuntimeError):
                    return

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        stopped.wait()
        pool.apply_async(abs, (-1,)).wait()
        pool.terminate()
        pool.join()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@ours_alone
def test_a_large_array_is_not_copied_into_a_pickle():
    """gh-89467: there were no out-of-band buffers; the worker's copy is not one of a pickle's."""
    np = pytest.importorskip("numpy")
    array = np.arange(2_000_000, dtype=np.float64)
    with make_pool(1) as pool:
        back = pool.apply(functools.partial(np.multiply, 2.0), (array,))
        assert (back == 2.0 * array).all()
        back[0] = 5.0  # its receiver may write to it
    pool.join()


def test_a_pool_cannot_get_all_the_workers_that_it_was_to_have():
    """gh-94243: those that were started already stayed for ever."""
    program = running.python("""
        import os, resource
        from tests import leaks
        from tests.pool.kinds import make_pool

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with make_pool(1) as pool:  # imports what it needs
            pool.apply(abs, (-1,))
        pool.join()
        before = leaks.snapshot()
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, most))
        try:
            make_pool(100)
        except OSError as error:
            print(error.strerror)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        print(leaks.settle(before) or "nothing left")
        with make_pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
        pool.join()
    """)
    assert program.stdout == "Too many open files\nnothing left\n[1, 2]\n", program.stderr


def test_workers_crash_at_every_moment():
    """loky#279, loky#437, pebble#69: a race between a crash, other crashes and shutdown."""
    Board.current = Board(200, WORKERS)
    try:
        executor = make_executor(WORKERS)
        futures = []
        for number in range(60):
            accident = Accident(
                ("SIGKILL", "os._exit", "sys.exit")[number % 3],
                ("unpickling the task", "running", "pickling the result")[number // 3 % 3],
            )
            (task,) = crashing.tasks(1, 0, accident)
            futures.append(executor.submit(crashing.work, task))
        executor.shutdown(wait=False)
        assert wait(futures, PATIENCE).not_done == set()
        assert all(future.exception() is not None for future in futures)
        executor.shutdown(wait=True)
    finally:
        Board.current.close()
        del Board.current


def test_a_pool_after_a_closed_pool():
    """pathos#258, pathos#275: the closed one was handed out again."""
    for _ in range(2):
        pool = make_pool(WORKERS)
        assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.close()
        pool.join()


def test_the_parent_is_killed():
    """celery#102: its workers stayed for ever, and went on with what they had.

    That none is left is seen by what every test is held to.
    """
    program = running.run(
        "-c",
        """
import os, signal
from tests.pool.kinds import make_pool

def spin():
    os.write(write, b"s")
    while True:
        pass

read, write = os.pipe()
pool = make_pool(2)
results = [pool.apply_async(spin) for _ in range(2)]
assert os.read(read, 1) + os.read(read, 1) == b"ss"
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert program.returncode == -signal.SIGKILL
