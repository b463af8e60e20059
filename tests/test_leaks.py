"""The measure that every test is held to sees what it should see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import leaks


@pytest.fixture
def before() -> leaks.Snapshot:
    return leaks.snapshot()


def test_nothing_is_reported_where_nothing_is_left(before: leaks.Snapshot) -> None:
    assert not leaks.settle(before)


def test_a_forked_child_is_reported_and_ended(before: leaks.Snapshot) -> None:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    left = leaks.settle(before, patience=0)
    assert f"process {pid}, child of this process" in str(left)
    leaks.end(left)
    os.close(theirs)
    assert not leaks.settle(before)


def test_a_zombie_is_reported(before: leaks.Snapshot) -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    left = leaks.settle(before, patience=0)
    assert f"process {pid}: a zombie" in str(left)
    os.waitpid(pid, 0)


def test_a_child_that_is_just_ending_is_waited_for(before: leaks.Snapshot) -> None:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    process = leaks.Process.read(pid)
    assert process is not None
    reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
    reaper.start()
    os.close(theirs)
    assert not leaks.settle(before, patience=60)
    reaper.join()


def test_a_grandchild_whose_parent_is_gone_is_reported(before: leaks.Snapshot) -> None:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        if (grandchild := os.fork()) == 0:
            signal.pause()
        os.write(theirs, b"%d" % grandchild)
        os._exit(0)
    grandchild = int(os.read(ours, 16))
    os.waitpid(pid, 0)
    os.close(ours)
    os.close(theirs)
    left = leaks.settle(before, patience=0)
    assert [process.pid for process in left.processes] == [grandchild]
    leaks.end(left)
    assert not leaks.settle(before)


def test_a_program_whose_parent_is_gone_is_reported(before: leaks.Snapshot) -> None:
    script = 'sleep 600 >/dev/null 2>&1 & echo "$!"'
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    left = leaks.settle(before, patience=0)
    assert [process.pid for process in left.processes] == [int(done.stdout)]
    assert "sleep 600" in str(left)
    leaks.end(left)
    assert not leaks.settle(before)


def test_a_thread_is_reported_with_the_place_where_it_waits(before: leaks.Snapshot) -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="forgotten")
    thread.start()
    left = leaks.settle(before, patience=0)
    assert "thread 'forgotten', now in " in str(left)
    go.set()
    thread.join()


def test_the_watcher_may_idle(before: leaks.Snapshot) -> None:
    go = threading.Event()
    (name,) = leaks.IDLE_THREADS
    thread = threading.Thread(target=go.wait, name=name)
    thread.start()
    assert not leaks.settle(before, patience=0)
    go.set()
    thread.join()


def test_a_descriptor_is_reported_with_what_it_is(before: leaks.Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "open"
    with path.open("w") as file:
        left = leaks.settle(before, patience=0)
        assert str(left) == f"descriptor {file.fileno()} -> {path}"


def test_a_pidfd_is_reported_with_its_process(before: leaks.Snapshot) -> None:
    fd = os.pidfd_open(os.getpid())
    left = leaks.settle(before, patience=0)
    os.close(fd)
    assert str(left).startswith(f"descriptor {fd} -> ")
    assert str(left).endswith(f" of process {os.getpid()}")


def test_an_epoll_that_was_made_anew_is_no_leak() -> None:
    first = os.eventfd(0)
    before = leaks.snapshot()
    second = os.eventfd(0)
    os.close(first)
    left = leaks.settle(before, patience=0)
    os.close(second)
    assert not left


def test_a_file_in_shared_memory_is_reported(before: leaks.Snapshot) -> None:
    path = Path(f"/dev/shm/mpcluster-{os.getpid()}-test")
    path.touch()
    try:
        left = leaks.settle(before, patience=0)
    finally:
        path.unlink()
    assert f"file {path}" in str(left)


def test_a_descriptor_in_a_reference_cycle_is_collected(before: leaks.Snapshot) -> None:
    class Holder:
        def __init__(self) -> None:
            self.fd = os.eventfd(0)
            self.itself = self

        def __del__(self) -> None:
            os.close(self.fd)

    Holder()
    assert not leaks.settle(before)


LEAKY = """
import os, threading

def test_leaves_a_descriptor():
    os.eventfd(0)

def test_leaves_nothing():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_the_test_that_leaks_fails_and_no_other(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import *\nfrom tests.conftest import _settled, _nothing_left_behind\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, *options, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "this test left behind:\ndescriptor" in done.stdout
