"""The programs in examples/ do what they are there to show, over real HTTP."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from examples import demo
from tests import leaks

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
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Processes that take nothing in while the block runs."""
    pids = list(pids)
    try:
        for pid in pids:
            stop(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def stop(pid: int) -> None:
    """Return when it has stopped.

    A signal is on its way for a moment, and of a process that is no child of this one nothing
    tells but its entry in /proc.
    """
    os.kill(pid, signal.SIGSTOP)
    limit = time.monotonic() + demo.PATIENCE
    while (process := leaks.Process.read(pid)) is not None and process.state != "T":
        assert time.monotonic() < limit, f"{pid} does not stop"
        os.sched_yield()


def test_eight_workers_share_the_port(restart: demo.Program) -> None:
    """Each of them answers when no other can."""
    assert len(restart.workers) == WORKERS
    for worker in restart.workers:
        with stopped(restart.workers - {worker}):
            assert restart.get() == worker


def test_a_killed_worker_is_reported_and_replaced(restart: demo.Program) -> None:
    victim = max(restart.workers)
    others = restart.workers - {victim}
    restart.kill(victim)
    restart.wait_for(f"^worker {victim} died. restart...$")
    new = restart.wait_for_worker()
    with stopped(others):
        assert restart.get() == new


def test_requests_to_the_living_are_answered_while_one_is_killed(restart: demo.Program) -> None:
    """The victim is stopped beforehand, so that no request is in its hands when it dies."""
    victim = max(restart.workers)
    stop(victim)
    with demo.Load(restart) as load:
        load.more(200)
        restart.kill(victim)
        restart.wait_for(f"^worker {victim} died")
        new = restart.wait_for_worker()
        load.more(400)
    assert load.cut == 0
    assert set(load.answered) <= restart.workers
    assert new in restart.workers


def test_the_counter_counts_every_request(counter: demo.Program) -> None:
    with ThreadPoolExecutor(demo.CLIENTS) as clients:
        answered = collections.Counter(clients.map(lambda _: counter.get(), range(500)))
    assert answered.total() == 500
    assert set(answered) <= counter.workers
    counter.wait_for("^numReqs = 500$")
    assert counter.wait_for(r"^numReqs = (\d+)$")[1] == "500"  # and none comes after it


@pytest.fixture
def fleet() -> Iterator[tuple[demo.Program, str]]:
    """The supervised fleet, and where its page is."""
    pytest.importorskip("prometheus_client", reason="needs mpcluster[monitor]")
    program = demo.Program("fleet.py", workers=2, further=("127.0.0.1:0",))
    page = ""
    try:
        while len(program.workers) < 2 or not page:
            found = program.wait_for(r"^(?:worker (\d+) serves .*:(\d+)|watch it at (\S+))$")
            if found[3]:
                page = found[3]
            else:
                program.workers.add(int(found[1]))
                program.port = int(found[2])
        yield program, page
    finally:
        program.stop()


def pids_on(page: str) -> set[int]:
    """Those that serve, by the last look of the monitor."""
    with urllib.request.urlopen(f"{page}status.json", timeout=demo.PATIENCE) as answer:
        return {one["pid"] for one in json.load(answer)["workers"] if one["serves"]}


def wait_until_shown(page: str, pids: set[int]) -> None:
    """Return when it shows these. It looks by the clock, and nothing tells of it."""
    limit = time.monotonic() + demo.PATIENCE
    while pids_on(page) != pids:
        assert time.monotonic() < limit, f"{pids_on(page)} is not {pids}"
        os.sched_yield()


def test_the_fleets_page_shows_who_serves_after_a_death_and_after_a_reload(
    fleet: tuple[demo.Program, str],
) -> None:
    program, page = fleet
    assert program.get() in program.workers
    wait_until_shown(page, program.workers)
    program.kill(max(program.workers))
    program.wait_for_worker()
    wait_until_shown(page, program.workers)
    old = set(program.workers)
    program.send_signal(signal.SIGHUP)
    for _ in old:
        program.wait_for_worker()
    program.workers -= old
    wait_until_shown(page, program.workers)
    assert program.get() in program.workers
    with urllib.request.urlopen(f"{page}healthz", timeout=demo.PATIENCE) as answer:
        assert answer.read() == b"2 of 2 serve\n"


@pytest.mark.parametrize("script", ["restart.py", "counter.py"])
def test_sigterm_to_the_master_ends_everybody(script: str) -> None:
    with demo.running(script, workers=4) as program:
        workers = [os.pidfd_open(pid) for pid in program.workers]
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
