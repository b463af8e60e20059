"""joblib's Parallel, and scikit-learn on top of it, on our pool."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import mpcluster
from tests import running

joblib = pytest.importorskip("joblib", reason="joblib is not installed: extra users-test")

from joblib import Parallel, delayed, parallel_config  # noqa: E402

import mpcluster.joblib  # noqa: E402

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def _registered() -> None:
    mpcluster.joblib.register()


def test_tasks_run_in_workers():
    """In the order asked for, and not here."""
    with parallel_config("mpcluster", n_jobs=2):
        assert Parallel()(delayed(pow)(number, 2) for number in range(100)) == [
            number**2 for number in range(100)
        ]
        pids = Parallel(batch_size=1)(delayed(os.getpid)() for _ in range(10))
    assert os.getpid() not in pids


def test_the_backend_is_named_in_the_call():
    """Without parallel_config, too; lambdas need no module."""
    factor = 3
    assert Parallel(n_jobs=2, backend="mpcluster")(
        delayed(lambda number: number * factor)(number) for number in range(5)
    ) == [0, 3, 6, 9, 12]


def test_one_job_is_done_by_the_caller():
    """n_jobs=1 makes no worker."""
    with parallel_config("mpcluster", n_jobs=1):
        assert Parallel()([delayed(os.getpid)()]) == [os.getpid()]


def test_a_parallel_object_keeps_its_workers():
    """In ``with`` two calls meet the same workers."""
    with Parallel(n_jobs=2, backend="mpcluster") as parallel:
        first = set(parallel(delayed(os.getpid)() for _ in range(20)))
        second = set(parallel(delayed(os.getpid)() for _ in range(20)))
    assert len(first | second) <= 2


def test_an_error_of_a_task_is_raised_here():
    """As itself; what was still to be done is given up."""
    with (
        parallel_config("mpcluster", n_jobs=2),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        Parallel()(delayed(operator.floordiv)(1, number - 5) for number in range(1000))
    assert caught.value.args


def endless() -> Iterator[Any]:
    while True:
        yield delayed(abs)(-1)


def test_results_come_as_a_generator():
    """return_as="generator": an endless one is read no further than pre_dispatch allows."""
    results = Parallel(n_jobs=2, backend="mpcluster", return_as="generator")(endless())
    assert [next(results) for _ in range(50)] == [1] * 50
    with pytest.warns(UserWarning, match="have been cancelled"):  # joblib's word on an early end
        results.close()


def die_once(mark: str) -> str:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_a_worker_that_dies_fails_the_call_and_the_next_one_runs(tmp_path):
    """Nothing hangs, and nothing stays broken."""
    with Parallel(n_jobs=2, backend="mpcluster") as parallel:
        with pytest.raises(mpcluster.WorkerDiedError):
            parallel(delayed(die_once)(str(tmp_path / "died")) for _ in range(1))
        assert parallel(delayed(abs)(-number) for number in range(5)) == [0, 1, 2, 3, 4]


def test_a_task_that_lost_its_worker_is_tried_again(tmp_path):
    """What stands beside the backend's name is the pool's."""
    with parallel_config("mpcluster", n_jobs=2, retries=1):
        assert Parallel()([delayed(die_once)(str(tmp_path / "died"))]) == ["done"]


def nested(number: int) -> list[int]:
    result: list[int] = Parallel(n_jobs=2)(delayed(pow)(number, power) for power in range(3))
    return result


def test_parallel_inside_of_a_task():
    """It runs in threads of the worker."""
    with parallel_config("mpcluster", n_jobs=2):
        assert Parallel()(delayed(nested)(number) for number in (2, 3)) == [[1, 2, 4], [1, 3, 9]]


def test_all_jobs_but_none():
    """n_jobs=-1 is one for each processor, 0 has no meaning."""
    with parallel_config("mpcluster", n_jobs=-1):
        assert joblib.effective_n_jobs() == joblib.cpu_count()
    with pytest.raises(ValueError, match="no meaning"):
        Parallel(n_jobs=0, backend="mpcluster")([delayed(abs)(-1)])


def test_an_argument_may_be_a_large_array():
    """Larger than joblib maps to a file for its own backends."""
    np = pytest.importorskip("numpy")
    large = np.arange(500_000.0)
    sums = Parallel(n_jobs=2, backend="mpcluster")(delayed(np.sum)(large) for _ in range(3))
    assert sums == [large.sum()] * 3


@pytest.mark.slow
def test_scikit_learn_searches_a_grid():
    """The best parameters, and every score, are those of one process."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: extra users-test")
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    x, y = make_classification(200, random_state=0)
    grid = {"max_depth": [1, 2, 3, 4], "min_samples_leaf": [1, 5, 10]}

    def search(**how: Any) -> Any:
        with parallel_config(**how):
            return GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(x, y)

    ours = search(backend="mpcluster", n_jobs=2)
    alone = search(backend="threading", n_jobs=1)
    assert ours.best_params_ == alone.best_params_
    assert list(ours.cv_results_["mean_test_score"]) == list(alone.cv_results_["mean_test_score"])


def test_without_joblib_the_error_names_the_extra():
    """Importing mpcluster alone needs none."""
    program = textwrap.dedent("""
        import sys
        sys.modules["joblib"] = None
        import mpcluster
        try:
            import mpcluster.joblib
        except mpcluster.EngineUnavailableError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=running.environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "pip install 'mpcluster[joblib]'" in done.stdout
