"""A forked worker before its start: what ``fork()`` and a supervisor make it of."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpcluster import arguments, ending, mainprogram, registrar, workerside
from mpcluster.errors import NotMasterError
from mpcluster.process import ClusterProcess

__all__ = ["recruit", "require_master"]


def require_master(what: str) -> None:
    """Only the master forks.

    Raises:
        NotMasterError: This is a worker.
    """
    myself = workerside.current()
    if myself is not None:
        raise NotMasterError(
            f"{what} was called in worker {myself.id} (pid {os.getpid()}); only the master "
            "forks. Guard it by `if cluster.is_master:`, or start a mpcluster.ClusterProcess"
        )


def recruit(
    target: Callable[..., object] | None,
    args: Iterable[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    name: str | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    daemon: bool | None,
    share_ports: bool,
    kind: Callable[..., ClusterProcess] = ClusterProcess,
) -> ClusterProcess:
    """Make a worker that is not yet started, and see to the end of this master.

    Args:
        target: What the worker calls; without it, it runs the main program again.
        kind: What makes the process; called as the class is.

    Raises:
        RuntimeError: The main program is no file that could be run again.
        TypeError: ``target`` cannot be called, or there are arguments without a target.
    """
    if target is None:
        if args or kwargs:
            raise TypeError("args and kwargs are the target's, and there is no target")
        target = mainprogram.locate().run
    elif callable(target):
        target = functools.partial(mainprogram.quietly, target)
    else:
        raise TypeError(f"target must be callable, not {target!r}")
    args, kwargs = arguments.call(args, kwargs)
    process = kind(
        None,
        target,
        name,
        args,
        kwargs,
        daemon=daemon,
        env=env,
        cwd=cwd,
        share_ports=share_ports,
    )
    process.is_forked = True
    registrar.inherit()
    ending.prepare(registrar.close)
    return process
