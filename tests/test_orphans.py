"""No worker outlives its root master, whatever ends that one and whatever the worker does."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Seconds from the master's death to its workers': the promise, with room for a busy machine.
LIMIT = 10.0

MASTER = """
import ctypes
import http.server
import re
import signal
import sys
import threading
import time

import mpcluster as cluster

ways = {}

def way(function):
    ways[function.__name__] = function
    return function

@way
def serves():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    cluster.send("ready")
    server.serve_forever()

@way
def waits():
    cluster.send("ready")
    threading.Event().wait()

@way
def spins():
    cluster.send("ready")
    while True:
        pass

@way
def spins_in_c():
    cluster.send("ready")
    re.match("(a*)*$", "a" * 100 + "b")  # holds the interpreter's lock for ages

@way
def ignores_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cluster.send("ready")
    threading.Event().wait()

@way
def never_reads():
    cluster.send("ready")
    ctypes.PyDLL(None).sleep(600)  # with the lock held, too

@way
def has_a_nested_one():
    nested = cluster.ClusterProcess(target=spins_nested)
    nested.start()
    nested.on("message", cluster.send)
    threading.Event().wait()

def spins_nested():
    import os
    cluster.worker.send(("nested", os.getpid()))
    while True:
        pass

if cluster.is_master:
    def ready(worker, message):
        pid = message[1] if isinstance(message, tuple) else worker.pid
        print(pid, worker.pid, flush=True)
    cluster.on("message", ready)
    for _ in range(int(sys.argv[2])):
        if sys.argv[3:] == ["in a thread that ends"]:
            thread = threading.Thread(target=cluster.fork, args=(ways[sys.argv[1]],))
            thread.start()
            thread.join()
        else:
            cluster.fork(ways[sys.argv[1]])
    cluster.join()
"""


def start(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[str], set[int]]:
    """Run the master; return it and its descendants' pids, all at work."""
    program = tmp_path / "master.py"
    program.write_text(MASTER)
    master = subprocess.Popen(
        [sys.executable, "-W", "ignore", program, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert master.stdout is not None
    pids: set[int] = set()
    for _ in range(int(arguments[1])):
        pids |= {int(pid) for pid in master.stdout.readline().split()}
    return master, pids


def wait_for_ends(pidfds: list[int]) -> int:
    """Return how many of the processes live on at the limit."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left:
        ready = poll.poll(LIMIT * 1000)
        if not ready:
            break
        for pidfd, _ in ready:
            poll.unregister(pidfd)
            left -= 1
    return left


def end_and_count(master: subprocess.Popen[str], pids: set[int], signum: int) -> int:
    """End the master by a signal; return how many of the others outlive it."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        master.send_signal(signum)
        master.wait()
        left = wait_for_ends(pidfds)
        for pidfd in pidfds:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return left
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
        assert master.stdout is not None
        master.stdout.close()


WAYS = ["serves", "waits", "spins", "spins_in_c", "ignores_sigterm", "never_reads"]


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_is_gone_when_its_master_is_killed(tmp_path: Path, way: str) -> None:
    master, pids = start(tmp_path, way, "4")
    assert len(pids) == 4
    assert end_and_count(master, pids, signal.SIGKILL) == 0


@pytest.mark.parametrize("way", ["waits", "spins", "spins_in_c", "ignores_sigterm"])
def test_a_worker_is_gone_when_its_master_is_terminated(tmp_path: Path, way: str) -> None:
    """One that does not follow SIGTERM gets SIGKILL after ``kill_timeout``."""
    master, pids = start(tmp_path, way, "2")
    assert end_and_count(master, pids, signal.SIGTERM) == 0
    assert master.returncode == -signal.SIGTERM


def test_a_nested_worker_is_gone_too(tmp_path: Path) -> None:
    master, pids = start(tmp_path, "has_a_nested_one", "2")
    assert len(pids) == 4
    assert end_and_count(master, pids, signal.SIGKILL) == 0


def test_a_worker_outlives_the_thread_that_forked_it(tmp_path: Path) -> None:
    """The leash is the process's, not the thread's; and it holds all the same."""
    master, pids = start(tmp_path, "waits", "2", "in a thread that ends")
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        assert not select.select(pidfds, [], [], 0)[0]
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    assert end_and_count(master, pids, signal.SIGKILL) == 0
