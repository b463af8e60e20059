"""A thousand times the same: nothing is left over, and nothing hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(tmp_path: Path, program: str) -> list[str]:
    """Run it with fork's own warnings as errors; return its lines."""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


FORKS_AND_DEATHS = """
import gc
import os
import threading
import mpcluster as cluster

ROUNDS = 1000

def facts():
    gc.collect()
    status = dict(
        line.split(":", 1) for line in open("/proc/self/status").read().splitlines()
    )
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        zombies = len(children.read().split())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": zombies,
        "kB": int(status["VmRSS"].split()[0]),
    }

def rounds(number):
    for _ in range(number):
        cluster.fork(int).join()
    assert cluster.join(60)

cluster.on("death", lambda worker: deaths.append(worker.exitcode))
deaths = []
rounds(200)  # the allocator's first needs
before = facts()
rounds(ROUNDS)
after = facts()
assert deaths == [0] * (200 + ROUNDS), len(deaths)
print({name: after[name] - before[name] for name in before})
"""


def test_nothing_leaks_over_a_thousand_forks_and_deaths(tmp_path: Path) -> None:
    """Descriptors, threads, zombies; and memory, up to a page or two a hundred workers."""
    (line,) = run(tmp_path, FORKS_AND_DEATHS)
    grown: dict[str, int] = eval(line)  # our own program's dict
    assert (grown["descriptors"], grown["threads"], grown["children"]) == (0, 0, 0)
    assert grown["kB"] < 1024, grown


RESTARTS = """
import logging
import os
import sys
import threading
import mpcluster as cluster

RESTARTS = 1000
sys.setswitchinterval(0.0002)  # more switches, and no thread waits long for its turn
logging.basicConfig(stream=open(os.devnull, "w"))
log = logging.getLogger("main")
enough = threading.Event()
codes = []

def work():
    log.warning("the worker logs")
    print("the worker prints", file=open(os.devnull, "w"))
    sys.stdout.flush()
    cluster.send([os.getpid()])
    sys.exit(3)

@cluster.on("death")
def again(worker):
    codes.append(worker.exitcode)
    if len(codes) < RESTARTS:
        cluster.fork(work)
    elif len(codes) == RESTARTS + 3:
        enough.set()

heard = []
cluster.on("message", lambda worker, message: heard.append(message))
for _ in range(4):
    cluster.fork(work)
quiet = open(os.devnull, "w")
garbage = []
while not enough.is_set():
    print("the master prints", file=quiet, flush=True)
    log.warning("the master logs")
    garbage = [bytes(n) for n in range(500)]
    try:
        cluster.broadcast({"garbage": garbage[-1]})
    except ExceptionGroup:
        pass
assert cluster.join(60)
print(set(codes), len(codes), len(heard))
"""


def test_a_thousand_restarts_from_callbacks_beside_a_busy_main_thread_hang_nothing(
    tmp_path: Path,
) -> None:
    """Every worker logs, prints, sends and ends, whatever the main thread held at its fork."""
    assert run(tmp_path, RESTARTS) == ["{3} 1003 1003"]
