"""A worker that shares what its C code binds: its own side of it.

The master answers the kernel (:mod:`~mpcluster.sharing.notifications`), since no thread of this
process could be relied on: C code that holds the interpreter's lock while it binds would wait for
a thread that waits for the lock. The worker hears afterwards what was done, in its watcher's
thread, and keeps account of it for a drain.

What Python binds is shared by Python's own way, as ever. Where that decides to bind for itself it
says so first (:func:`exempt`), or the master would share it after all.

A forked child is under the same filter, and is let pass by the master; it has no listeners.
"""

from __future__ import annotations

import _socket
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from mpcluster import tally
from mpcluster.messages import Exempt, Laid, Listening, Notifies

from . import copies, real, seccomp

__all__ = ["Beneath", "adopt", "begin", "exempt", "known"]

Ask: TypeAlias = Callable[[object], object]


@dataclass(slots=True, eq=False)
class Beneath:
    """A listener of this process of which Python knows no socket."""

    identity: tuple[int, int]
    sockname: object
    is_stream: bool
    parked: bool = False


# Guards `_known`. Held for a look or a change, by the watcher when something was laid, and by the
# thread that drains. A forked child has a new one, and an empty list.
_lock = threading.Lock()
_known: list[Beneath] = []
_ask: Ask | None = None


def begin(ask: Ask) -> None:
    """Put this process under the filter, and let the master answer.

    Raises:
        ClusterError: The kernel refuses, or the master may not do what it would have to.
    """
    global _ask
    listener: Connection[Any, Any] = Connection(seccomp.install())
    with listener:  # the master has one of its own by then: without an answer nobody could bind
        ask(Notifies(listener, listener.fileno()))
    _ask = ask


def exempt(sock: _socket.socket) -> None:
    """What is done with this socket is this process's own affair."""
    if _ask is not None:
        _ask(Exempt(os.fstat(real.fileno(sock)).st_ino))


def adopt(laid: Laid, tell: copies.Tell) -> None:
    """The master has made a socket of this process a shared listener. In the watcher's thread."""
    identity = copies.identify(laid.fd)
    if identity is None or identity[1] != laid.inode:
        return  # closed again meanwhile
    with _lock:
        _known.append(Beneath(identity, laid.sockname, laid.is_stream))
    if laid.is_stream:
        tally.uncounted()
    tell(Listening(laid.family, laid.sockname))
    copies.has_come_up()


def known() -> list[Beneath]:
    """Those that are open, by whatever number."""
    global _known
    if not _known:
        return []
    with _lock:
        _known = [one for one in _known if any(copies.descriptors_of(one.identity))]
        return list(_known)


def _after_fork_in_child() -> None:
    global _lock, _known, _ask
    _lock = threading.Lock()
    _known, _ask = [], None


os.register_at_fork(after_in_child=_after_fork_in_child)
