"""What a forked child must not wait for, since whoever held it is not there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from mpcluster.process import ClusterProcess
from tests.running import python

SLOW_MODULE = """
import threading
started, go_on = threading.Event(), threading.Event()
first = threading.current_thread() is not threading.main_thread()
if first:
    import builtins
    builtins.slow_module_is_half_way(started, go_on)
DONE = 7
"""


@pytest.fixture
def importing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Thread]:
    """Return what lets go on, and the thread that is in the middle of an import."""
    import builtins

    half_way, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        half_way.set()
        go_on.wait()

    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builtins, "slow_module_is_half_way", wait, raising=False)
    thread = threading.Thread(target=importlib.import_module, args=("slow_module",))
    thread.start()
    assert half_way.wait(60)
    return go_on, thread


def _imports() -> None:
    module = importlib.import_module("slow_module")
    sys.exit(module.DONE)


def test_a_child_imports_anew_what_another_thread_was_importing(
    importing_elsewhere: tuple[threading.Event, threading.Thread],
) -> None:
    """The lock of that import belongs to a thread that the child does not have."""
    go_on, thread = importing_elsewhere
    process = ClusterProcess(target=_imports)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    process.join()
    go_on.set()
    thread.join()
    sys.modules.pop("slow_module")
    assert code == 7


def test_an_import_of_the_forking_thread_goes_on_in_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that forks while it is imported is whole in the child, too."""
    (tmp_path / "forking_module.py").write_text(
        textwrap.dedent(
            """
            import sys
            from mpcluster.process import ClusterProcess
            def child():
                import forking_module
                sys.exit(5 if forking_module.BEFORE else 1)
            BEFORE = True
            process = ClusterProcess(target=child)
            process.start()
            process.join(60)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("forking_module")
    sys.modules.pop("forking_module")
    assert module.process.exitcode == 5


READS_STDIN = """
import threading
import mpcluster as cluster

left = 10

@cluster.on("death")
def again(worker):
    global left
    left -= 1
    if worker.exitcode:
        print("exit code", worker.exitcode, flush=True)
    if left:
        cluster.fork(print, ["child"])
    else:
        print("all", flush=True)

cluster.fork(print, ["child"])
input()
"""


def test_workers_start_while_the_main_thread_waits_for_a_line(tmp_path: Path) -> None:
    """The buffer of stdin is locked by the main thread for as long as nobody types."""
    program = tmp_path / "reads_stdin.py"
    program.write_text(READS_STDIN)
    with subprocess.Popen(
        [sys.executable, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line.strip())
            if line == "all\n":
                break
        process.stdin.write("\n")
        process.stdin.close()
    assert seen == ["child"] * 10 + ["all"]
    assert process.returncode == 0


FORKED_IN_A_CALLBACK = """
import threading
import mpcluster as cluster

def first():
    pass

def second():
    main = threading.current_thread()
    print(main.name, main.daemon, main is threading.main_thread(), flush=True)
    threading.Thread(target=print, args=["its thread ends"], kwargs={"flush": True}).start()

@cluster.on("death")
def again(worker):
    if worker.id == 1:
        cluster.fork(second)

cluster.fork(first)
cluster.join()
"""


def test_a_worker_forked_in_a_callback_has_an_ordinary_main_thread(tmp_path: Path) -> None:
    """Not the watcher's, a daemon, whose threads would be daemons and die with it."""
    program = tmp_path / "forked_in_a_callback.py"
    program.write_text(FORKED_IN_A_CALLBACK)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout == "MainThread False True\nits thread ends\n"
    assert not done.stderr


UNDER_ASYNCIO = """
import asyncio
import signal
import time
import mpcluster as cluster

async def main():
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, print, "the master's handler")
    worker = cluster.ClusterProcess(target=time.sleep, args=[600])
    worker.on("death", lambda: loop.call_soon_threadsafe(ended.set))
    worker.start()
    worker.terminate()
    await ended.wait()
    await asyncio.sleep(0)
    print(worker.exit_signal)

asyncio.run(main())
"""


def test_a_workers_signals_are_not_those_of_the_masters_event_loop(tmp_path: Path) -> None:
    """SIGTERM ends the worker, and calls nothing in the master."""
    program = tmp_path / "under_asyncio.py"
    program.write_text(UNDER_ASYNCIO)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["15"], ["Signals.SIGTERM"])
    assert not done.stderr


def test_a_thread_that_threading_knows_nothing_of_is_counted() -> None:
    """It may be printing, too, when a worker is forked."""
    done = python("""
        import _thread, threading
        from mpcluster import interpreter

        before = interpreter.count_threads()
        started, go_on = threading.Event(), threading.Event()
        _thread.start_new_thread(lambda: (started.set(), go_on.wait()), ())
        started.wait()
        print(interpreter.count_threads() - before, threading.active_count())
        go_on.set()
    """)
    assert (done.stdout, done.stderr) == ("1 1\n", "")


def test_a_child_runs_the_finalizers_that_it_made_and_leaves_its_parents_alone() -> None:
    done = python("""
        import os, weakref
        from mpcluster import interpreter
        class Thing: pass
        mine, its = Thing(), Thing()
        weakref.finalize(mine, print, "the parent's, run by", os.getpid(), flush=True)
        if (pid := os.fork()) == 0:
            interpreter.renew_exit_functions()
            interpreter.leave_finalizers()
            weakref.finalize(its, print, "the child's", flush=True)
            interpreter.run_exit_functions()
            os._exit(0)
        os.waitpid(pid, 0)
        print(os.getpid(), flush=True)
    """)
    first, pid, last = done.stdout.splitlines()
    assert (first, last) == ("the child's", f"the parent's, run by {pid}")


def test_a_child_flushes_the_files_that_it_opened_and_not_its_parents(tmp_path: Path) -> None:
    mine, its = tmp_path / "mine", tmp_path / "its"
    done = python(f"""
        import gc, os
        from mpcluster import interpreter
        mine = open({str(mine)!r}, "w")
        mine.write("once")
        if (pid := os.fork()) == 0:
            gc.freeze()
            its = open({str(its)!r}, "w")
            its.write("whole")
            interpreter.flush_open_files()
            os._exit(0)
        os.waitpid(pid, 0)
        mine.close()
    """)
    assert done.returncode == 0, done.stderr
    assert (mine.read_text(), its.read_text()) == ("once", "whole")


def test_new_standard_streams_are_those_of_the_descriptors() -> None:
    done = python("""
        import io, sys
        from mpcluster import interpreter
        sys.stdout = sys.stderr = io.StringIO()
        interpreter.open_std_streams()
        print("to stdout")
        print("to stderr \\udc80", file=sys.stderr)
        assert sys.__stdout__ is sys.stdout and sys.stdin.read() == ""
    """)
    assert (done.stdout, done.stderr) == ("to stdout\n", "to stderr \\udc80\n")
