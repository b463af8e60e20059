"""No new connection, at once: what a draining worker does to its listeners.

A listener's descriptor is laid over with a socket on which nothing ever arrives. Whatever
accepts from it, in Python or in C, by ``select``, ``poll`` or blocked in ``accept``, sees
silence, and need not be told. Two things outlive a descriptor, though:

* An epoll registration belongs to the open file description, which the master and the
  siblings hold open: it would go on firing. So it is removed from every epoll object of
  this process, uvloop's and gevent's too; ``/proc/self/fdinfo`` says which they are.
* Copies that C code made have numbers of their own; they are found by identity.

The listener is not released by that: while nobody else serves it, clients wait in its queue
for a replacement, and it ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

from mpcluster import descriptors

from . import beneath, copies, real
from .binding import lay_over

__all__ = ["park", "prepare", "silence"]

_epoll = getattr(select, "epoll", None)
#: By whether it blocks.
_silent: dict[bool, socket.socket] = {}


def prepare() -> None:
    """Have what is needed before the first ``bind`` of this process waits for its master."""
    for blocks in (False, True):
        _silence(blocks=blocks)


def park() -> bool:
    """Stop accepting from every shared stream listener of this process. Any thread.

    Listeners that come up later are silent from the first.

    Returns:
        Whether there was one.
    """
    copies.when_up(park)
    parked = False
    for copy in copies.known():
        if not copy.listener.listening or copy.listener.key[1] == socket.SOCK_DGRAM:
            continue  # a datagram socket is also what answers are sent through
        parked = True
        silence(copy)
    for listener in beneath.known():
        if listener.parked or not listener.is_stream:
            continue
        parked = listener.parked = True
        _lay_silence(set(copies.descriptors_of(listener.identity)) - descriptors.owned())
    return parked


def silence(copy: copies.Copy) -> None:
    """Let nothing arrive any more on this descriptor, and on the others of its listener."""
    identity = copies.identify(copy.fd)
    if copy.parked or identity is None:
        return
    # A line has a descriptor of its own, which is not the program's.
    numbers = {copy.fd, *copies.descriptors_of(identity)} - descriptors.owned()
    copy.parked = True
    for number in _lay_silence(numbers, blocks=False):
        other = copies.known_as(number)
        if other is not None:
            other.parked = True
            other.identity = copies.identify(number)


def _lay_silence(numbers: set[int], *, blocks: bool | None = None) -> set[int]:
    """Lay it over these descriptors; of a kind that blocks as each did, where nobody says."""
    _unregister(numbers)
    for number in numbers:
        kind = os.get_blocking(number) if blocks is None else blocks
        lay_over(real.fileno(_silence(blocks=kind)), number)
    return numbers


def _silence(*, blocks: bool) -> socket.socket:
    """A listening socket that nobody knows: an abstract name that the kernel made up."""
    if blocks not in _silent:
        silent = real.Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        real.bind(silent, "")
        real.listen(silent, 0)
        real.settimeout(silent, None if blocks else 0.0)
        _silent[blocks] = silent
    return _silent[blocks]


def _unregister(numbers: set[int]) -> None:
    if _epoll is None:
        return
    for queue, watched in _registrations():
        ours = numbers & watched
        if not ours:
            continue
        try:
            own = os.dup(queue)  # which the object closes when it goes
        except OSError:
            continue
        with _epoll.fromfd(own) as poller:
            for number in ours:
                with contextlib.suppress(OSError):
                    poller.unregister(number)


def _registrations() -> Iterator[tuple[int, set[int]]]:
    """Every epoll descriptor of this process, with the descriptors that are registered."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return
    for name in names:
        try:
            if "eventpoll" not in os.readlink(f"/proc/self/fd/{name}"):
                continue
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii", errors="replace") as info:
                lines = info.read().splitlines()
        except OSError:
            continue
        fields = [line.split() for line in lines if line.startswith("tfd:")]
        yield int(name), {int(field[1]) for field in fields}


def _after_fork_in_child() -> None:
    for silent in _silent.values():
        real.close(silent)
    _silent.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
