"""Run CPython's ``test._test_multiprocessing`` with its ``Process`` replaced by ours.

    python -m tests.cpython.suite                        # everything
    python -m tests.cpython.suite -k TestProcess         # what matches
    python -m tests.cpython.suite --process multiprocessing.context:ForkProcess

The tests are those of the interpreter that runs this, so each version of Python brings its
own. They come in classes that are made for a start method and a kind ("processes",
"manager", "threads"): ours are fork and processes. ``multiprocessing.Process`` is replaced
before the module is imported, for it is taken as a base class and into tables there.

It must be a process of its own: the tests look for every child, thread and descriptor of
the process that they run in. The exit status is 0 when all passed, 1 when not, and
:data:`UNAVAILABLE` where the interpreter was installed without its ``test`` package.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import multiprocessing
import sys
import unittest
from types import ModuleType
from typing import Any

UNAVAILABLE = 77

#: Classes that say ``multiprocessing.Process`` by name. The others that are made for
#: "processes" are found by their prefix.
BY_NAME = (
    "TestCloseFds",
    "TestFlags",
    "TestForkAwareThreadLock",
    "TestIgnoreEINTR",
    "TestSimpleQueue",
    "TestStdinBadfiledescriptor",
    "TestTimeouts",
    "TestWait",
)

PREFIX = "WithProcessesTest"

#: They test ``multiprocessing.Pool``, which starts the fork context's own processes.
NOT_OURS = ("WithProcessesTestPool*",)


def install(process: type[Any]) -> ModuleType:
    """Import CPython's tests with ``process`` in the place of ``multiprocessing.Process``.

    Returns:
        A module that holds the test classes, as CPython's ``test_multiprocessing_fork``
        would; that one is not installed everywhere.

    Raises:
        ModuleNotFoundError: This interpreter has no ``test._test_multiprocessing``.
    """
    replaced: Any = multiprocessing
    replaced.Process = process
    support: Any = importlib.import_module("test.support")
    tests = importlib.import_module("test._test_multiprocessing")
    support.use_resources = None  # all of them: none of the tests is left out
    module = ModuleType("mpcluster_cpython_suite")
    # Methods travel to the children by the name of their module.
    sys.modules[module.__name__] = module
    tests.install_tests_in_module_dict(module.__dict__, "fork")
    return module


def classes(module: ModuleType) -> list[type[unittest.TestCase]]:
    """Return the classes that use ``Process``, in the order of their names."""
    return [
        candidate
        for name, candidate in sorted(vars(module).items())
        if (name.startswith(PREFIX) or name in BY_NAME)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_OURS)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-k", dest="patterns", action="append", help="as unittest's -k")
    parser.add_argument("--process", default="mpcluster:ClusterProcess", metavar="MODULE:CLASS")
    options = parser.parse_args(argv)

    module_name, _, class_name = options.process.partition(":")
    process = getattr(importlib.import_module(module_name), class_name)
    try:
        module = install(process)
    except ModuleNotFoundError as error:
        print(f"not installed with this interpreter: {error.name}", file=sys.stderr)
        return UNAVAILABLE

    loader = unittest.TestLoader()
    if options.patterns:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in options.patterns]
    # One suite for all: setUpModule (the start method) runs once, before the first class.
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in classes(module))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
