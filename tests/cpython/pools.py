"""Run CPython's tests of ``multiprocessing.Pool`` against ``ClusterPool``.

    python -m tests.cpython.pools                        # all of them
    python -m tests.cpython.pools -k imap                # what matches
    python -m tests.cpython.pools --pool multiprocessing.pool:Pool

Both ``multiprocessing.Process`` and ``multiprocessing.Pool`` are replaced, before the tests are
imported; the pool that a manager serves is ours, too. The exit status is that of
``tests.cpython.suite``.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing.managers
import sys
from types import ModuleType
from typing import Any

from tests.cpython import peering
from tests.cpython.suite import UNAVAILABLE, install

CLASSES = (
    "TestInitializers",
    "TestStdinBadfiledescriptor",
    "WithManagerTestPool",
    "WithProcessesTestPool",
    "WithProcessesTestPoolWorkerErrors",
    "WithProcessesTestPoolWorkerLifetime",
)

EXCEPTIONS = {
    "test_unpickleable_result": "it returns a lambda, which ClusterPool can send; "
    "tests/pool has one that returns a lock",
}

#: Programs of the suite import the pool by its name.
IN_PROGRAMS = {"from multiprocessing import Pool": "from mpcluster import ClusterPool as Pool"}


def install_pool(pool: type[Any]) -> ModuleType:
    """Import CPython's tests with ``pool`` in the place of ``multiprocessing.Pool``.

    Raises:
        ModuleNotFoundError: This interpreter has no ``test._test_multiprocessing``.
    """
    import mpcluster

    replaced: Any = multiprocessing
    replaced.Pool = pool
    managers: Any = multiprocessing.managers
    managers.SyncManager.register("Pool", pool, managers.PoolProxy)
    module = install(mpcluster.ClusterProcess)
    helper: Any = importlib.import_module("test.support.script_helper")
    if pool.__module__.partition(".")[0] == "mpcluster":
        helper.assert_python_ok = peering.redirecting(helper.assert_python_ok, IN_PROGRAMS)
    return module


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-k", dest="patterns", action="append", help="as unittest's -k")
    parser.add_argument("--pool", default="mpcluster:ClusterPool", metavar="MODULE:CLASS")
    options = parser.parse_args(argv)
    module_name, _, class_name = options.pool.partition(":")
    pool = getattr(importlib.import_module(module_name), class_name)
    try:
        module = install_pool(pool)
    except ModuleNotFoundError as error:
        print(f"not installed with this interpreter: {error.name}", file=sys.stderr)
        return UNAVAILABLE
    cases = [getattr(module, name) for name in CLASSES]
    return peering.run(cases, EXCEPTIONS, options.patterns)


if __name__ == "__main__":
    sys.exit(main())
