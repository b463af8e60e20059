"""Scheduling policies: how the connections of one listener are spread over its users.

One small file each behind one interface (:class:`~mpcluster.scheduling.base.Policy`):

* ``shared``, ``slots``: the kernel deals, and workers accept for themselves
* ``round_robin``, ``least_connections``, ``ip_hash``: the master accepts, and passes each
  connection on (:mod:`~mpcluster.scheduling.accepting`)

``auto``, the default, takes ``slots`` for event loops on TCP and ``shared`` for all else;
with ``max_connections``, which only a master that accepts can keep to, ``round_robin``. An
object of one's own is a subclass of ``Policy`` or of ``Accepting``, or any callable that
takes a :class:`~mpcluster.scheduling.base.Kept` and returns one.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.base import MASTER, Kept, Policy, PolicyFactory
from mpcluster.scheduling.ip_hash import IpHash
from mpcluster.scheduling.least_connections import LeastConnections
from mpcluster.scheduling.round_robin import RoundRobin
from mpcluster.scheduling.shared import Shared
from mpcluster.scheduling.slots import Slots, queued
from mpcluster.scheduling.taker import Taker

__all__ = [
    "MASTER",
    "POLICIES",
    "Accepting",
    "Kept",
    "Policy",
    "Taker",
    "check",
    "choose",
    "queued",
]

_log = logging.getLogger("mpcluster")

#: The policies that can be chosen by name, beside ``auto``.
POLICIES: Mapping[str, PolicyFactory] = {
    "shared": Shared,
    "slots": Slots,
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "ip_hash": IpHash,
}

#: The default policy's name, for programs that choose none.
VARIABLE = "MPCLUSTER_SCHEDULING"


def check(scheduling: object, max_connections: int | None = None) -> None:
    """Raise what :func:`choose` would for this choice. Opens nothing; any process."""
    _check_limit(_named(scheduling), max_connections)


def choose(
    scheduling: object,
    listener: socket.socket,
    *,
    event_loop: bool,
    in_c: bool = False,
    max_connections: int | None = None,
) -> PolicyFactory:
    """The policy for a new listener.

    Args:
        scheduling: A name, a policy of one's own, or ``None``: what the environment's
            ``MPCLUSTER_SCHEDULING`` says, or ``auto``.
        listener: The socket that the listener begins with. ``slots`` needs TCP, and a
            socket that does not listen yet; else it is ``shared``. What has no connections
            is ``shared``. ``ip_hash`` needs addresses; else it is ``round_robin``.
        event_loop: The acceptor is one; decides ``auto``.
        in_c: It accepts in C, so nothing can be passed to it: ``slots``, with a warning, where
            the policy would.
        max_connections: A limit for each worker; only a master that accepts can keep to it.

    Raises:
        ValueError: A name that is none, or one that cannot keep to the limit; the text names
            the choices.
        TypeError: No name, and nothing that can be called.
    """
    policy: Any = _named(scheduling)
    _check_limit(policy, max_connections)
    if policy is None:
        by_kernel = Slots if event_loop else Shared
        policy = by_kernel if max_connections is None else RoundRobin
    if isinstance(policy, type) and issubclass(policy, Accepting):
        policy = _possible(policy, listener, in_c=in_c, limit=max_connections)
    chosen: PolicyFactory = policy
    return Shared if chosen is Slots and not _can_have_slots(listener) else chosen


def _possible(
    policy: type[Accepting], listener: socket.socket, *, in_c: bool, limit: int | None
) -> PolicyFactory:
    """This policy, or the next best where it cannot be, with a word."""
    if listener.type == socket.SOCK_DGRAM:
        _log.info("%s deals connections; datagrams are shared", policy.__name__)
        return Shared
    if in_c:
        _log.warning(
            "%s passes connections from the master, and this event loop (uvloop?) accepts in C, "
            "where they cannot arrive: slots take its place%s. Run the server on asyncio's own "
            "loop, or choose 'auto'",
            policy.__name__,
            "" if limit is None else f", and max_connections={limit} is not kept",
        )
        return Slots
    if policy is IpHash and listener.family == socket.AF_UNIX:
        _log.warning("ip_hash: clients of a unix socket have no address; round_robin takes over")
        return RoundRobin
    return policy


def _check_limit(policy: PolicyFactory | None, limit: int | None) -> None:
    if limit is not None and policy in {Shared, Slots}:
        raise ValueError(
            f"max_connections={limit} cannot be kept to by a policy that leaves accepting to the "
            "workers: choose 'round_robin', 'least_connections', 'ip_hash' or 'auto'"
        )


def _named(scheduling: object) -> PolicyFactory | None:
    """The policy of that name; ``None`` for ``auto``."""
    source = ""
    if scheduling is None:
        scheduling = os.environ.get(VARIABLE) or "auto"
        source = f" (from {VARIABLE})"
    if isinstance(scheduling, str):
        if scheduling == "auto":
            return None
        if scheduling in POLICIES:
            return POLICIES[scheduling]
        choices = ", ".join(repr(name) for name in ("auto", *POLICIES))
        raise ValueError(
            f"no scheduling policy is named {scheduling!r}{source}: "
            f"choose one of {choices}, or hand over a policy of your own"
        )
    if not callable(scheduling):
        raise TypeError(
            f"{scheduling!r} is no scheduling policy: hand over a name, or a subclass of "
            "mpcluster.scheduling.Policy"
        )
    return scheduling


def _can_have_slots(listener: socket.socket) -> bool:
    return (
        sys.platform == "linux"
        and listener.family in (socket.AF_INET, socket.AF_INET6)
        and listener.type == socket.SOCK_STREAM
        and not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
