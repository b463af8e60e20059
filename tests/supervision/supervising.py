"""Supervisors for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpcluster as cluster
from mpcluster.errors import SupervisionError
from mpcluster.family import Family
from mpcluster.supervision import Supervisor
from tests.happenings import PATIENCE


@pytest.fixture(name="supervise")
def supervise_fixture(relatives: Family) -> Iterator[Callable[..., Supervisor]]:
    """``supervise()`` whose supervisors are stopped at the end."""
    made: list[Supervisor] = []

    def supervise(*args: Any, **kwargs: Any) -> Supervisor:
        made.append(cluster.supervise(*args, **kwargs))
        return made[-1]

    yield supervise
    for supervisor in made:
        supervisor.stop()
        supervisor.status()  # the watcher is past that: what is killed now was asked to leave
        for worker in list(relatives.workers.values()):
            worker.kill()
        try:
            assert supervisor.wait(PATIENCE)
        except SupervisionError:
            pass
