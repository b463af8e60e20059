"""pytest's door to mpcluster: ``pytest -n 4 --mpcluster``.

This module is read at the start of every pytest run, so it is alone at the top level and
imports nothing but pytest. mpcluster, and pytest-xdist's own modules, come with
:mod:`mpcluster.testing`, once a run asks for them.

There is no assertion to rewrite, and a conftest may have imported it: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from mpcluster.testing.worker import TestWorker

__all__ = ["MODES", "ForkSafetyWarning", "shared_fixture"]

MODES: Final = ("fork", "collect")


class ForkSafetyWarning(pytest.PytestWarning):
    """Something was there before the workers were forked that they cannot share safely."""


def shared_fixture(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A session fixture that is made once for all workers (``--mpcluster=collect``).

    It is set up after collection, before the workers are forked, and torn down when all of
    them are gone; each has its own copy of the value as it was at the fork. Elsewhere
    (``--mpcluster=fork``, plain pytest-xdist, no workers) it is an ordinary session fixture.

    Args:
        function: What makes the value; without it, a decorator.
        options: ``name``, ``params`` … as those of ``pytest.fixture``, but for the scope.
    """
    if options.get("scope", "session") != "session":
        raise ValueError("a shared fixture is made once a session: leave scope= out")
    if options.get("params") is not None:
        raise ValueError("a shared fixture is made once, so it takes no params=")

    def mark(function: Callable[..., Any]) -> Any:
        function.mpcluster_shared = True  # type: ignore[attr-defined]
        return pytest.fixture(**{**options, "scope": "session"})(function)

    return mark if function is None else mark(function)


class Hooks:
    """What a conftest or a plugin may define."""

    @pytest.hookspec()
    def pytest_mpcluster_after_fork(self, worker: TestWorker) -> None:
        """In each worker, right after it was forked and before it does anything.

        The place to open anew what cannot be shared with the process that loaded this
        conftest: connections, threads, random generators.

        Args:
            worker: ``id`` ("gw0"), ``mode`` ("fork" or "collect"), ``config``.
        """


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let conftests define ours."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line, and the same as ini keys."""
    group = parser.getgroup("mpcluster", "pytest-xdist on forked workers")
    group.addoption(
        "--mpcluster",
        "--mpcluster=fork",
        dest="mpcluster",
        action="store_const",
        const="fork",
        help="With -n: fork the workers from a process that has loaded pytest, plugins and "
        "conftests, instead of starting an interpreter for each",
    )
    # As strings of their own: an option with an optional value would take the path after it.
    group.addoption(
        "--mpcluster=collect",
        dest="mpcluster",
        action="store_const",
        const="collect",
        help="The same; and collect the tests once, before the workers are forked",
    )
    group.addoption(
        "--mpcluster-timeout",
        type=float,
        metavar="SECONDS",
        help="Kill a worker whose test takes longer, report the test as failed, go on with "
        "the others",
    )
    parser.addini("mpcluster", "Mode of --mpcluster: fork, collect or nothing", default="")
    parser.addini("mpcluster_timeout", "Seconds of --mpcluster-timeout", default="")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Around the whole run: everything is loaded, nothing is configured yet."""
    mode = config.getoption("mpcluster") or config.getini("mpcluster")
    if not mode or hasattr(config, "workerinput"):
        return (yield)
    if mode not in MODES:
        raise pytest.UsageError(f"mpcluster = {mode!r} in the ini file: say fork or collect")
    try:
        from mpcluster.testing import run
    except ImportError as error:  # not on Linux, or half installed: it says so itself
        raise pytest.UsageError(f"--mpcluster: {error}") from error

    with run.on_forked_workers(config, mode):
        return (yield)
