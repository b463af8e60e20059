"""The errors, as one tree."""

from __future__ import annotations

import concurrent.futures
import pickle
import signal

import pytest

from mpcluster import errors


def test_each_is_a_cluster_error_under_the_name_that_a_program_catches_it_by() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.ClusterError)
        assert (kind.__module__, kind.__qualname__) == ("mpcluster.errors", name)


def test_those_of_tasks_are_the_futures_own_as_well_and_survive_pickling() -> None:
    died = errors.WorkerDiedError("task 3 is lost", worker_id=3, pid=41, exitcode=-9)
    assert isinstance(died, concurrent.futures.BrokenExecutor)
    copy = pickle.loads(pickle.dumps(died))
    assert (copy.args, copy.worker_id, copy.pid) == (("task 3 is lost",), 3, 41)
    assert copy.signal is signal.SIGKILL
    cancelled = pickle.loads(pickle.dumps(errors.TaskCancelledError("taken back")))
    assert isinstance(cancelled, concurrent.futures.CancelledError)


def test_there_is_no_other() -> None:
    with pytest.raises(AttributeError, match="no attribute 'WorkerLostError'"):
        errors.WorkerLostError  # noqa: B018
