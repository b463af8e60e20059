"""``slots``: one ``SO_REUSEPORT`` socket, and so one queue, for each user.

For event loops: each polls a queue of its own, so none takes a whole burst. Sockets that
workers make themselves would do that too, but lose their queue with the worker. Here the
master keeps them all, in the order of ``listen()``, and never closes one before the
listener ends: a slot whose worker died keeps its queue and its place in the kernel's group
until the next asker takes it over, so there are as many slots as there ever were users at
once. A BPF program names the slots that new connections may go to
(:mod:`mpcluster.scheduling.steering`).

The first socket was bound without ``SO_REUSEPORT``: a stranger who has the port already is
still ``EADDRINUSE``. The option may be set between ``bind`` and ``listen``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import struct
from dataclasses import dataclass, field

from mpcluster import descriptors
from mpcluster.messages import Route
from mpcluster.scheduling.base import MASTER, CallLater, Kept, Policy, Timer, adopt
from mpcluster.scheduling.steering import steer

__all__ = ["Slots", "queued"]

_log = logging.getLogger("mpcluster")

#: Options that a server may have set and that a socket made in its place needs, too.
_COPIED = [
    (level, option)
    for level, names in (
        (socket.SOL_SOCKET, ("SO_REUSEADDR", "SO_KEEPALIVE", "SO_MARK", "SO_PRIORITY")),
        (socket.IPPROTO_IP, ("IP_TOS", "IP_TTL", "IP_TRANSPARENT")),
        (socket.IPPROTO_IPV6, ("IPV6_V6ONLY", "IPV6_TCLASS")),
        (
            socket.IPPROTO_TCP,
            (
                "TCP_DEFER_ACCEPT",
                "TCP_FASTOPEN",
                "TCP_KEEPCNT",
                "TCP_KEEPIDLE",
                "TCP_KEEPINTVL",
                "TCP_USER_TIMEOUT",
            ),
        ),
    )
    for option in [getattr(socket, name) for name in names if hasattr(socket, name)]
]


def queued(listening: socket.socket) -> int:
    """How many connections wait in the queue of a listening TCP socket (``tcpi_unacked``)."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int(struct.unpack_from("I", info, 24)[0])


@dataclass(eq=False)
class _Slot:
    """One kept socket. Normally one user; several only where no further could be bound."""

    socket: socket.socket
    users: set[Route] = field(default_factory=set)
    draining: set[Route] = field(default_factory=set)
    timer: Timer | None = None  # runs while the slot is free: what waits in it then ends

    @property
    def free(self) -> bool:
        return not self.users

    @property
    def listens(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    @property
    def live(self) -> bool:
        return bool(self.users - self.draining)


class Slots(Policy):
    """Kept sockets in the order of ``listen()``, each with its users.

    The master itself (route ``()``) takes no slot: connections that it never accepts must
    not be steered to it. It gets the first socket, as a pre-fork master does.
    """

    def __init__(self, kept: Kept) -> None:
        self._call_later: CallLater = kept.call_later
        self._grace = kept.grace
        self._family, self._proto = kept.socket.family, kept.socket.proto
        self._address = kept.socket.getsockname()
        self._slots = [_Slot(kept.socket)]
        self._begun = False
        #: Another master has the say: the last one that is still at work, or the next one.
        self._is_silent = False
        self._users: set[Route] = set()
        self._backlog = socket.SOMAXCONN
        self._steered: list[int] = []

    def __repr__(self) -> str:
        inside = " ".join(
            f"{n}:{'live' if slot.live else 'free' if slot.free else 'draining'}"
            for n, slot in enumerate(self._slots)
        )
        return f"<Slots {inside} steered={self._steered}>"

    def add(self, route: Route, offered: socket.socket, backlog: int | None) -> socket.socket:
        """Give ``route`` the free slot with the longest queue, or a new one."""
        if backlog is not None:
            self._backlog = backlog
        if not self._begun:
            first = self._slots[0].socket
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.listen(self._backlog)
            self._begun = True
        self._part()
        slot = self._slots[0] if route == MASTER and self._slots else self._next_free()
        slot = slot or self._new(offered)
        if slot is None:
            if not self._slots:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            slot = min(self._slots, key=lambda one: len(one.users))
        self._users.add(route)
        if route == MASTER:
            return slot.socket
        slot.users.add(route)
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        self._steer()
        return slot.socket

    def remove(self, route: Route, *, crashed: bool) -> bool:  # noqa: ARG002
        """Free the slot. Its queue waits ``grace`` seconds for the next asker, then ends.

        After a leave by its own will, too: a handshake that was under way when the slot was
        steered away from may still end in its queue.
        """
        self._users.discard(route)
        self._part()
        for slot in self._slots:
            if route in slot.users:
                slot.users.discard(route)
                slot.draining.discard(route)
                if slot.free:
                    self._park(slot)
        self._steer()
        return not self._users

    def drain(self, route: Route) -> list[socket.socket]:
        """Steer away from ``route``; with nobody else there, to a spare for its replacement."""
        self._part()
        mine = [slot for slot in self._slots if route in slot.users]
        for slot in mine:
            slot.draining.add(route)
        alone = not any(slot.live or slot.free for slot in self._slots)
        if mine and alone and not self._is_silent:
            spare = self._new(None)
            if spare is not None:
                self._park(spare)
        self._steer()
        return [slot.socket for slot in mine if not slot.live]

    def bequeath(self) -> list[socket.socket]:
        """All in the order of the kernel's group.

        Also a group of one is steered from now on: the next master's workers may join it.
        """
        self._part()
        if self._begun:
            self._attach(self._steered or [0])
        return [slot.socket for slot in self._slots[1:]]

    def succeed(self, further: list[socket.socket]) -> None:
        """Go on with the same group. A new worker shares a slot with one of the last master's.

        So no queue is left behind, and no index in the kernel's group changes.
        """
        self._slots += [_Slot(adopt(one)) for one in further]
        self._begun = self._is_silent = True

    def settle(self) -> None:
        """Steer from now on; slots that nobody has taken over wait for an asker."""
        self._is_silent = False
        self._part()
        for slot in self._slots:
            if slot.free and slot.timer is None:
                self._park(slot)
        self._steer()

    def let_go(self) -> None:
        """Steer no more, and end nothing that waits: it is the next master's."""
        self._is_silent = True
        self._cancel_timers()

    def close(self) -> None:
        """Close every slot; what waits in their queues ends."""
        self._cancel_timers()
        for slot in self._slots:
            descriptors.close(slot.socket)

    def _cancel_timers(self) -> None:
        for slot in self._slots:
            if slot.timer is not None:
                slot.timer.cancel()
                slot.timer = None

    def _part(self) -> None:
        """Part with slots that somebody shut down, or connected as a client's after all.

        They have left the kernel's group, and its last member took their place, as here.
        """
        for slot in [slot for slot in self._slots if not slot.listens]:
            last = self._slots.pop()
            if last is not slot:
                self._slots[self._slots.index(slot)] = last
            if slot.timer is not None:
                slot.timer.cancel()
                slot.timer = None
            descriptors.close(slot.socket)

    def _next_free(self) -> _Slot | None:
        """The free slot with the longest queue; of equals the first, as `_steer` has it."""
        free = [slot for slot in self._slots if slot.free]
        return max(free, key=lambda slot: queued(slot.socket)) if free else None

    def _new(self, offered: socket.socket | None) -> _Slot | None:
        """Bind one more socket to the address: the asker's own, or else one like the first.

        The asker's own has its server's options, but may be bound to a port already (a
        port 0 that became a server late), or be of another user (the kernel lets only one
        user's sockets share a port).
        """
        if offered is not None and _join(offered, self._address, self._backlog):
            made = offered
        else:
            try:
                with descriptors.opening():
                    made = socket.socket(self._family, socket.SOCK_STREAM, self._proto)
                    descriptors.own(made)
            except OSError as error:  # no descriptor left
                _log.warning("no further slot on %s: %s", self._address, error)
                return None
            if self._slots:
                _copy_options(self._slots[0].socket, made)
            if not _join(made, self._address, self._backlog):
                descriptors.close(made)
                _log.warning("no further slot on %s: workers share one", self._address)
                return None
        slot = _Slot(adopt(made))
        self._slots.append(slot)
        return slot

    def _steer(self) -> None:
        """Name the live slots; with none, the one that the next asker gets."""
        if self._is_silent:
            return
        indices = [n for n, slot in enumerate(self._slots) if slot.live]
        if not indices:
            waiting = self._next_free()
            if waiting is None:
                return  # all drain, and no spare could be made
            indices = [self._slots.index(waiting)]
        if len(self._slots) > 1:
            self._attach(indices)
        self._steered = indices

    def _attach(self, indices: list[int]) -> None:
        try:
            steer(self._slots[0].socket, indices)
        except OSError as error:
            # The kernel's hash spreads over all slots then; the queues of those that
            # nobody serves wait for the next asker, or for `_flush`.
            _log.warning("cannot steer connections between slots: %s", error)

    def _park(self, slot: _Slot) -> None:
        """The slot is free: give the next asker ``grace`` seconds to come for its queue."""
        if not self._is_silent:
            slot.timer = self._call_later(self._grace, functools.partial(self._flush, slot))

    def _flush(self, slot: _Slot) -> None:
        """Nobody came for the slot: end what waits in its queue, so that clients know.

        Not while new connections are steered to it: then nobody has any slot, the whole
        listener waits, and ends by its own timer, or is held by the master.
        """
        if self._slots.index(slot) in self._steered:
            self._park(slot)
            return
        slot.timer = None
        slot.socket.settimeout(0)
        with contextlib.suppress(OSError):
            while True:
                waiting, _ = slot.socket.accept()
                waiting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                waiting.close()  # a reset, as closing the listener would send


def _join(candidate: socket.socket, address: object, backlog: int) -> bool:
    """Bind to the group's address and listen, as the group's next member, if that can be."""
    try:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        candidate.bind(address)  # type: ignore[arg-type]
        candidate.listen(backlog)
    except OSError:
        return False
    return True


def _copy_options(source: socket.socket, target: socket.socket) -> None:
    for level, option in _COPIED:
        with contextlib.suppress(OSError):  # of another family
            value = source.getsockopt(level, option)
            if value != target.getsockopt(level, option):
                target.setsockopt(level, option, value)
