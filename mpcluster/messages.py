"""Every control message, on one screen.

Control messages travel beside the users' own on the same channel, in frames of another
kind (:class:`mpcluster.wire.Kind`), so that neither can be mistaken for the other. A
field that holds a socket arrives as a socket: descriptors are message parts.

Names say who speaks. A *worker* tells and asks its parent; the parent answers and orders.
What the root master alone can answer is passed on by the masters in between.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: ``(family, type, proto, address, ordinal)``: which listener. ``address`` is numeric
#: ``(host, port, ...)`` as the socket module has it, or an absolute path; ``ordinal``
#: counts the port-0 listeners of one worker. At a named address it is ``None`` for a worker's
#: first socket, and counts further ones (``SO_REUSEPORT``) from 1.
Key: TypeAlias = tuple[int, int, int, "tuple[object, ...] | str | bytes", "int | None"]

#: A worker as the root master sees it: the ids on the way down, ``(3,)`` or ``(3, 1)``.
Route: TypeAlias = tuple[int, ...]


# -- worker → parent ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Online:
    """The worker runs; user code comes next."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A shared listener is up in the worker; ``sockname`` is its real address."""

    family: int
    sockname: object


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker says itself that it is ready to work."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The main thread of the worker has got to a :class:`Ping`."""

    number: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The worker has done as many tasks as it may."""

    tasks: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker goes because it, or its parent, asked for it."""


@dataclass(frozen=True, slots=True)
class Parked:
    """The worker leaves, and from now on takes no new connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """``body`` wants a :class:`Reply` with the same number."""

    number: int
    body: object
    route: Route = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """A nested worker's process is gone: the registry forgets its listeners."""

    route: Route
    crashed: bool


# -- bodies of requests: what the registry of shared listeners is asked --------------------


@dataclass(frozen=True, slots=True)
class Bind:
    """Share the listener ``key``; here is my unbound socket with its options, if it is new."""

    key: Key
    socket: socket.socket
    scheduling: object = None
    listen: int | None = None  # backlog, where the master shall also listen()
    mode: int | None = None  # permission bits of a unix path
    event_loop: bool = False  # the acceptor is an event loop: `auto` prefers `slots`
    in_c: bool = False  # it accepts in C: no connection can be passed to it
    max_connections: int | None = None  # that one worker may have open at once


@dataclass(frozen=True, slots=True)
class Release:
    """The worker has closed its copy of ``key``."""

    key: Key


@dataclass(frozen=True, slots=True)
class Holds:
    """Is this unix path held by the registry? (Servers unlink before they bind.)"""

    path: str


@dataclass(frozen=True, slots=True)
class SteerAway:
    """The asker is about to leave: spread no new connection to it, or to those below it.

    The reply comes when it has taken what had queued for it alone, or has had its time.
    """


# -- bodies of requests of a worker with share="kernel" --------------------------------------


@dataclass(frozen=True, slots=True)
class Notifies:
    """Here the kernel asks what to do about my ``bind`` and ``listen``: answer it.

    ``number`` is that of the descriptor in the worker.
    """

    listener: Connection[Any, Any]
    number: int


@dataclass(frozen=True, slots=True)
class Exempt:
    """What I do with the socket of this inode is private."""

    inode: int


# -- parent → worker ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a :class:`Request`: a value, or the error to raise."""

    number: int
    value: object = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The listener: lay ``socket`` over your own (``None``: your own is the one)."""

    key: Key
    socket: socket.socket | None = None
    sockname: object = field(default=None)
    is_line: bool = False  # no listener: connections arrive on it (scheduling.line)
    counts: bool = False  # and the end of each shall be told


@dataclass(frozen=True, slots=True)
class Laid:
    """A socket that your C code has bound, or listens on, is a shared listener now."""

    family: int
    sockname: object
    fd: int
    inode: int
    is_stream: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Is your main thread, or the event loop in it, still at work?"""

    number: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Take no new connection, finish what you have, then leave."""
