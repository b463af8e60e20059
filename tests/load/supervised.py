"""Running ``program.py``: a supervised server, and what happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.load.apps import APPS
from tests.masters import Talking

__all__ = ["Supervised", "each_app", "supervised"]

_ROOT = Path(__file__).parents[2]


class Supervised(Talking):
    """A program with a supervisor and its workers.

    Args:
        app: Whom to run, of :data:`~.apps.APPS`.
        workers: How many.
        policy: The scheduling policy's name.
        environ: Added to its environment.
        rules: Of the supervisor.
    """

    def __init__(
        self, app: str, workers: int, policy: str, environ: dict[str, str], **rules: Any
    ) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        super().__init__(
            [sys.executable, "-m", "tests.load.program", app, str(workers), json.dumps(rules)],
            env={**os.environ, "MPCLUSTER_SCHEDULING": policy, "PYTHONPATH": path, **environ},
        )
        self.port = 0

    async def hear(self, event: str) -> dict[str, Any]:
        """The next event of that name that was not returned yet."""
        return await asyncio.to_thread(self.expect, event)

    async def until_ready(self, count: int) -> list[int]:
        """Wait until so many more workers are ready; their pids."""
        pids = [(await self.hear("ready"))["pid"] for _ in range(count)]
        if not self.port:
            self.port = (await self.hear("listening"))["port"]
        return pids


@contextlib.contextmanager
def supervised(
    app: str,
    workers: int = 2,
    policy: str = "auto",
    *,
    environ: dict[str, str] | None = None,
    **rules: Any,
) -> Iterator[Supervised]:
    """A supervised server for one test."""
    for module in APPS[app][1][:1]:
        # Not importorskip: to import uvloop would be felt by the other tests.
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    program = Supervised(app, workers, policy, environ or {}, **rules)
    try:
        yield program
    finally:
        program.end()


def each_app(*policies: str) -> pytest.MarkDecorator:
    """Each app with each policy."""
    pairs = [(app, policy) for app in APPS if app != "fickle" for policy in policies]
    return pytest.mark.parametrize(("app", "policy"), pairs)
