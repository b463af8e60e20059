"""ClusterPool, as a program uses it."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import itertools
import multiprocessing
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import warnings
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback

import numpy as np
import pytest

import mpcluster
from mpcluster import (
    ClusterPool,
    PoolClosedError,
    SerializationError,
    TaskCancelledError,
    TaskTimeoutError,
    WorkerDiedError,
)
from tests import running


def square(x):
    return x * x


def fail(x):
    raise ValueError(x)


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(fifo):
    """Runs until somebody opens the other end."""
    with open(fifo, "rb"):
        pass


@pytest.fixture
def pool():
    with ClusterPool(2) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path):
    """A fifo: a task that opens it runs until the test does."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def open_gate(gate):
    with open(gate, "wb"):
        pass


def full(pool, size):
    """Wait until there are ``size`` living workers."""
    deadline = time.monotonic() + 60
    while not (len(pool._pool) == size and all(p.is_alive() for p in pool._pool)):
        assert time.monotonic() < deadline, pool._pool
        pool.apply(abs, (1,))


# -- the verbs ---------------------------------------------------------------------------------


def test_every_verb_gives_what_multiprocessing_gives(pool):
    numbers = list(range(-50, 50))
    expected = [abs(n) for n in numbers]
    assert pool.apply(abs, (-3,)) == 3
    assert pool.apply(int, ("11",), {"base": 2}) == 3
    assert pool.apply_async(abs, [-3]).get() == 3
    assert pool.submit(int, "11", base=2).result() == 3
    assert pool.map(abs, numbers) == pool.map(abs, iter(numbers)) == expected
    assert pool.map(abs, numbers, 7) == pool.map_async(abs, numbers).get() == expected
    assert list(pool.imap(abs, numbers)) == list(pool.imap(abs, iter(numbers))) == expected
    assert list(pool.imap(abs, numbers, 7)) == list(pool.imap(abs, iter(numbers), 7)) == expected
    assert sorted(pool.imap_unordered(abs, numbers)) == sorted(expected)
    assert sorted(pool.imap_unordered(abs, iter(numbers), 7)) == sorted(expected)
    pairs = [(2, 3), (3, 2)]
    assert pool.starmap(pow, pairs) == pool.starmap_async(pow, pairs).get() == [8, 9]
    assert list(pool.istarmap(pow, pairs)) == list(pool.istarmap(pow, pairs, 2)) == [8, 9]
    assert sorted(pool.istarmap_unordered(pow, iter(pairs))) == [8, 9]


def test_an_empty_map_is_ready_and_calls_nobody_back(pool):
    called = []
    result = pool.map_async(abs, [], callback=called.append)
    assert result.ready()
    assert result.get() == []
    assert list(pool.imap(abs, [])) == list(pool.imap(abs, iter([]))) == []
    assert not called


def test_lambdas_closures_and_what_was_defined_later_are_run(pool):
    base = 10
    assert pool.map(lambda x: x + base, range(3)) == [10, 11, 12]
    base = 20
    assert pool.map(lambda x: x + base, range(3)) == [20, 21, 22]
    later = {}
    exec("def f(x): return [x]", later)
    assert pool.apply(later["f"], (1,)) == [1]


def test_a_bound_method_travels_with_the_state_of_now(pool):
    from tests.pool.test_functions import Counter

    counter = Counter()
    assert pool.apply(counter.get) == 0
    counter.count = 5
    assert pool.apply(counter.get) == 5


def test_two_tasks_given_the_same_list_do_not_see_each_others_changes(pool):
    shared = [1]
    assert list(pool.imap(lambda x: x.append(2) or len(x), [shared] * 20)) == [2] * 20


# -- errors ------------------------------------------------------------------------------------


def test_an_error_arrives_as_itself_with_the_remote_traceback(pool):
    with pytest.raises(ValueError, match="7") as caught:
        pool.apply(fail, (7,))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "raise ValueError(x)" in caught.value.__cause__.tb


def test_all_chunks_of_a_map_run_before_its_error_is_raised(pool, tmp_path):
    def touch(n):
        (tmp_path / str(n)).touch()
        if n == 3:
            raise ValueError(n)

    with pytest.raises(ValueError, match="3"):
        pool.map(touch, range(20), 1)
    assert len(list(tmp_path.iterdir())) == 20


def test_an_unpicklable_argument_fails_its_task_and_is_named(pool):
    results = [pool.apply_async(id, (arg,)) for arg in (1, threading.Lock(), 2)]
    with pytest.raises(SerializationError, match="lock"):
        results[1].get()
    assert [type(results[n].get()) for n in (0, 2)] == [int, int]


def test_what_a_reduce_of_an_argument_raises_is_raised_as_it_is(pool):
    class Odd:
        def __reduce__(self):
            raise RuntimeError("not me")

    with pytest.raises(RuntimeError, match="not me"):
        pool.apply(id, (Odd(),))


def test_an_unpicklable_result_is_a_maybe_encoding_error(pool):
    with pytest.raises(MaybeEncodingError, match="lock"):
        pool.apply(threading.Lock)
    assert pool.apply(abs, (-1,)) == 1


class Poison:
    def __reduce__(self):
        return int, ("no number",)


class PoisonError(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def raise_poison():
    raise PoisonError(1, 2)


def test_what_does_not_unpickle_here_fails_its_task_alone(pool):
    with pytest.raises(SerializationError, match="cannot be unpickled here"):
        pool.apply(Poison)
    with pytest.raises(SerializationError, match="cannot be unpickled here") as caught:
        pool.apply(raise_poison)
    assert "PoisonError" in str(caught.value.__cause__)
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.parametrize("exit_", [sys.exit, lambda: (_ for _ in ()).throw(KeyboardInterrupt)])
def test_a_task_that_exits_ends_neither_its_worker_nor_the_pool(pool, exit_):
    pids = {p.pid for p in pool._pool}
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        pool.apply(exit_)
    assert {p.pid for p in pool._pool} == pids


# -- death -------------------------------------------------------------------------------------


DEATHS = {
    "SIGKILL": killed,
    "exit": lambda *_: os._exit(3),
    "SIGSEGV": lambda *_: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)),
    "abort": lambda *_: (faulthandler.disable(), os.abort()),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("position", [0, 10, 19])
def test_a_death_costs_exactly_the_task_that_ran(pool, death, position):
    deadly = DEATHS[death]
    task = lambda n: deadly() if n == position else n  # noqa: E731
    results = [pool.submit(task, n) for n in range(20)]
    with pytest.raises(WorkerDiedError) as caught:
        results[position].result()
    assert caught.value.pid is not None
    expected = [n for n in range(20) if n != position]
    assert [r.result() for n, r in enumerate(results) if n != position] == expected
    full(pool, 2)


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
def test_a_death_in_a_stream_is_one_error_at_its_place(pool, verb):
    task = lambda n: killed() if n == 500 else n  # noqa: E731
    stream = getattr(pool, verb)(task, range(1000))
    good, bad = [], []
    while True:
        try:
            good.append(next(stream))
        except StopIteration:
            break
        except WorkerDiedError as error:
            bad.append((len(good), error))
    assert sorted(good) == [n for n in range(1000) if n != 500]
    assert len(bad) == 1
    if verb == "imap":
        assert bad[0][0] == 500


def test_each_of_many_small_tasks_runs_once_when_one_kills_its_worker(pool, tmp_path):
    log = tmp_path / "log"

    def note(n):
        with open(log, "a") as file:
            file.write(f"{n}\n")
        if n == 1500:
            killed()
        return n

    results = [pool.submit(note, n) for n in range(3000)]
    with pytest.raises(WorkerDiedError):
        results[1500].result()
    assert all(r.result() == n for n, r in enumerate(results) if n != 1500)
    assert sorted(map(int, log.read_text().split())) == list(range(3000))


class KillsWhenLoaded:
    def __reduce__(self):
        return killed, ()


class KillsWhenDumped:
    def __reduce__(self):
        killed()


def test_a_death_while_the_task_is_unpickled_or_the_result_pickled_is_that_tasks(pool):
    results = [pool.submit(square, 1), pool.submit(id, KillsWhenLoaded())]
    results += [pool.submit(KillsWhenDumped), pool.submit(square, 2)]
    for n in (1, 2):
        with pytest.raises(WorkerDiedError):
            results[n].result()
    assert (results[0].result(), results[3].result()) == (1, 4)


def test_a_worker_stopped_in_the_middle_of_its_answer_stalls_nobody(pool):
    engine = pool._engine
    with engine._turn._held:  # nobody reads, so the worker gets stuck half-way
        stopped = pool.apply_async(lambda: [os.urandom(999) for _ in range(400)])
        link = stopped.link
        assert select.select([link.socket], [], [], 60)[0]
        os.kill(link.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, link.pid, os.WSTOPPED)
    assert pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
    assert not stopped.ready()
    os.kill(link.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError):
        stopped.get()
    full(pool, 2)


def test_a_task_is_begun_again_as_often_as_retries_says(pool, tmp_path):
    def dies_twice():
        marks = len(list(tmp_path.iterdir()))
        (tmp_path / str(marks)).touch()
        if marks < 2:
            killed()
        return marks

    with pytest.raises(WorkerDiedError):
        pool.with_options(retries=1).apply(dies_twice)
    assert pool.with_options(retries=1).apply(dies_twice) == 2


def test_an_idle_worker_that_is_killed_is_replaced_and_told_of(pool):
    told = threading.Event()
    seen = []
    pool.on("death", lambda process: (seen.append(process), told.set()))
    victim = pool._pool[0]
    victim.kill()
    assert told.wait(60)
    assert seen == [victim]
    assert victim.exitcode == -signal.SIGKILL
    full(pool, 2)
    assert pool.stats()["deaths"] == 1


def test_the_names_are_those_that_logs_know(pool):
    for process in pool._pool:
        assert process.name.startswith("ForkPoolWorker-")
    with ClusterPool(1, name="crunch") as named:
        assert named._pool[0].name == "crunch-1"


# -- limits ------------------------------------------------------------------------------------


def test_a_task_that_overruns_its_limit_fails_alone(gate):
    with ClusterPool(2, task_timeout=0.2) as pool:
        results = [pool.submit(square, n) for n in range(5)]
        late = pool.submit(wait_for, gate)
        results += [pool.submit(square, n) for n in range(5)]
        with pytest.raises(TaskTimeoutError, match="limit of 0.2 s") as caught:
            late.result()
        assert isinstance(caught.value, TimeoutError)
        assert [r.result() for r in results] == [0, 1, 4, 9, 16] * 2
        full(pool, 2)


def test_a_running_task_can_be_cancelled_and_the_pool_is_full_again(pool, gate):
    result = pool.submit(wait_for, gate)
    while not result.running():
        pool.apply(abs, (1,))
    assert result.cancel()
    with pytest.raises(TaskCancelledError):
        result.result()
    full(pool, 2)


def test_no_task_waits_behind_a_slow_one_while_a_worker_is_idle(pool, gate):
    for _ in range(50):  # it becomes known as short
        pool.map(square, range(50), 1)

    def maybe(n):
        if n == 5:
            wait_for(gate)
        return n

    list(pool.imap(maybe, [0] * 1000))
    results = [pool.submit(maybe, n) for n in range(300)]
    assert [results[n].result() for n in range(300) if n != 5] == [n for n in range(300) if n != 5]
    assert not results[5].ready()
    open_gate(gate)
    assert results[5].result() == 5


def test_a_worker_with_too_much_memory_is_replaced_after_its_task():
    with ClusterPool(1, max_memory=1 << 30) as pool:
        first = pool.apply(os.getpid)
        assert pool.apply(os.getpid) == first
    with ClusterPool(1, max_memory=1 << 20) as pool:  # any Python has more
        pids = set()
        deadline = time.monotonic() + 60
        while len(pids) < 2 and time.monotonic() < deadline:
            pids.add(pool.apply(os.getpid))
    assert len(pids) == 2


def test_maxtasksperchild_counts_tasks():
    with ClusterPool(1, maxtasksperchild=3) as pool:
        pids = [pool.apply(os.getpid) for _ in range(9)]
    runs = [len(list(group)) for _, group in itertools.groupby(pids)]
    assert runs == [3, 3, 3]


def test_resize_grows_and_shrinks(pool):
    pool.resize(4)
    assert len(pool._pool) == 4
    pool.resize(1)
    full(pool, 1)
    assert pool.map(abs, range(10)) == list(range(10))


# -- endless input -----------------------------------------------------------------------------


def test_an_endless_input_is_read_only_so_far_as_its_results_are_taken(pool):
    read = [0]

    def endless():
        for n in itertools.count():
            read[0] = n
            yield n

    stream = pool.imap(square, endless(), buffersize=10)
    assert list(itertools.islice(stream, 100)) == [n * n for n in range(100)]
    assert read[0] <= 110


def test_an_endless_input_without_a_buffersize_is_bounded_too(pool):
    stream = pool.imap_unordered(abs, itertools.count())
    assert len(set(itertools.islice(stream, 20_000))) == 20_000
    assert stream.ahead <= 1 << 14


def test_an_input_that_waits_for_a_result_gets_it(pool):
    seen = threading.Semaphore(2)

    def follows():
        for n in range(20):
            assert seen.acquire(timeout=60)
            yield n

    for n, value in enumerate(pool.imap(square, follows())):
        assert value == n * n
        seen.release()


def test_an_error_of_the_input_comes_at_its_place(pool):
    def breaks():
        yield from range(5)
        raise KeyError("input")

    stream = pool.imap(square, breaks())
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(KeyError) as caught:
        next(stream)
    assert caught.value.__cause__ is None
    with pytest.raises(StopIteration):
        next(stream)


def test_next_with_a_timeout_that_passes_loses_nothing(pool, gate):
    stream = pool.imap(wait_for, [gate])
    with pytest.raises(multiprocessing.TimeoutError):
        stream.next(0.01)
    open_gate(gate)
    assert stream.next() is None


# -- callbacks ---------------------------------------------------------------------------------


def test_a_callback_may_use_the_pool_and_wait(pool):
    done = threading.Event()
    seen = []

    def callback(value):
        seen.append(pool.apply(abs, (value,)))
        done.set()

    pool.apply_async(abs, (-5,), callback=callback)
    assert done.wait(60)
    assert seen == [5]


def test_a_callback_may_terminate_the_pool():
    done = threading.Event()
    with ClusterPool(1) as pool:
        pool.apply_async(fail, (1,), error_callback=lambda _: (pool.terminate(), done.set()))
        assert done.wait(60)


def test_many_awaited_results(pool):
    async def main():
        return await asyncio.gather(*(pool.apply_async(square, (n,)) for n in range(200)))

    assert asyncio.run(main()) == [n * n for n in range(200)]


def test_many_threads_at_once(pool):
    wrong = []

    def use(k):
        wrong.extend(n for n in range(200) if pool.apply(square, (n + k,)) != (n + k) ** 2)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_progress_is_told_to_the_end(pool):
    seen = []
    shown = pool.with_options(progress=lambda done, total: seen.append((done, total)))
    shown.map(square, range(100), 10)
    assert seen[-1] == (100, 100)
    assert list(shown.imap(square, range(50)))
    assert seen[-1] == (50, 50)


# -- large data --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5_000, 100_000, 3_000_000])
def test_arrays_and_bytes_of_every_size_go_there_and_back(pool, size):
    array = np.frombuffer(os.urandom(size), dtype=np.uint8)
    data = os.urandom(size)
    assert np.array_equal(pool.apply(np.copy, (array,)), array)
    assert pool.map(bytes, [data] * 4, 1) == [data] * 4
    assert pool.apply(list, ([data] * 3,)) == [data] * 3


def test_a_socket_may_be_an_argument_and_a_result(pool):
    ours, theirs = socket.socketpair()
    with ours, theirs, pool.apply(lambda s: s, (theirs,)) as back:
        ours.send(b"x")
        assert back.recv(1) == b"x"


# -- the beginning -----------------------------------------------------------------------------


def test_wrong_arguments_are_refused_in_the_words_of_multiprocessing():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="Number of processes must be at least 1"):
            ClusterPool(wrong)
    for wrong in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            ClusterPool(1, maxtasksperchild=wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ClusterPool(1, initializer=3)
    with pytest.raises(ValueError, match="spawn"):
        ClusterPool(1, context=multiprocessing.get_context("spawn"))
    with pytest.raises(ValueError, match="task_timeout"):
        ClusterPool(1, task_timeout=0)
    with pytest.raises(ValueError, match="retries"):
        ClusterPool(1, retries=-1)


_remembered = []


def remember(thing):
    _remembered.append(thing)


def recall():
    return [type(thing).__name__ for thing in _remembered]


def test_initargs_are_inherited_not_pickled():
    with ClusterPool(1, initializer=remember, initargs=(threading.Lock(),)) as pool:
        assert pool.apply(recall) == ["lock"]
        with pytest.raises(WorkerDiedError):
            pool.apply(killed)
        assert pool.apply(recall) == ["lock"]  # by the template, too


def test_an_initializer_that_raises_breaks_the_pool_with_its_error_and_forks_no_storm():
    started = []

    class Counted(ClusterPool):
        @staticmethod
        def Process(ctx, *args, **kwds):  # noqa: N802
            started.append(1)
            return ctx.Process(*args, **kwds)

    with Counted(2, initializer=fail, initargs=(9,)) as pool:
        for _ in range(2):
            with pytest.raises(
                WorkerDiedError, match=r"initializer .* raised ValueError\(9\)"
            ) as caught:
                pool.apply(abs, (1,))
            assert isinstance(caught.value.__cause__, ValueError)
            with pytest.raises(WorkerDiedError):
                pool.map(abs, range(100))
    assert len(started) <= 4


def test_workers_that_die_before_they_are_ready_break_the_pool():
    with (
        ClusterPool(2, initializer=os._exit, initargs=(5,)) as pool,
        pytest.raises(WorkerDiedError, match="before it was ready"),
    ):
        pool.apply(abs, (1,))


# -- the end -----------------------------------------------------------------------------------


def test_a_closed_pool_refuses_work_and_join_waits_for_what_it_has(tmp_path):
    pool = ClusterPool(2)
    results = [pool.apply_async(square, (n,)) for n in range(100)]
    stream = pool.imap(square, (n for n in range(100)))
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    pool.close()
    pool.close()
    for verb in (pool.map, pool.imap, pool.starmap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Pool not running"):
            verb(square, [1])
    with pytest.raises(RuntimeError):
        pool.submit(square, 1)
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    pool.join()
    assert [r.get() for r in results] == list(stream) == [n * n for n in range(100)]
    assert pool._pool == []


def test_join_runs_the_rest_of_a_stream_that_nobody_takes(tmp_path):
    pool = ClusterPool(2)
    pool.imap_unordered(lambda n: (tmp_path / str(n)).touch(), (n for n in range(300)))
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 300


def test_terminate_with_work_under_way_fails_what_is_left(gate):
    pool = ClusterPool(2)
    results = [pool.apply_async(wait_for, (gate,)) for _ in range(10)]
    result = pool.map_async(wait_for, [gate] * 1000, 1)
    stream = pool.imap(wait_for, itertools.repeat(gate))
    pool.terminate()
    pool.terminate()
    pool.join()
    for left in (*results, result):
        with pytest.raises(TaskCancelledError):
            left.get()
    with pytest.raises(TaskCancelledError):
        next(stream)


def test_terminate_ends_workers_that_ignore_sigterm():
    with ClusterPool(
        2, initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_IGN)
    ) as pool:
        pool.map(square, range(10))
        processes = list(pool._pool)
    assert all(not p.is_alive() for p in processes)


def test_a_dropped_pool_warns_and_leaves_nothing():
    pool = [ClusterPool(2)]
    pool[0].apply(abs, (1,))
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        pool.clear()
    gc.collect()


def test_a_pool_with_results_under_way_is_not_lost():
    pool = ClusterPool(1)
    result = pool.map_async(time.sleep, [0.01] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del pool
        gc.collect()
        result.wait()
        assert result.get() == [None] * 5
        del result
        gc.collect()


def test_a_pool_cannot_be_pickled(pool):
    with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
        pickle.dumps(pool)


def test_a_pool_inherited_by_a_fork_says_whose_it_is_and_harms_nobody(pool):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            pool.apply(abs, (1,))
        except PoolClosedError as error:
            os.write(write_end, str(error).encode())
            pool.terminate()
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_end)
    assert f"belongs to process {os.getpid()}" in os.read(read_end, 1000).decode()
    os.close(read_end)
    assert pool.apply(abs, (-1,)) == 1


def test_pools_can_be_nested(pool):
    def inner(n):
        with ClusterPool(2) as nested:
            return sum(nested.map(square, range(n)))

    assert pool.map(inner, [3, 4]) == [5, 14]


def test_a_recipe_with_processes_of_its_own_works():
    class NoDaemonProcess(multiprocessing.context.ForkProcess):
        @property
        def daemon(self):
            return False

        @daemon.setter
        def daemon(self, value):
            pass

    class NoDaemonContext(multiprocessing.context.ForkContext):
        Process = NoDaemonProcess

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ClusterPool(2, context=NoDaemonContext()) as pool:
            assert type(pool._pool[0]) is NoDaemonProcess
            assert pool.map(square, range(10)) == [n * n for n in range(10)]
            with pytest.raises(WorkerDiedError):
                pool.apply(killed)
            full(pool, 2)


def test_the_context_has_it():
    context = mpcluster.get_context()
    with context.Pool(1) as pool:
        assert type(pool) is ClusterPool
        assert pool._ctx is context
        assert pool.apply(abs, (-1,)) == 1


@pytest.mark.slow
def test_ctrl_c_in_a_map_is_one_keyboard_interrupt_and_silence_from_the_workers():
    program = running.begin(
        "-c",
        "import mpcluster, time\n"
        "def nap(_):\n print('napping', flush=True); time.sleep(60)\n"
        "with mpcluster.ClusterPool(2) as pool:\n"
        "  pool.map(nap, range(4), 1)\n",
    )
    assert program.stdout is not None
    assert program.stdout.readline() == program.stdout.readline() == "napping\n"
    os.killpg(program.pid, signal.SIGINT)
    done = running.finish(program)
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.returncode == -signal.SIGINT


@pytest.mark.slow
def test_a_program_that_forgets_its_pool_ends():
    done = running.python(
        """
        import mpcluster, warnings
        warnings.simplefilter("ignore")
        pool = mpcluster.ClusterPool(2)
        print(pool.map(abs, [-1, -2]))
        pool.imap(abs, iter(int, 1))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")
