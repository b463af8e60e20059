"""IPv4 on an IPv6 socket that takes both: what a program that bound ``0.0.0.0`` gets to see.

Service managers hand down one socket at ``[::]:port`` for both. A program that binds IPv4
knows pairs of host and port only, so its connections show their addresses in that form.
"""

from __future__ import annotations

import socket
from typing import Any

from . import real

__all__ = ["MappedSocket", "pair"]

_PREFIX = "::ffff:"


class MappedSocket(real.Socket):
    """A connection over IPv6 that looks like one over IPv4."""

    __slots__ = ()

    @property
    def family(self) -> socket.AddressFamily:
        """What the program asked for. The kernel's is IPv6."""
        return socket.AF_INET

    def getpeername(self) -> Any:
        """As a pair; an IPv6 host where the client has no other."""
        return pair(super().getpeername())

    def getsockname(self) -> Any:
        """As a pair."""
        return pair(real.getsockname(self))


def pair(address: Any) -> tuple[str, int]:
    """``("::ffff:192.0.2.1", port, 0, 0)`` as ``("192.0.2.1", port)``."""
    host, port = address[:2]
    return host.removeprefix(_PREFIX), port
