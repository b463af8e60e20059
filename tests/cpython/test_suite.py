"""CPython's own tests of processes, pools and executors pass with ours."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpython import executors, pools

#: What is used in the place of Process, or beside it, in the children of these classes.
EXPECTED = (
    "Array",
    "Barrier",
    "Condition",
    "Connection",
    "Event",
    "Finalize",
    "ListenerClient",
    "Lock",
    "Logging",
    "PicklingConnections",
    "Poll",
    "Process",
    "Queue",
    "SharedMemory",
    "SubclassingProcess",
    "Value",
)
BY_NAME = ("TestCloseFds", "TestForkAwareThreadLock", "TestIgnoreEINTR", "TestWait")

#: 132 tests on 3.11.7 and 3.12.1, 140 on 3.13.0: fewer than this is not the suite.
PLAUSIBLE = 120
PLAUSIBLE_POOLS = 55
PLAUSIBLE_EXECUTORS = 45

#: The exception, and what a manager's pool leaves out by itself.
ALLOWED_SKIPS = 6
SKIPPED = re.compile(r" skipped ['\"]")


def installed(name: str) -> bool:
    """Whether this interpreter was installed with that part of its own tests."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing (3.11 has a module there)
        return False


def run(module: str) -> tuple[str, int]:
    """Run one of the suites; return its output, and how many tests there were."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.cpython.{module}"],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout
    ran = re.search(r"^Ran (\d+) tests? in ", done.stdout, re.MULTILINE)
    assert ran is not None, done.stdout
    return done.stdout, int(ran[1])


needs_multiprocessing = pytest.mark.skipif(
    not installed("test._test_multiprocessing"),
    reason="this interpreter was installed without its test package",
)


@pytest.mark.slow
@pytest.mark.timeout(400)  # about 35 s of the interpreter's own pauses on an idle machine
@needs_multiprocessing
def test_cpythons_own_tests_pass() -> None:
    out, count = run("suite")
    assert count >= PLAUSIBLE, out
    names = [f"WithProcessesTest{name}" for name in EXPECTED] + list(BY_NAME)
    assert [name for name in names if f".{name}." not in out] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_multiprocessing
def test_cpythons_tests_of_pools_pass() -> None:
    """ClusterPool, and one that a manager serves, in the place of multiprocessing.Pool."""
    out, count = run("pools")
    assert count >= PLAUSIBLE_POOLS, out
    assert [name for name in pools.CLASSES if f".{name}." not in out] == []
    assert len(SKIPPED.findall(out)) <= ALLOWED_SKIPS, out


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not installed("test.test_concurrent_futures.executor"),
    reason="this interpreter was installed without test.test_concurrent_futures",
)
def test_cpythons_tests_of_executors_pass() -> None:
    """ClusterExecutor in the place of ProcessPoolExecutor, its matrix of crashes included."""
    out, count = run("executors")
    assert count >= PLAUSIBLE_EXECUTORS, out
    names = [name for classes in executors.MODULES.values() for name in classes]
    assert [name for name in names if f".ClusterExecutor{name}." not in out] == []
    assert len(SKIPPED.findall(out)) <= len(executors.EXCEPTIONS), out
