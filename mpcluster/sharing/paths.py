"""Unix paths: which ones are shared, and keeping servers from deleting them.

Servers unlink their path before they bind it and again when they stop. The first would
take it from the other workers, the second from their clients; so a path that the registry
holds stays. The registry removes it when its last user has left.
"""

from __future__ import annotations

import multiprocessing.process
import os
import stat
from typing import Any

from mpcluster.messages import Holds

from . import real
from .binding import Ask

__all__ = ["is_private", "unlinker"]


def is_private(address: object) -> bool:
    """Is this unix address one that nobody else can mean?

    No name at all (the kernel picks one), what ``bind`` will refuse anyway, and the paths
    that multiprocessing's own listeners make up.
    """
    if isinstance(address, (bytearray, memoryview)):
        address = bytes(address)
    if not isinstance(address, (str, bytes, os.PathLike)):
        return True
    path = os.fsdecode(address)
    if not path:
        return True
    configuration = getattr(multiprocessing.process.current_process(), "_config", {})
    directory = configuration.get("tempdir")
    return directory is not None and os.path.dirname(path) == os.fsdecode(directory)


def unlinker(ask: Ask, function: Any) -> Any:
    """``os.unlink`` or ``os.remove`` with an eye on the registry's paths."""
    creator = os.getpid()

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        ours = dir_fd is None and os.getpid() == creator and _is_socket(path)
        # As in the key of a bind: absolute, links not followed.
        if not (ours and ask(Holds(os.path.abspath(os.fsdecode(path))))):
            function(path, dir_fd=dir_fd)

    unlink.__name__ = function.__name__
    unlink.__doc__ = real.unlink.__doc__
    return unlink


def _is_socket(path: Any) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, TypeError, ValueError):
        return False
