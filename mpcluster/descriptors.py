"""The descriptors that no forked child may keep.

A fork copies every descriptor. A sibling that holds a copy of a channel keeps its other
end from ever seeing the end of file; one that holds a copy of a kept listener keeps the
port. So whatever the master keeps for itself is listed here (:func:`own`), and a child,
however it was forked, closes all of it before any of its own code runs. ``O_CLOEXEC``
does the same for programs that are executed.

How it is used::

    with descriptors.opening():                 # no fork of another thread in here
        ours, theirs = socket.socketpair()
        descriptors.own(ours)
        descriptors.own(theirs)

    with descriptors.keep(theirs.fileno()):     # this thread's fork lets its child have it
        pid = os.fork()

    descriptors.close(ours)                     # disown and close in one step
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from _thread import RLock, get_ident  # the threads' own, whatever gevent has put in their place
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, TypeVar

__all__ = [
    "call_keeping",
    "close",
    "close_numbers",
    "disown",
    "keep",
    "opening",
    "own",
    "own_numbers",
    "owned",
]


T = TypeVar("T")


class _Closable(Protocol):
    def fileno(self) -> int: ...

    def close(self) -> None: ...


#: A bare number, or an object that closes its own descriptor (socket, Connection).
Descriptor: TypeAlias = "int | _Closable"

# One lock. It is taken by whoever opens descriptors that are about to be owned (so that a
# fork of another thread cannot copy them before they are in the table), for each change of
# the table, and by every fork of this process, in the forking thread, so each child is a
# copy of a moment at which the table was whole. It is an RLock because the thread that opens
# may be the one that forks, and because a finalizer may close something at any point of a
# thread that holds it.
#
# While it is held: open, close, list. Never wait for another process or thread, log, call
# a user's code or send, for all forks of the process wait as long.
#
# The forking thread gives it back, in the parent and in the child, where it is the only one
# left. Waiters that did not come along do no harm: whoever releases a lock wakes those whom
# the kernel knows, and the kernel knows none of them in the child. (The lock's own methods
# are the hooks: each function of Python's that runs there is pages for the child to copy.)
_lock = RLock()

#: number → the object that closes it (weakly: the table keeps nothing alive) or ``None``.
_table: dict[int, weakref.ref[_Closable] | None] = {}


# What the forks that are about to be made leave open in their children, by the thread that
# makes them. (No `threading.local`: each child would have to make one anew.)
_kept: dict[int, frozenset[int]] = {}
_NONE: Final[frozenset[int]] = frozenset()


def opening() -> contextlib.AbstractContextManager[bool]:
    """Keep other threads from forking while descriptors are opened and listed.

    A fork made by this very thread inside the block goes ahead, and its child inherits
    what is not yet owned. May be nested. Do nothing slow inside.
    """
    return _lock  # `with` releases the very object that it took, in a forked child too


def own(descriptor: Descriptor) -> None:
    """From now on a forked child closes this descriptor by itself, right after the fork.

    In the child an object is closed as an object, so that its finalizer cannot close the
    number a second time after somebody else got it; one that was closed or collected here
    without :func:`disown` is passed over.

    Args:
        descriptor: A socket, a ``multiprocessing`` Connection or a bare number. A bare
            number must be disowned before it is closed. Owning twice is owning once.
    """
    number = _number(descriptor)
    if number < 0:
        raise ValueError(f"cannot own {descriptor!r}: it is closed")
    reference = None if isinstance(descriptor, int) else weakref.ref(descriptor)
    with opening():
        listed = _table.get(number)
        stale = listed is not None and _number(listed()) != number  # closed without a word
        if reference is not None or stale or number not in _table:
            _table[number] = reference


def own_numbers(*numbers: int) -> None:
    """As :func:`own`, for numbers that were opened in this very ``opening()`` block.

    Whatever is listed under one of them was closed without a word.
    """
    for number in numbers:
        _table[number] = None


def disown(descriptor: Descriptor) -> None:
    """A forked child inherits this descriptor again, as any other. Idempotent."""
    with opening():
        _table.pop(_number(descriptor), None)


def close(descriptor: Descriptor) -> None:
    """Disown and close, with no moment for a fork in between. Idempotent for objects."""
    with opening():
        disown(descriptor)
        if isinstance(descriptor, int):
            os.close(descriptor)
        else:
            descriptor.close()


def close_numbers(*numbers: int) -> None:
    """As :func:`close`, for several bare numbers; -1 is none."""
    with _lock:
        for number in numbers:
            if number >= 0:
                _table.pop(number, None)
                os.close(number)


class keep:  # noqa: N801  # a generator would be more for each child to run
    """Let the child of a fork that this thread makes inside the block have these.

    They stay owned, in the parent and in the child alike, so the child's own children do
    not inherit them. Forks of other threads are not affected, nor forks of the child.
    """

    __slots__ = ("_kept", "_numbers", "_previous")

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def __enter__(self) -> None:
        self._kept = _kept
        self._previous = _kept.get(get_ident(), _NONE)
        _kept[get_ident()] = self._previous.union(self._numbers)

    def __exit__(self, *_: object) -> None:
        # In what it was put into: a child has begun with none.
        if self._previous:
            self._kept[get_ident()] = self._previous
        else:
            self._kept.pop(get_ident(), None)


def call_keeping(fork: Callable[[], T], numbers: tuple[int, ...]) -> T:
    """Return ``fork()``, made within :class:`keep`; with less to run for each child."""
    kept, me = _kept, get_ident()
    previous = kept.get(me)
    kept[me] = previous.union(numbers) if previous else frozenset(numbers)
    try:
        return fork()
    finally:
        # In what it was put into: a child has begun with none.
        if previous:
            kept[me] = previous
        else:
            del kept[me]


def owned() -> frozenset[int]:
    """The numbers in the table, without those of objects that were closed without a word."""
    with opening():
        return frozenset(
            number
            for number, reference in _table.items()
            if reference is None or _number(reference()) == number
        )


def _after_fork_in_child() -> None:
    """Close what is the parent's, and give the lock back."""
    global _kept
    kept = _kept.get(get_ident(), _NONE)
    _kept = {}
    for number, reference in list(_table.items()):
        if number in kept:
            continue
        del _table[number]
        if reference is None:
            try:
                os.close(number)
            except OSError:
                pass
        else:
            _close_object(reference(), number)
    _lock.release()


def _number(descriptor: Descriptor | None) -> int:
    """The number, or -1 of an object that is closed (a Connection's `fileno` raises then)."""
    if isinstance(descriptor, int):
        return descriptor
    if descriptor is None:
        return -1
    try:
        return descriptor.fileno()
    except (OSError, ValueError):
        return -1


def _close_object(thing: _Closable | None, number: int) -> None:
    if thing is None or _number(thing) != number:
        return  # closed or collected without a word: the number is somebody else's by now
    if isinstance(thing, socket.socket):
        # Not its `close`: in a worker that is replaced by one that knows shared listeners,
        # and one with a file made of it would stay open.
        super(socket.socket, thing).detach()
        with contextlib.suppress(OSError):
            os.close(number)
    else:
        with contextlib.suppress(OSError):
            thing.close()


os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_after_fork_in_child,
)
