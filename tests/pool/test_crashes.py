"""Whatever becomes of a worker, the pool loses at most the task that it had, and never hangs.

The matrix: in which way it comes to grief, at which moment, in which of the tasks, and how the
tasks were handed over. The quick round goes through every way at every moment, with one position
and one method each; the slow one through all.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
from collections.abc import Iterator
from multiprocessing.pool import MaybeEncodingError
from typing import Any

import pytest

from mpcluster import WorkerDiedError
from tests.pool import crashing
from tests.pool.crashing import DEADLY, STAGES, WAYS, Accident, Board, Task
from tests.pool.kinds import is_ours, make_pool

pytestmark = pytest.mark.timeout(60)

WORKERS = 3
TASKS = 12
POSITIONS = {"first": 0, "middle": TASKS // 2, "last": TASKS - 1}
METHODS = ("map", "imap", "imap_unordered", "apply_async", "submit")

#: Bytes of a result: more than a socket holds, so that the worker waits in the middle of it for the
#: pool to read; and so much that it goes another way, through shared memory.
SIZES = {"writing the result": 450_000, "writing a large result": 16 << 20}
MUCH = 300 << 20


@pytest.fixture
def board() -> Iterator[Board]:
    Board.current = Board(TASKS, WORKERS)
    yield Board.current
    Board.current.close()
    del Board.current


class Outcome:
    """What came of the tasks: results by number, and what was raised instead of the others."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.errors: dict[int | None, BaseException] = {}

    def note(self, number: int | None, result: Any) -> None:
        if isinstance(result, bytes):  # the big one: only its size says whose it is
            self.big = result
            return
        assert number is None or number == result
        self.results[result] = result

    def take(self, number: int | None, get: Any) -> bool:
        """Note what ``get`` returns or raises; return false when there is nothing more."""
        try:
            self.note(number, get())
        except StopIteration:
            return False
        except pytest.fail.Exception:
            raise
        except BaseException as error:
            assert number not in self.errors
            self.errors[number] = error
        return True

    big: bytes | None = None


def hand_over(pool: Any, method: str, tasks: list[Task]) -> Outcome:
    """Have the tasks done in one of the ways that a pool offers."""
    outcome = Outcome()
    if method == "map":
        try:
            results = pool.map(crashing.work, tasks, 1)
        except BaseException as error:
            outcome.errors[None] = error
        else:
            for task, result in zip(tasks, results, strict=True):
                outcome.note(task.number, result)
    elif method == "imap":
        iterator = pool.imap(crashing.work, tasks)
        for task in tasks:
            assert outcome.take(task.number, iterator.__next__)
        assert not outcome.take(None, iterator.__next__)
    elif method == "imap_unordered":
        iterator = pool.imap_unordered(crashing.work, tasks)
        while outcome.take(None, iterator.__next__):
            pass
    else:
        if method == "apply_async":
            pending = [pool.apply_async(crashing.work, (task,)) for task in tasks]
            gets = [result.get for result in pending]
        else:
            futures = [pool.submit(crashing.work, task) for task in tasks]
            gets = [future.result for future in futures]
        for task, get in zip(tasks, gets, strict=True):
            outcome.take(task.number, get)
    return outcome


def check(board: Board, outcome: Outcome, unlucky: int, accident: Accident, method: str) -> None:
    """Hold what came of it against what a pool promises."""
    others = [number for number in range(TASKS) if number != unlucky]
    finished = board.finished()
    assert [number for number in others if finished[number] != 1] == []
    if outcome.big is not None:
        # All of it was handed over before the accident.
        assert outcome.big == b"r" * len(outcome.big)
        assert outcome.errors == {}
    else:
        assert len(outcome.errors) == 1
        ((number, error),) = outcome.errors.items()
        assert number in (unlucky, None)
        check_error(error, *accident[:2])
    if method == "map" and outcome.errors:
        assert outcome.results == {}
    else:
        assert sorted(outcome.results) == others


def check_error(error: BaseException, way: str, stage: str) -> None:
    """Only the error of the accident itself will do."""
    if way in DEADLY:
        assert isinstance(error, WorkerDiedError)
        assert error.exitcode == DEADLY[way]
        assert error.pid is not None
        return
    kind = {
        "sys.exit": SystemExit,
        "exception": ValueError,
        "MemoryError": MemoryError,
    }[way]
    if stage == "running":
        assert type(error) is kind
        if way == "exception":
            assert "in work" in str(error.__cause__)
    elif stage == "unpickling the task":
        assert isinstance(error, kind | pickle.PicklingError | WorkerDiedError)
        assert way == "sys.exit" or not isinstance(error, WorkerDiedError)
    elif stage == "pickling the result":
        assert isinstance(error, kind | MaybeEncodingError | pickle.PicklingError)
    else:
        assert isinstance(error, kind | MaybeEncodingError | pickle.PicklingError | WorkerDiedError)


def check_full(pool: Any, board: Board) -> None:
    """As many workers as it was made with work at the same time."""
    meeting = pool.map_async(crashing.meet, range(WORKERS), 1)
    board.gather()
    pids = meeting.get()
    assert len(set(pids)) == WORKERS
    assert {worker.pid for worker in pool._pool} == set(pids)


def matrix() -> list[Any]:
    cells = []
    quick = itertools.cycle(itertools.product(POSITIONS, METHODS))
    chosen = {(way, stage): next(quick) for way in WAYS for stage in STAGES}
    for way, stage, position, method in itertools.product(WAYS, STAGES, POSITIONS, METHODS):
        marks = [] if chosen[way, stage] == (position, method) else [pytest.mark.slow]
        if stage in SIZES and way == "MemoryError":
            continue  # what has no room must be large: below
        cells.append(pytest.param(way, stage, position, method, marks=marks))
    return cells


@pytest.mark.parametrize(("way", "stage", "position", "method"), matrix())
def test_exactly_the_task_concerned_fails(board, way, stage, position, method):
    """The rest completes, each task once, and the pool is full again."""
    lose_one(board, Accident(way, stage, SIZES.get(stage, 0)), POSITIONS[position], method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("way", WAYS)
def test_a_worker_is_lost_while_it_writes_300_mb(board, way, position, method):
    """What has come of the result stalls nobody."""
    accident = Accident(way, "writing a large result", MUCH)
    lose_one(board, accident, POSITIONS[position], method)


def lose_one(board: Board, accident: Accident, unlucky: int, method: str) -> None:
    with make_pool(WORKERS) as pool:
        outcome = hand_over(pool, method, crashing.tasks(TASKS, unlucky, accident))
        check(board, outcome, unlucky, accident, method)
        assert sum(board.begun()) == TASKS - (accident.stage == "unpickling the task")
        check_full(pool, board)
        # A worker that is still there has not left half a result on its line.
        for size in SIZES.values():
            assert pool.map(crashing.letters, [size] * 6, 1) == [b"l" * size] * 6
    pool.join()


@pytest.mark.skipif(not is_ours(), reason="no other pool tries again")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES[:3])
@pytest.mark.parametrize("way", DEADLY)
def test_a_task_that_lost_its_worker_is_tried_again(board, way, stage, method):
    """With retries=1 the accident, which comes once, is not to be seen in the results."""
    with make_pool(WORKERS, retries=1) as pool:
        tasks = crashing.tasks(TASKS, 5, Accident(way, stage, times=1))
        outcome = hand_over(pool, method, tasks)
        assert outcome.errors == {}
        assert sorted(outcome.results) == list(range(TASKS))
        assert board.happened == 1
        again = 0 if stage == "unpickling the task" else 1  # in the first try it was not reached
        assert board.begun() == [1] * 5 + [1 + again] + [1] * (TASKS - 6)
        check_full(pool, board)
    pool.join()


@pytest.mark.skipif(not is_ours(), reason="no other pool tries again")
@pytest.mark.parametrize("way", DEADLY)
def test_a_task_that_always_loses_its_worker_fails_when_the_retries_are_used_up(board, way):
    """It was tried once and twice more, and fails with the end of the last worker."""
    with make_pool(WORKERS, retries=2) as pool:
        accident = Accident(way, "running")
        outcome = hand_over(pool, "apply_async", crashing.tasks(TASKS, 5, accident))
        check(board, outcome, 5, accident, "apply_async")
        assert board.begun()[5] == 3
        check_full(pool, board)
    pool.join()


def idle_matrix() -> list[Any]:
    cells = []
    quick = itertools.cycle(itertools.product(POSITIONS, METHODS))
    chosen = {way: next(quick) for way in WAYS}
    for way, position, method in itertools.product(WAYS, POSITIONS, METHODS):
        marks = [] if chosen[way] == (position, method) else [pytest.mark.slow]
        cells.append(pytest.param(way, position, method, marks=marks))
    return cells


@pytest.mark.parametrize(("way", "position", "method"), idle_matrix())
def test_an_idle_worker_is_lost(board, way, position, method):
    """No task fails for it, whether it was lost before the tasks, between them or after."""
    board.way = way
    tasks = [Task(number) for number in range(TASKS)]
    some = {"first": 0, "middle": TASKS // 2, "last": TASKS}[position]
    with make_pool(WORKERS, crashing.be_ready_to_happen) as pool:
        before, after = tasks[:some], tasks[some:]
        for part in (before, after):
            if part:
                outcome = hand_over(pool, method, part)
                assert outcome.errors == {}
                assert sorted(outcome.results) == [task.number for task in part]
            if part is before:
                check_full(pool, board)  # whoever comes to it has its handler
                lose_idle(pool, board, way)
        assert board.finished() == [1] * TASKS
        check_full(pool, board)
    pool.join()


def lose_idle(pool: Any, board: Board, way: str) -> None:
    """Let it happen in one of the workers; return when it has."""
    worker = pool._pool[0]
    pidfd = os.pidfd_open(worker.pid)
    try:
        if way == "SIGKILL":
            os.kill(worker.pid, signal.SIGKILL)
        else:
            os.kill(worker.pid, signal.SIGUSR1)
            assert board.hear() == b"!"
        if way in DEADLY:
            select.select([pidfd], [], [])
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("method", METHODS)
def test_all_workers_are_lost_at_once_and_again(board, method):
    """The pool fills up as often as it is emptied."""
    tasks = [Task(number) for number in range(TASKS)]
    with make_pool(WORKERS) as pool:
        for _ in range(3):
            for worker in list(pool._pool):
                os.kill(worker.pid, signal.SIGKILL)
            check_full(pool, board)
        outcome = hand_over(pool, method, tasks)
        assert outcome.errors == {}
        assert sorted(outcome.results) == list(range(TASKS))
    pool.join()


@pytest.mark.parametrize("way", DEADLY)
def test_every_task_loses_its_worker(board, way):
    """As many errors as tasks, and a full pool after them."""
    tasks = [Task(number, Accident(way, "running")) for number in range(TASKS)]
    with make_pool(WORKERS) as pool:
        pending = [pool.apply_async(crashing.work, (task,)) for task in tasks]
        for result in pending:
            with pytest.raises(WorkerDiedError) as caught:
                result.get()
            assert caught.value.exitcode == DEADLY[way]
        assert board.begun() == [1] * TASKS
        check_full(pool, board)
    pool.join()
