"""How a pool's workers come to be: by which context, and how many."""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Callable
from multiprocessing import context as _context
from multiprocessing import resource_tracker
from typing import Any, Final

from mpcluster.errors import PoolClosedError
from mpcluster.pool.worker import Berth, Plan, work
from mpcluster.process import ClusterProcess

__all__ = ["cores", "forking", "maker", "share_resource_tracker"]


class _ForkContext(_context.ForkContext):
    """The context of a pool that is given none."""

    Process = ClusterProcess


_context_of_ours: Final = _ForkContext()


def maker(pool: Any, context: Any, name: str | None) -> Callable[[Berth, Plan], Any]:
    """Make workers by the pool's hook ``Process``, without keeping the pool alive.

    Args:
        pool: Whose workers they are.
        context: What the hook gets.
        name: What they are called, with a number; None for the usual.
    """
    reference = weakref.ref(pool)
    numbers = itertools.count(1)

    def make(berth: Berth, plan: Plan) -> Any:
        owner = reference()
        if owner is None:
            raise PoolClosedError("Pool not running")
        process = owner.Process(context, target=work, args=(berth, plan))
        if name is not None:
            process.name = f"{name}-{next(numbers)}"
        elif isinstance(process, ClusterProcess):
            process.name = process.name.replace("ClusterProcess", "ForkPoolWorker")
        else:
            process.name = process.name.replace("Process", "PoolWorker")
        return process

    return make


def forking(context: Any) -> Any:
    """The context that makes the workers."""
    if context is None:
        return _context_of_ours
    method = context.get_start_method()
    if method != "fork":
        raise ValueError(
            f"a ClusterPool forks its workers, and this context says {method!r}; leave it out"
        )
    if type(context) in (_context.ForkContext, _context.DefaultContext):
        return _context_of_ours
    return context


def share_resource_tracker() -> None:
    """Let a worker that looks into shared memory tell the tracker of this process (gh-82300).

    One of its own would remove the memory when the worker ends. A tracker is one more process,
    so it is started only where the program is about to have shared memory.
    """
    if "multiprocessing.shared_memory" in sys.modules:
        resource_tracker.ensure_running()


def cores() -> int:
    """How many processors there are for this program."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1
