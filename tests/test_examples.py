"""The programs in examples/ do what they are there to show, over real HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from examples import demo
from tests import leaks

HELLO = "hello world\n"
WORKERS = 8


@pytest.fixture
def restart() -> Iterator[demo.Program]:
    with demo.running("restart.py", workers=WORKERS) as program:
        yield program


@pytest.fixture
def counter() -> Iterator[demo.Program]:
    with demo.running("counter.py", workers=WORKERS) as program:
        yield program


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that take nothing in while the block runs."""
    try:
        for pid in pids:
            stop(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def stop(pid: int) -> None:
    """Return when it has stopped: a signal is on its way for a moment."""
    os.kill(pid, signal.SIGSTOP)
    demo.wait_until(lambda: (process := leaks.Process.read(pid)) is None or process.state == "T")


def requests(program: demo.Program, number: int) -> list[str]:
    """Send so many requests, eight at a time, and return the answers."""
    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(lambda _: program.get(), range(number)))


def test_eight_workers_share_the_port(restart: demo.Program) -> None:
    """Each of them answers when no other can."""
    workers = restart.wait_for_workers(WORKERS)
    for worker in workers:
        with stopped([pid for pid in workers if pid != worker]):
            assert restart.get() == HELLO


def test_a_killed_worker_is_reported_and_replaced(restart: demo.Program) -> None:
    before = restart.wait_for_workers(WORKERS)
    victim = before[3]
    os.kill(victim, signal.SIGKILL)
    restart.wait_for(f"^worker {victim} died. restart...$")
    (new,) = set(restart.wait_for_workers(WORKERS)) - set(before)
    with stopped([pid for pid in before if pid != victim]):
        assert restart.get() == HELLO, f"worker {new} alone does not answer"


def test_requests_to_the_living_are_answered_while_one_is_killed(restart: demo.Program) -> None:
    """The victim is stopped beforehand, so that no request is in its hands when it dies."""
    victim, *_ = restart.wait_for_workers(WORKERS)
    stop(victim)
    half_way = threading.Event()
    answers = []

    def load() -> None:
        for number in range(400):
            answers.append(restart.get())
            if number == 200:
                half_way.set()

    clients = [threading.Thread(target=load) for _ in range(2)]
    for client in clients:
        client.start()
    assert half_way.wait(60)
    os.kill(victim, signal.SIGKILL)
    restart.wait_for(f"^worker {victim} died")
    for client in clients:
        client.join()
    assert answers == [HELLO] * 800


def test_the_counter_counts_every_request(counter: demo.Program) -> None:
    counter.wait_for_workers(WORKERS)
    assert requests(counter, 500) == [HELLO] * 500
    total = 501  # the first one was to see whether it serves
    counter.wait_for(f"^numReqs = {total}$")
    assert counter.wait_for(r"^numReqs = (\d+)$")[1] == str(total)


@pytest.mark.parametrize("script", ["restart.py", "counter.py"])
def test_sigterm_to_the_master_ends_everybody(script: str) -> None:
    with demo.running(script, workers=4) as program:
        workers = [os.pidfd_open(pid) for pid in program.wait_for_workers(4)]
        status = program.stop()
    try:
        assert status == -signal.SIGTERM
        for pidfd in workers:
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 0)
    finally:
        for pidfd in workers:
            os.close(pidfd)


@pytest.mark.slow
def test_the_demonstration_ends_well() -> None:
    done = subprocess.run(
        [sys.executable, str(demo.HERE / "demo.py")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("both did what they should\n")
    assert done.stderr == ""
