"""The ``multiprocessing`` context whose processes are workers."""

from __future__ import annotations

from multiprocessing import context
from typing import Any

from mpcluster.process import ClusterProcess

__all__ = ["ClusterContext", "get_context"]


class ClusterContext(context.ForkContext):
    """As ``multiprocessing.get_context("fork")``, with ``Process`` a :class:`ClusterProcess`."""

    Process = ClusterProcess

    def __reduce__(self) -> tuple[Any, ...]:
        return get_context, ()


_context = ClusterContext()


def get_context() -> ClusterContext:
    """Return the ``multiprocessing`` context of mpcluster.

    ``mp = mpcluster.get_context()`` takes the place of ``import multiprocessing as mp``:
    what it has and does is that of ``multiprocessing``'s fork context, on workers that can
    be watched and talked to.
    """
    return _context
