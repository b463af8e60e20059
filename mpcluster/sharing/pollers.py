"""``select.poll`` and ``select.epoll`` objects whose word holds (:mod:`~.polling`)."""

from __future__ import annotations

import select
import weakref
from collections.abc import Callable
from typing import Any, Self, TypeAlias

from . import copies
from .copies import Copy
from .readiness import accepts, holds, is_blocking, until_true, wait_alone

__all__ = ["Epoll", "Poll", "number_of", "reconsider"]

Events: TypeAlias = "list[tuple[int, int]]"

# Taken now: the names are patched later, and gevent deletes some.
_poll = getattr(select, "poll", None)
_epoll: Any = getattr(select, "epoll", None)

_READ = 1  # POLLIN and EPOLLIN alike
_DEFAULT = 7  # POLLIN | POLLPRI | POLLOUT
_ONESHOT = getattr(select, "EPOLLONESHOT", 0)
_EDGE = getattr(select, "EPOLLET", 0)

#: The poll objects that watch a shared socket.
_pollers: weakref.WeakSet[_Poller] = weakref.WeakSet()


def reconsider() -> None:
    """A shared socket blocks that did not: pollers that know it must not trust the kernel."""
    for poller in list(_pollers):
        poller.reconsider()


class _Poller:
    """What ``poll`` and ``epoll`` objects have in common; the kernel's own is ``_real``."""

    def __init__(self, kernels: Any) -> None:
        self._real = kernels
        self._masks: dict[int, int] = {}  # of the shared sockets
        self._others = False  # was anything else ever registered?
        # In the place of the method below, and without a circle, as long as that will do.
        self.__dict__["poll"] = kernels.poll

    # An event loop calls these for each connection.

    def register(self, fd: Any, eventmask: int = _DEFAULT) -> None:
        """As the kernel's."""
        self._real.register(fd, eventmask)
        if (fd if type(fd) is int else number_of(fd)) in copies.table:
            self._note(number_of(fd), eventmask)
        else:
            self._others = True

    def modify(self, fd: Any, eventmask: int) -> None:
        """As the kernel's."""
        self._real.modify(fd, eventmask)
        if (fd if type(fd) is int else number_of(fd)) in copies.table:
            self._note(number_of(fd), eventmask)

    def unregister(self, fd: Any) -> None:
        """As the kernel's."""
        if self._masks:
            self._masks.pop(number_of(fd), None)
        self._real.unregister(fd)

    def reconsider(self) -> None:
        """Look again whether the kernel's word is enough."""
        if any(is_blocking(copy) for copy in self._watched().values()):
            self.__dict__.pop("poll", None)

    def _note(self, number: int, mask: int) -> None:
        self._masks[number] = mask
        _pollers.add(self)
        self.reconsider()

    def _watched(self) -> dict[int, Copy]:
        """The shared sockets that are polled for reading."""
        found = {n: copies.find(n) for n, mask in list(self._masks.items()) if mask & _READ}
        return {number: copy for number, copy in found.items() if copy is not None}

    def _hold(
        self, look: Callable[[float | None], Events], timeout: float | None, most: int
    ) -> Events:
        """Poll with ``look`` until something true is to be reported."""
        if len(self._masks) == 1 and not self._others:
            ((number, mask),) = self._masks.items()
            only = copies.table.get(number)
            if only is not None and _lasts(mask) and only.timeout != 0.0 and accepts(only):
                return [(number, _READ)] if wait_alone(only, timeout) else []
        watched = {n: copy for n, copy in self._watched().items() if is_blocking(copy)}
        if not watched:
            return look(timeout)
        events: Events = []
        lasting = [copy for number, copy in watched.items() if _lasts(self._masks[number])]

        def look_and_keep(seconds: float | None) -> bool:
            found = look(seconds)
            told = dict(found)
            events[:] = [(number, mask) for number, mask in found if number not in watched]
            for number, copy in watched.items():
                mask = told.get(number, 0)
                others = mask & ~_READ
                if copy.listener.taken or (mask & _READ and holds(copy)) or copy.ended:
                    events.append((number, others | _READ))
                elif others:
                    events.append((number, others))
                elif mask and self._masks[number] & _ONESHOT:
                    self._real.modify(number, self._masks[number])
            if most > 0:
                del events[most:]
            return bool(events)

        until_true(look_and_keep, lasting, timeout)
        return events


def _lasts(mask: int) -> bool:
    """Reported as long as it is so? What is told once is asked after the kernel has told."""
    return bool(mask & _READ) and not mask & (_ONESHOT | _EDGE)


def number_of(fd: Any) -> int:
    """The descriptor of what can be polled, by its ``fileno()`` where it has one."""
    return fd if isinstance(fd, int) else int(fd.fileno())


class Poll(_Poller):
    """``select.poll()`` whose word holds."""

    def __init__(self) -> None:
        super().__init__(_poll())  # type: ignore[misc]

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> Events:
        """As the kernel's, once a shared listener that blocks is registered."""

        def look(seconds: float | None) -> Events:
            milliseconds = None if seconds is None else seconds * 1000
            found: Events = self._real.poll(milliseconds)
            return found

        seconds = None if timeout is None or timeout < 0 else timeout / 1000
        return self._hold(look, seconds, maxevents)


class Epoll(_Poller):
    """``select.epoll()`` whose word holds."""

    def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
        super().__init__(_epoll(sizehint, flags))

    @classmethod
    def fromfd(cls, fd: int, /) -> Self:
        """As the kernel's. What is registered already is reported as the kernel has it."""
        made = cls.__new__(cls)
        _Poller.__init__(made, _epoll.fromfd(fd))
        return made

    @property
    def closed(self) -> bool:
        """Is it closed?"""
        return bool(self._real.closed)

    def fileno(self) -> int:
        """As the kernel's."""
        return int(self._real.fileno())

    def close(self) -> None:
        """As the kernel's."""
        self._masks.clear()
        self._real.close()

    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> Events:
        """As the kernel's, once a shared listener that blocks is registered."""

        def look(seconds: float | None) -> Events:
            found: Events = self._real.poll(-1 if seconds is None else seconds, maxevents)
            return found

        seconds = None if timeout is None or timeout < 0 else timeout
        return self._hold(look, seconds, maxevents)
