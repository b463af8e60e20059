"""Readiness that holds: what ``select``, ``poll`` and ``epoll`` say of a shared listener.

Of a connection the kernel tells every process that polls the listener, and one gets it. The
``accept()`` of the others would then block, as the socket does, though they were told that
it would not. So a listener that blocks is reported only when the connection is this
process's already: it is taken from the queue first, and lies in ``Listener.taken`` until
``accept()`` fetches it. Who did not poll waits in ``accept()`` as on any socket. And a
process that polls nothing but its listener waits in turn with the others
(:func:`~.waiting.wait`) and is not woken in vain.

A listener that does not block, an event loop's, is reported as the kernel has it: to find
nothing is normal there. Of a datagram that a sibling has read first, ``recv`` raises
``BlockingIOError`` once, after it was reported, and never else.

Patched with the first shared socket of a process: ``select.select``, ``poll``, ``epoll`` and
the selectors upon them. Until a shared listener that blocks is registered, a poll object's
``poll`` is the kernel's own, without a detour. Programs in C that poll by themselves are not
reached: their ``accept()`` may wait for the next connection.
"""

from __future__ import annotations

import os
import select
import selectors
import sys
from collections.abc import Iterable
from typing import Any

from . import copies
from .copies import Copy
from .pollers import Epoll, Poll, number_of
from .readiness import accepts, holds, is_blocking, until_true, wait_alone

__all__ = ["install"]

# Taken now: the names are patched below, and gevent deletes some.
_select = select.select
_poll = getattr(select, "poll", None)
_epoll: Any = getattr(select, "epoll", None)

_NAMES = ("select", "poll", "epoll")

_installed = False

# What `_look_ahead` has found, and when. A forked child inherits it.
_holders: list[dict[str, Any]] = []
_looked_at: object = None


def install() -> None:
    """Make the reports of this process hold. Idempotent; a forked child inherits it."""
    global _installed
    if _installed:
        return
    _installed = True
    new: dict[Any, Any] = {_select: _honest_select}
    selectors.SelectSelector._select = staticmethod(_honest_select)  # type: ignore[attr-defined]  # noqa: SLF001
    if _poll is not None:
        new[_poll] = Poll
        selectors.PollSelector._selector_cls = Poll  # type: ignore[attr-defined]  # noqa: SLF001
    if _epoll is not None:
        new[_epoll] = Epoll
        selectors.EpollSelector._selector_cls = Epoll  # type: ignore[attr-defined]  # noqa: SLF001
    # Also for those that have said `from select import select` before.
    for names in _holders if _looked_at == _modules() else _find_holders():
        for name in _NAMES:
            found = names.get(name)
            if any(found is old for old in new):
                names[name] = new[found]


def _modules() -> object:
    """Changes with every module that is imported."""
    return len(sys.modules), next(reversed(sys.modules), None)


def _find_holders() -> list[dict[str, Any]]:
    """The namespaces of this process in which one of the names is what it is before the patch."""
    olds = [old for old in (_select, _poll, _epoll) if old is not None]
    found = []
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        values = [names.get(name) for name in _NAMES]
        if names is not globals() and any(value is old for value in values for old in olds):
            found.append(names)
    return found


def _look_ahead() -> None:
    """Before a fork: a child that looks through all modules writes to each one's page.

    Of 400 modules that were 1.6 MB a worker.
    """
    global _holders, _looked_at
    if not _installed and _looked_at != _modules():
        _holders, _looked_at = _find_holders(), _modules()


os.register_at_fork(before=_look_ahead)


def _honest_select(
    rlist: Iterable[Any],
    wlist: Iterable[Any],
    xlist: Iterable[Any],
    timeout: float | None = None,
    /,
) -> tuple[list[Any], list[Any], list[Any]]:
    """``select.select`` whose word holds."""
    if not copies.any_known():
        return _select(rlist, wlist, xlist, timeout)
    readers, writers, others = list(rlist), list(wlist), list(xlist)
    watched: dict[int, Copy] = {}  # by the place in the list
    for place, one in enumerate(readers):
        copy = copies.find(number_of(one))
        if copy is not None and is_blocking(copy):
            watched[place] = copy
    if not watched:
        return _select(readers, writers, others, timeout)
    if len(readers) == 1 and not writers and not others and accepts(watched[0]):
        return (readers if wait_alone(watched[0], timeout) else []), [], []
    result: tuple[list[Any], list[Any], list[Any]] = ([], [], [])

    def look(seconds: float | None) -> bool:
        nonlocal result
        numbers = [number_of(one) for one in readers]
        told, written, strange = _select(numbers, writers, others, seconds)
        found = set(told)
        read = [
            one
            for place, (one, number) in enumerate(zip(readers, numbers, strict=True))
            if (
                number in found
                if place not in watched
                else watched[place].listener.taken
                or watched[place].ended
                or (number in found and holds(watched[place]))
            )
        ]
        result = read, written, strange
        return any(result)

    until_true(look, list(watched.values()), timeout)
    return result
