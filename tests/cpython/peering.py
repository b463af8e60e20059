"""What the runs of CPython's suites have in common: programs in them, exceptions, running."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def redirecting(run: Callable[..., Any], replaced: Mapping[str, str]) -> Callable[..., Any]:
    """Return ``assert_python_ok`` that runs a program of the suite with our class in it.

    Args:
        run: ``test.support.script_helper.assert_python_ok``.
        replaced: Text of such a program, and what takes its place.
    """

    def assert_python_ok(*arguments: str, **options: Any) -> Any:
        changed = []
        for argument in arguments:
            for old, new in replaced.items():
                # It runs isolated from the environment, so it is told where we are.
                place = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {new}"
                argument = argument.replace(old, place)  # noqa: PLW2901
            changed.append(argument)
        return run(*changed, **options)

    return assert_python_ok


def tests_of(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    """Return the tests in a suite of suites."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def run(
    cases: Iterable[type[unittest.TestCase]],
    exceptions: Mapping[str, str],
    patterns: list[str] | None = None,
) -> int:
    """Run the classes in one go, so that what their module sets up is set up once.

    Args:
        cases: The classes, in the order in which they are run.
        exceptions: Names of methods, with the reason for which each is left out.
        patterns: As unittest's ``-k``; ``None`` for all.

    Returns:
        An exit status, 0 when all passed.
    """
    loader = unittest.TestLoader()
    if patterns:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in patterns]
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
    for test in tests_of(suite):
        method = test.id().rpartition(".")[2]
        if method in exceptions:
            _leave_out(test, method, exceptions[method])
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stderr).run(suite)
    return 0 if result.wasSuccessful() else 1


def _leave_out(test: unittest.TestCase, method: str, reason: str) -> None:
    # On the object, so that the class, and whoever else inherits the method, stays as it is.
    setattr(test, method, unittest.skip(reason)(getattr(test, method)))
