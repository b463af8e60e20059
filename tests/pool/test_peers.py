"""The tests of known defects can fail: the pools of the standard library are seen to have them.

A test that fails here has either lost its point or met a Python in which the defect is mended.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaks, running
from tests.pool.kinds import EXECUTOR, POOL, STANDARD_EXECUTOR, STANDARD_POOL

HERE = Path(__file__).parent

#: Seconds after which a test that hangs is ended: each takes far less where there is no defect.
PATIENCE = 20

OF_POOL = (
    "test_known_defects.py::test_01",
    "test_known_defects.py::test_02",
    "test_known_defects.py::test_03",
    "test_known_defects.py::test_04",
    "test_known_defects.py::test_06",
    "test_known_defects.py::test_08",
    "test_known_defects.py::test_09",
    "test_known_defects.py::test_10",
    "test_known_defects.py::test_11",
    "test_known_defects.py::test_12",
    "test_known_defects.py::test_14",
    "test_known_defects.py::test_19",
    "test_known_defects.py::test_20",
    "test_more_known_defects.py::test_a_worker_dies_while_it_receives_a_task",
    "test_more_known_defects.py::test_a_death_is_noticed",
    "test_more_known_defects.py::test_a_pool_in_a_worker_of_a_pool",
    "test_more_known_defects.py::test_lambdas_and_closures",
    "test_more_known_defects.py::test_a_function_that_is_defined_after_the_pool",
)
OF_EXECUTOR = (
    "test_known_defects.py::test_05",
    "test_known_defects.py::test_07",
    "test_known_defects.py::test_13",
    "test_known_defects.py::test_17",
    "test_known_defects.py::test_18",
    "test_more_known_defects.py::test_shutdown_without_waiting",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "name"),
    [(STANDARD_POOL, name) for name in OF_POOL]
    + [(STANDARD_EXECUTOR, name) for name in OF_EXECUTOR],
)
def test_the_defect_is_seen_in_a_peer(peer, name):
    """It fails there, or hangs."""
    file, _, test = name.partition("::")
    before = leaks.snapshot()
    program = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:xdist",
         "-p", "no:cacheprovider", "--timeout", str(PATIENCE - 5), "-k", test, HERE / file],
        env={
            **running.environment(),
            POOL: STANDARD_POOL,
            EXECUTOR: STANDARD_EXECUTOR,
        },
        cwd=running.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = program.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        out = "it hangs"
    finally:
        program.kill()
        program.wait()
        leaks.end(leaks.since(before))  # what it has started, and hangs with
        program.communicate()
    assert program.returncode != 0, f"{peer} passes {name}:\n{out}"
    assert "no tests ran" not in out, out
    assert "error while" not in out.lower(), out
