"""A worker's place with its supervisor, by itself."""

from __future__ import annotations

import threading

import pytest

from mpcluster.configuration import Settings
from mpcluster.post import Post
from mpcluster.workerside import Worker
from tests.running import python


def test_the_limit_is_told_of_once_with_what_was_done() -> None:
    post = Post(0, 10, has_pulse=False)
    assert [post.count(tasks) for tasks in (9, 0, 3, 1, 100)] == [None, None, 12, None, None]


def test_without_a_limit_nothing_is_told() -> None:
    assert Post(0, None, has_pulse=False).count(1 << 60) is None


def test_a_worker_without_a_supervisor_has_no_slot_and_says_nothing() -> None:
    done = python(
        """
        import sys
        import mpcluster

        def target():
            mpcluster.worker.count()
            mpcluster.worker.ready()
            print(mpcluster.worker.slot, "mpcluster.messages" in sys.modules)

        process = mpcluster.ClusterProcess(target=target)
        process.start()
        process.join()
        """
    )
    assert (done.stdout, done.stderr) == ("None False\n", "")


@pytest.mark.parametrize(("tasks", "error"), [(-1, ValueError), ("1", TypeError)])
def test_tasks_that_cannot_be_counted_are_named(tasks: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="tasks must .* tasks"):
        Worker(1, -1, Settings(), None, threading.get_ident()).count(tasks)
