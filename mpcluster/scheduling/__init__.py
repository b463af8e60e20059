"""Scheduling policies: how the connections of one listener are spread over its users.

``shared`` and ``slots`` are built in, one small file each behind one interface
(:class:`~mpcluster.scheduling.base.Policy`). ``auto``, the default, takes ``slots`` for
event loops on TCP and ``shared`` for all else. An object of one's own is a subclass of
``Policy``, or any callable that takes a :class:`~mpcluster.scheduling.base.Kept` and
returns an object with the same verbs.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

from mpcluster.scheduling.base import MASTER, Kept, Policy, PolicyFactory
from mpcluster.scheduling.shared import Shared
from mpcluster.scheduling.slots import Slots, queued

__all__ = ["MASTER", "POLICIES", "Kept", "Policy", "check", "choose", "queued"]

#: The policies that can be chosen by name, beside ``auto``.
POLICIES: Mapping[str, PolicyFactory] = {"shared": Shared, "slots": Slots}

#: The default policy's name, for programs that choose none.
VARIABLE = "MPCLUSTER_SCHEDULING"


def check(scheduling: object) -> None:
    """Raise what :func:`choose` would for this choice. Opens nothing; any process."""
    _named(scheduling)


def choose(scheduling: object, listener: socket.socket, *, event_loop: bool) -> PolicyFactory:
    """The policy for a new listener.

    Args:
        scheduling: A name, a policy of one's own, or ``None``: what the environment's
            ``MPCLUSTER_SCHEDULING`` says, or ``auto``.
        listener: The socket that the listener begins with. ``slots`` needs TCP, and a
            socket that does not listen yet; else it is ``shared``.
        event_loop: The acceptor is one; decides ``auto``.

    Raises:
        ValueError: A name that is none; the text names the choices.
        TypeError: No name, and nothing that can be called.
    """
    policy = _named(scheduling)
    if policy is None:
        policy = Slots if event_loop else Shared
    if policy is Slots and not _can_have_slots(listener):
        return Shared
    return policy


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
