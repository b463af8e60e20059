"""The ``multiprocessing`` context whose processes are workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing import context
from typing import TYPE_CHECKING, Any

from mpcluster.process import ClusterProcess

if TYPE_CHECKING:
    from mpcluster.pool.pool import ClusterPool

__all__ = ["ClusterContext", "get_context"]


class ClusterContext(context.ForkContext):
    """As ``multiprocessing.get_context("fork")``, with ``Process`` a :class:`ClusterProcess`."""

    Process = ClusterProcess

    def Pool(  # type: ignore[override, unused-ignore]  # noqa: N802
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> ClusterPool:
        """A :class:`~mpcluster.ClusterPool`, which takes some more options."""
        from mpcluster.pool.pool import ClusterPool

        return ClusterPool(
            processes, initializer, initargs, maxtasksperchild, context=self, **options
        )

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
