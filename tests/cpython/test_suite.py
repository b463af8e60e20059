"""ClusterProcess passes CPython's own tests of ``multiprocessing.Process``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.timeout(400)  # about 35 s of the interpreter's own pauses on an idle machine
@pytest.mark.skipif(
    importlib.util.find_spec("test") is None
    or importlib.util.find_spec("test._test_multiprocessing") is None,
    reason="this interpreter was installed without its test package",
)
def test_cpythons_own_tests_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cpython.suite"],
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
    assert int(ran[1]) >= PLAUSIBLE, done.stdout
    names = [f"WithProcessesTest{name}" for name in EXPECTED] + list(BY_NAME)
    assert [name for name in names if f".{name}." not in done.stdout] == []
