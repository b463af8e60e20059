"""The twenty defects of other pools that matter most, each as a test that ours has not got it.

The number in the docstring is that of the report. ``tests/pool/test_peers.py`` runs those of the
standard library's pools on these pools, and sees them fail or hang; so can you (``kinds.py``).
"""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from mpcluster import ClusterProcess, WorkerDiedError
from tests import leaks, running
from tests.pool import crashing
from tests.pool.crashing import Accident, Board, happen
from tests.pool.kinds import make_executor, make_pool

pytestmark = pytest.mark.timeout(60)

#: Seconds after which something is not awaited any more.
PATIENCE = 30.0

WORKERS = 2
TASKS = 12

#: A lock of the program, for a worker to take.
lock = threading.Lock()


@pytest.fixture
def board() -> Iterator[Board]:
    Board.current = Board(TASKS, WORKERS)
    yield Board.current
    Board.current.close()
    del Board.current


def kill(pid: int) -> None:
    """Return when it is dead."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        os.close(pidfd)


def sleep_for_ever(*_: object) -> None:
    Board.current.begin(0)
    os.write(Board.current.say, b"s")
    time.sleep(3600)


class Reports:
    """What ``sys.unraisablehook`` and ``threading.excepthook`` were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[BaseException | None] = []
        for module, name in ((sys, "unraisablehook"), (threading, "excepthook")):
            monkeypatch.setattr(module, name, lambda args: self.errors.append(args.exc_value))


def test_01_a_worker_dies_in_a_task(board):
    """gh-66587 (bpo-22393): its result never came, and get() waited for it for ever."""
    with make_pool(WORKERS) as pool:
        lost = pool.apply_async(happen, ("SIGKILL",))
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            lost.get()
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


@pytest.mark.parametrize("size", [450_000, 8 << 20])
def test_02_a_worker_dies_while_it_writes_a_big_result(board, size):
    """Of the family of gh-66587, pebble#97, pebble#13: half a result hung the whole pool."""
    tasks = crashing.tasks(TASKS, 3, Accident("SIGKILL", "writing the result", size))
    with make_pool(WORKERS) as pool:
        pending = [pool.apply_async(crashing.work, (task,)) for task in tasks]
        lost = pending.pop(3)
        assert [result.get() for result in pending] == [0, 1, 2, *range(4, TASKS)]
        lost.wait()
        if not lost.successful():  # not all of it was handed over before
            with pytest.raises(WorkerDiedError, match="SIGKILL"):
                lost.get()
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def test_03_an_idle_worker_is_killed():
    """gh-96062: it held the lock of the queue, and the pool was dead."""
    with make_pool(WORKERS) as pool:
        for worker in list(pool._pool):
            kill(worker.pid)
        assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
    pool.join()


def test_04_terminate_after_an_idle_worker_was_killed():
    """gh-78178, gh-73945: leaving ``with``, or terminate(), waited for that lock, too."""
    with make_pool(WORKERS) as pool:
        assert pool.apply(abs, (-1,)) == 1
        for worker in list(pool._pool):
            kill(worker.pid)
    pool.join()


def test_05_one_death_fails_one_future(board):
    """joblib/loky#1, joblib#812, gh-101267: it failed all, and the executor was of no use."""
    with make_executor(WORKERS) as executor:
        lost = executor.submit(happen, "SIGKILL")
        others = [executor.submit(abs, -number) for number in range(50)]
        assert [future.result() for future in others] == list(range(50))
        with pytest.raises(WorkerDiedError):
            lost.result()
        assert executor.submit(abs, -1).result() == 1


class NeedsTwo(Exception):
    """It pickles with one argument, and wants two when it is made again."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}, for {why}")


def raise_what_does_not_unpickle() -> None:
    raise NeedsTwo("no", "good reason")


def test_06_an_exception_that_does_not_unpickle():
    """gh-103061, gh-79492, multiprocess#33: it ended the thread that reads results."""
    with make_pool(WORKERS) as pool:
        with pytest.raises(Exception, match="no, for good reason|NeedsTwo"):
            pool.apply_async(raise_what_does_not_unpickle).get()
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


class DoesNotUnpickle:
    """Made in the worker, it cannot be made again here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def test_07_a_result_that_does_not_unpickle():
    """Related to pebble#146: it broke the pool, or hung it."""
    with make_executor(WORKERS) as executor:
        lost = executor.submit(DoesNotUnpickle)
        others = [executor.submit(abs, -number) for number in range(20)]
        with pytest.raises(Exception, match="not a number"):
            lost.result()
        assert [future.result() for future in others] == list(range(20))
        assert executor.submit(abs, -1).result() == 1


class OwnBaseException(BaseException):
    """Not to be caught by ``except Exception``."""


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), OwnBaseException("odd")])
def test_08_a_task_raises_what_is_no_exception(error):
    """gh-82265: the worker ended and the result never came."""
    with make_pool(WORKERS) as pool:
        with pytest.raises(type(error)):
            pool.apply_async(raise_it, (error,)).get()
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def test_09_a_callback_raises(monkeypatch):
    """gh-83371: it ended the thread that reads results."""
    reports = Reports(monkeypatch)
    with make_pool(WORKERS) as pool:
        result = pool.apply_async(abs, (-1,), callback=lambda _: raise_it(ValueError("made up")))
        assert result.get() == 1
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()
    assert [str(error) for error in reports.errors] == ["made up"]


def fail_to_begin() -> None:
    os.write(Board.current.say, b"i")
    raise ValueError("cannot begin")


def test_10_an_initializer_raises(board):
    """gh-87472: workers were forked for ever, and nobody was told why."""
    with (
        pytest.raises(Exception, match="cannot begin"),
        make_pool(WORKERS, fail_to_begin) as pool,
    ):
        pool.apply(abs, (-1,))
    begun = 0
    while select.select([board.heard], [], [], 0)[0]:
        begun += len(os.read(board.heard, 1000))
    assert 1 <= begun <= 20


def test_11_a_result_is_asked_for_after_the_pool(board):
    """gh-126743, gh-79659: after ``with`` had ended, get() waited for ever."""
    with make_pool(WORKERS) as pool:
        result = pool.apply_async(sleep_for_ever)
        assert board.hear() == b"s"
    with pytest.raises((CancelledError, OSError, RuntimeError, ValueError)):
        result.get()
    pool.join()


def slow_abs(number: int) -> int:
    """Slow enough for hundreds of tasks to be far more than a pool has any use for."""
    time.sleep(0.002)
    return abs(number)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_12_imap_reads_no_further_than_it_must(method):
    """gh-64192, gh-84291: it read an endless iterable until the memory was full."""
    read = itertools.count()
    with make_pool(WORKERS) as pool:
        results = getattr(pool, method)(slow_abs, (next(read) for _ in itertools.count()))
        taken = sorted(next(results) for _ in range(50))
        assert pool.apply(abs, (-1,)) == 1  # and has time for others
        assert next(read) < 2000
        if method == "imap":
            assert taken == list(range(50))
    pool.join()


def test_13_the_map_of_an_executor_takes_an_endless_iterable():
    """gh-74028: it never returned."""
    with make_executor(WORKERS) as executor:
        results = executor.map(abs, itertools.count())
        assert list(itertools.islice(results, 500)) == list(range(500))
        # There is no end to be waited for: leaving `with` drops what nobody asks for any more.
        del results


def take_the_lock() -> bool:
    with lock:
        return True


def test_14_a_worker_is_replaced_while_a_lock_is_held():
    """gh-93580, gh-50970, gh-84559: the new worker inherited it, held by nobody."""
    with make_pool(1, maxtasksperchild=1) as pool, lock:
        for _ in range(3):
            pool.apply(abs, (-1,))
        assert pool.apply(take_the_lock)
    pool.join()


def test_15_two_threads_join_a_process():
    """gh-148318, gh-130895: one of them saw no exit code, and a process that is still alive."""
    process = ClusterProcess(target=os._exit, args=(5,))
    process.start()
    seen = []

    def look() -> None:
        process.join()
        seen.append((process.exitcode, process.is_alive()))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.close()
    assert seen == [(5, False)] * 4


def test_16_a_worker_is_reaped_by_somebody_else():
    """gh-92881: it was alive for ever."""
    with make_pool(WORKERS) as pool:
        worker = pool._pool[0]
        os.kill(worker.pid, signal.SIGKILL)
        try:
            os.waitpid(worker.pid, 0)
        except ChildProcessError:
            pass  # the pool was quicker
        assert not worker.is_alive()
        assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))
    pool.join()


def test_17_an_executor_replaces_its_workers_after_some_tasks():
    """gh-115634, gh-152967: with max_tasks_per_child it stopped when the first had done theirs."""
    with make_executor(WORKERS, max_tasks_per_child=2) as executor:
        futures = [executor.submit(os.getpid) for _ in range(20)]
        assert len({future.result() for future in futures}) == 10


def test_18_a_running_task_is_stopped(board):
    """gh-128041: it could not be, and leaving ``with`` waited for it."""
    with make_executor(WORKERS) as executor:
        running_one = executor.submit(sleep_for_ever)
        assert board.hear() == b"s"
        assert running_one.cancel()
        with pytest.raises(CancelledError):
            running_one.result()
        assert executor.submit(abs, -1).result() == 1


def big_result(_: int) -> bytes:
    os.write(Board.current.say, b"b")
    return bytes(1 << 20)


def test_19_terminate_in_an_error_callback(board):
    """gh-87129: it waited for the thread that it ran in, while workers waited to be read."""
    done = threading.Event()
    pool = make_pool(WORKERS)
    results = []

    def end(_: BaseException) -> None:
        # Each word beyond the results that have come is a worker with a large one to write.
        heard = 0
        while heard - sum(result.ready() for result in results) < WORKERS:
            board.hear()
            heard += 1
        pool.terminate()
        done.set()

    for number in range(300):
        try:
            if number == 10:
                pool.apply_async(raise_it, (ValueError("made up"),), error_callback=end)
            results.append(pool.apply_async(big_result, (number,)))
        except ValueError:  # it is over
            break
    assert done.wait(PATIENCE)
    pool.join()


CTRL_C = """
import os, time
from tests.pool.kinds import make_pool

def work(_):
    os.write(1, b"w")
    time.sleep(3600)

with make_pool(4) as pool:
    pool.map(work, range(4), 1)
"""


def test_20_ctrl_c_in_map():
    """bpo-8296: each worker printed a traceback, and sometimes there was no end."""
    program = running.begin("-c", CTRL_C)
    assert program.stdout is not None
    try:
        assert program.stdout.read(4) == "wwww"
        # The whole group gets the signal. Its master is the last to look, so that there is time
        # for the workers to say whatever they have to say.
        os.kill(program.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
        os.killpg(program.pid, signal.SIGINT)
        wait_until_they_are_done(program.pid)
    finally:
        os.kill(program.pid, signal.SIGCONT)
        done = running.finish(program)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stdout == ""


def wait_until_they_are_done(group: int) -> None:
    """Return when the others of the group sleep or are dead, with no signal to come."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        busy = {}
        for process in leaks.family():
            if os.getpgid(process.pid) == group != process.pid and process.state != "Z":
                status = Path(f"/proc/{process.pid}/status").read_text()
                pending = re.search(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
                assert pending is not None
                if process.state == "R" or int(pending[1], 16):
                    busy[str(process)] = pending[1]
        if not busy:
            return
        os.sched_yield()
    raise AssertionError(f"they never come to rest: {busy}")
