"""The table of shared sockets in this process: which descriptor is a copy of which listener.

Keyed by descriptor, not by socket object, because servers hand descriptors on: an
``SSLSocket`` takes over the number of the socket that it wraps, uvloop and asyncio keep
a number after ``detach()``. A number may be closed behind our back and used anew, so
each entry carries the identity of the socket (device and inode) that it was made for,
and an entry that no longer fits is dropped where it is met.

**Lock.** ``_lock`` is held for a look into the table or a change of it, by any thread of
the program; never while the parent is told or asked, and never in a finaliser (those
start a thread for :func:`sweep`, since they may run anywhere, inside the lock too). A
forked child gets a new lock and keeps the entries, so that ``accept()`` on an inherited
listener works on; but it speaks to nobody any more: the parent's listeners are not its.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mpcluster import descriptors
from mpcluster.errors import ClusterError
from mpcluster.messages import Key, Listening, Release

from . import real

if TYPE_CHECKING:
    from .passed import Line

__all__ = [
    "Accepted",
    "Copy",
    "Listener",
    "Taken",
    "Tell",
    "acceptor",
    "add",
    "any_known",
    "drop",
    "duplicate",
    "find",
    "has_come_up",
    "known",
    "part",
    "sweep",
    "table",
    "when_up",
]

Tell: TypeAlias = Callable[[object], None]
Identity: TypeAlias = "tuple[int, int] | None"
Accepted: TypeAlias = "tuple[int, Any]"


class Taken(NamedTuple):
    """A connection out of a listener's queue, which no ``accept()`` has returned yet.

    Args:
        fd: Its descriptor.
        address: The client's.
        number: Under which the master has passed it, which is yet to be told that the program
            has accepted it; ``None``: it was accepted here.
    """

    fd: int
    address: Any
    number: int | None = None


class Listener:
    """One shared listener as this process uses it, over one or several descriptors.

    Args:
        key: Its name in the registry.
        sockname: Its real address.
        tell: Speaks to the registry; ``None`` from a fork on.
        donated: The registry took this process's own socket (nothing was laid over it).

    Attributes:
        family: The open socket's, where it is not the one that the program asked for: IPv6
            that takes IPv4 too (:mod:`~.mapped`).
    """

    def __init__(self, key: Key, sockname: object, tell: Tell | None, *, donated: bool) -> None:
        self.key = key
        self.sockname = sockname
        self.tell = tell
        self.donated = donated
        self.family = key[0]
        self.listening = False
        self.identity: Identity = None
        #: Connections that are this process's, and that no accept() has fetched yet, or the
        #: error that it shall raise.
        self.taken: deque[Taken | OSError] = deque()
        #: Where connections come from that the master accepts; ``None``: we accept.
        self.line: Line | None = None

    def __repr__(self) -> str:
        return f"<Listener {self.key!r} at {self.sockname!r}>"

    def announce(self) -> None:
        """Tell the parent, once, that this listener is up in this process."""
        if not self.listening:
            self.listening = True
            self._say(Listening(self.key[0], self.sockname))
            has_come_up()

    def release(self) -> None:
        """Tell the parent, once, that this process has closed its last copy."""
        self.forget_taken()
        if self.line is not None:
            self.line.close()  # first: whatever was accepted is told before the parent hears this
        self._say(Release(self.key))
        self.tell = None

    def forget_taken(self) -> None:
        """Close the connections that nobody will fetch any more."""
        while self.taken:
            taken = self.taken.popleft()
            if not isinstance(taken, OSError):
                os.close(taken.fd)

    def _say(self, message: object) -> None:
        if self.tell is not None:
            # With the channel gone the parent knows, or nobody is left to tell.
            with contextlib.suppress(ClusterError, OSError):
                self.tell(message)


class Copy:
    """One descriptor of a listener, with what Python keeps for a socket object.

    The open file description is shared with other processes and stays non-blocking for
    ever: ``O_NONBLOCK`` belongs to it, so one process that wants to block would block
    the others' ``accept()`` after ``select``. ``timeout`` is therefore kept here, as
    ``gettimeout()`` has it, and waiting is done in Python.

    ``handle``: an object to accept with where the program's own is not at hand. It never
    closes the descriptor. Made here, not when it is wanted: of two that two threads made at
    once one would go, and close it.

    ``reported``: a datagram was said to be there (:mod:`~.polling`).
    """

    __slots__ = (
        "ended",
        "fd",
        "handle",
        "identity",
        "listener",
        "parked",
        "reported",
        "timeout",
        "waiting",
    )

    def __init__(self, fd: int, listener: Listener, timeout: float | None) -> None:
        self.fd = fd
        self.listener = listener
        self.timeout = timeout
        self.reported = False
        self.ended = False
        self.parked = False
        self.identity = identify(fd)
        self.waiting: set[Any] = set()  # the epoll objects of the threads in accept()
        family, (_, kind, proto) = listener.family, listener.key[:3]
        self.handle: _socket.socket | None = None
        if kind != socket.SOCK_DGRAM:
            self.handle = _socket.socket(family, kind, proto, fileno=fd)
            real.settimeout(self.handle, 0.0)

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.handle.detach()  # type: ignore[union-attr]


_lock = threading.Lock()
#: By descriptor. Most sockets are in here with none: to look first saves them the question.
table: dict[int, Copy] = {}
_astray: set[Listener] = set()  # open only through descriptors that we were not shown
_watched: set[weakref.ref[Any]] = set()
_when_up: Callable[[], object] | None = None


def when_up(call: Callable[[], object]) -> None:
    """Call that after each listener that comes up from now on: one, in this process alone."""
    global _when_up
    _when_up = call


def has_come_up() -> None:
    """A listener is up: call whom :func:`when_up` has named."""
    if _when_up is not None:
        _when_up()


def identify(fd: int) -> Identity:
    """What socket a descriptor is; ``None`` where it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def add(sock: _socket.socket, listener: Listener, timeout: float | None) -> Copy:
    """Enter ``sock`` as a copy of ``listener``."""
    copy = Copy(real.fileno(sock), listener, timeout)
    listener.identity = copy.identity
    with _lock:
        table[copy.fd] = copy
    with contextlib.suppress(TypeError):  # a class without weak references
        _watched.add(weakref.ref(sock, _collected))
    return copy


def duplicate(fd: int, copy: Copy, timeout: float | None) -> None:
    """Enter descriptor ``fd``, which was just duplicated from ``copy``."""
    with _lock:
        table[fd] = Copy(fd, copy.listener, timeout)


def find(fd: int) -> Copy | None:
    """The entry of a descriptor, if it still is what was entered."""
    copy = table.get(fd)
    if copy is not None and identify(fd) != copy.identity:
        drop(fd)
        return None
    return copy


def acceptor(fd: int) -> Copy | None:
    """As :func:`find`, for ``accept()``: looks only where that may wait.

    Where it returns at once it takes from whatever has this number, and may be our mistake
    in nothing. The look is a system call.
    """
    copy = table.get(fd)
    if copy is None or copy.timeout == 0.0 or copy.listener.taken:
        return copy
    return find(fd)


def any_known() -> bool:
    """Has this process any entry?"""
    return bool(table)


def known() -> list[Copy]:
    """All entries that still hold."""
    sweep()
    with _lock:
        return list(table.values())


def known_as(fd: int) -> Copy | None:
    """The entry under this number, whether or not it still is what was entered."""
    return table.get(fd)


def take(fd: int) -> Copy | None:
    """Remove an entry, before its descriptor is closed; :func:`settle` comes after."""
    if fd not in table:  # most are no listeners
        return None
    with _lock:
        return table.pop(fd, None)


def settle(listener: Listener) -> None:
    """Release the listener if no descriptor of this process is left on its socket."""
    kept = descriptors.owned()  # in the master, the registry's own are here, too
    with _lock:
        if any(copy.listener is listener for copy in table.values()):
            return
        others = kept | table.keys()  # a copy inherited by a fork is of the parent's listener
        if listener.identity is not None and any(
            fd not in others for fd in descriptors_of(listener.identity)
        ):
            _astray.add(listener)
            return
        _astray.discard(listener)
    listener.release()


def part(listener: Listener) -> None:
    """Release the listener while this process keeps its socket: that was a client's all along."""
    with _lock:
        for fd in [fd for fd, copy in table.items() if copy.listener is listener]:
            del table[fd]
        _astray.discard(listener)
    listener.release()


def drop(fd: int) -> None:
    """Remove an entry whose descriptor is closed or has become another's."""
    copy = take(fd)
    if copy is not None:
        settle(copy.listener)


def sweep() -> None:
    """Drop what was closed behind our back: in C, by ``os.close`` or by the collector."""
    with _lock:
        gone = [fd for fd, copy in table.items() if identify(fd) != copy.identity]
        astray = list(_astray)
    for fd in gone:
        drop(fd)
    for listener in astray:
        settle(listener)


def descriptors_of(identity: tuple[int, int]) -> Iterator[int]:
    """Every descriptor of this process on that socket, also those that C code made."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:  # no /proc: trust the table
        return
    for name in names:
        if identify(int(name)) == identity:
            yield int(name)


def _collected(reference: weakref.ref[Any]) -> None:
    """A socket object is gone, maybe unclosed. Runs in a finaliser: take no lock here."""
    _watched.discard(reference)
    if table:
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            _thread.start_new_thread(sweep, ())


def _after_fork_in_child() -> None:
    global _lock, _when_up
    _lock = threading.Lock()
    _when_up = None
    _astray.clear()
    for copy in table.values():
        copy.listener.tell = None
        copy.listener.forget_taken()  # they are the parent's
        copy.waiting = set()


os.register_at_fork(after_in_child=_after_fork_in_child)
