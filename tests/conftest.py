"""What every test is held to: it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import multiprocessing.resource_tracker
from collections.abc import Iterator

import pytest

from tests import leaks


@pytest.fixture(scope="session", autouse=True)
def _settled() -> Iterator[None]:
    """Make what a process has once and keeps, before the first test is measured."""
    leaks.install()
    # The resource tracker is a process of its own, started by the first SharedMemory.
    multiprocessing.resource_tracker.ensure_running()
    if importlib.util.find_spec("mpcluster.process") is not None:
        from mpcluster.process import ClusterProcess

        first = ClusterProcess()
        first.start()
        first.join()
        first.close()
    yield
    leaks.uninstall()


@pytest.fixture(autouse=True)
def _nothing_left_behind(_settled: None) -> Iterator[None]:
    """Fail a test that leaves processes, threads, descriptors or shared memory behind.

    It is the first fixture of a test to begin and so the last to end: what other fixtures
    close is closed by then.
    """
    before = leaks.snapshot()
    yield
    left = leaks.settle(before)
    if left:
        leaks.end(left)
        pytest.fail(f"this test left behind:\n{left}", pytrace=False)
