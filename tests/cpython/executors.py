"""Run CPython's ``test.test_concurrent_futures`` against ``ClusterExecutor``.

    python -m tests.cpython.executors                    # all of them
    python -m tests.cpython.executors -k deadlock        # what matches
    python -m tests.cpython.executors --executor concurrent.futures:ProcessPoolExecutor

It runs what holds for every executor, and for one of processes: submit and map, wait, as_completed,
shutdown, and the matrix of crashes that is called ``test_deadlock``. The exit status is that of
``tests.cpython.suite``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import multiprocessing
import pickle
import sys
import unittest
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.cpython import peering
from tests.cpython.suite import UNAVAILABLE

#: Modules of the package, and the classes in them that are made for any executor.
MODULES = {
    "executor": ("ExecutorTest",),
    "test_as_completed": ("AsCompletedTests",),
    "test_deadlock": ("ExecutorDeadlockTest",),
    "test_shutdown": ("ProcessPoolShutdownTest",),
    "test_wait": ("WaitTests",),
}

_INTERNALS = "it looks at the threads and queues of ProcessPoolExecutor"

EXCEPTIONS = {
    "test_del_shutdown": _INTERNALS,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _INTERNALS,
    "test_shutdown_deadlock_pickle": _INTERNALS,
    "test_shutdown_no_wait": _INTERNALS,
}

IN_PROGRAMS = {
    "from concurrent.futures import ClusterExecutor": "from mpcluster import ClusterExecutor",
}


def mixin(executor: type[Any], base: type[Any]) -> type[Any]:
    """Return what makes a test class one of ``executor``.

    It names no ``ctx``, of which there is one alone; the tests then make the executor without.
    """
    return type(
        "ClusterExecutorMixin",
        (base,),
        {
            "executor_type": executor,
            "get_context": lambda self: multiprocessing.get_context("fork"),
        },
    )


def install(executor: type[Any]) -> list[type[unittest.TestCase]]:
    """Import CPython's tests; return their classes, made for ``executor``.

    Raises:
        ModuleNotFoundError: This interpreter has no ``test.test_concurrent_futures``.
    """
    support: Any = importlib.import_module("test.support")
    support.use_resources = None  # all of them: none of the tests is left out
    package = "test.test_concurrent_futures"
    util: Any = importlib.import_module(f"{package}.util")
    ours = mixin(executor, util.ExecutorMixin)
    made = []
    for name, classes in MODULES.items():
        module = importlib.import_module(f"{package}.{name}")
        adapt(module, executor)
        for class_name in classes:
            bases = (getattr(module, class_name), ours, util.BaseTestCase)
            case = type(f"ClusterExecutor{class_name}", bases, {"__module__": module.__name__})
            # Methods travel by the name of their class.
            setattr(module, case.__name__, case)
            made.append(case)
    return made


def adapt(module: ModuleType, executor: type[Any]) -> None:
    """Let a module of the suite expect what ``executor`` promises, where that is more.

    A task that loses its worker fails by itself, with what is known of it; ProcessPoolExecutor
    fails all, with BrokenProcessPool.
    """
    import mpcluster

    replaced: Any = module
    if hasattr(module, "BrokenProcessPool"):
        replaced.BrokenProcessPool = (
            mpcluster.WorkerDiedError,
            pickle.PickleError,
            SystemExit,
        )
    if hasattr(module, "assert_python_ok"):
        replaced.assert_python_ok = peering.redirecting(replaced.assert_python_ok, IN_PROGRAMS)
    if module.__name__.endswith("test_shutdown"):
        # It makes executors by this name. A class of its own, because one test is left out where
        # the executor is ProcessPoolExecutor, and ours is to pass it.
        same = type(executor.__name__, (executor,), {"__module__": executor.__module__})
        names = {**vars(concurrent.futures), "ProcessPoolExecutor": same}
        replaced.futures = SimpleNamespace(**names)


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-k", dest="patterns", action="append", help="as unittest's -k")
    parser.add_argument("--executor", default="mpcluster:ClusterExecutor", metavar="MODULE:CLASS")
    options = parser.parse_args(argv)
    module_name, _, class_name = options.executor.partition(":")
    executor = getattr(importlib.import_module(module_name), class_name)
    try:
        cases = install(executor)
    except ModuleNotFoundError as error:
        print(f"not installed with this interpreter: {error.name}", file=sys.stderr)
        return UNAVAILABLE
    return peering.run(cases, EXCEPTIONS, options.patterns)


if __name__ == "__main__":
    sys.exit(main())
