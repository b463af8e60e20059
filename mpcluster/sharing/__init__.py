"""Sharing without a word: the worker's side of shared listening sockets.

In a worker that shares its ports, :func:`install` makes plain ``socket.bind`` and
``listen`` of any server go through the registry in the master. Bottom up:

* ``real``: what is patched, as it was
* ``copies``: which descriptor here is which listener; ``ports``: the bookkeeping of port 0
* ``waiting``, ``datagrams``: blocking on descriptors that never block
* ``readiness``, ``pollers``, ``polling``: what select, poll and epoll say of them
* ``eventloops``, ``paths``: asyncio's greed, servers' unlinking; ``mapped``: IPv4 over IPv6
* ``binding``: the conversation with the registry
* ``sockets``: the changed methods; ``patch``: putting them in place
* ``listening``: ``cluster.listen()``
* ``share="kernel"``: ``seccomp``, the system calls; ``notifications``, the master's side; and
  ``beneath``, what the worker knows of listeners that its C code has made
* for a drain: ``parking`` (no new connection) and ``connections`` (those in hand)
"""

from __future__ import annotations

from . import beneath, parking
from .binding import Ask, Office
from .copies import Tell
from .listening import shared_listen
from .patch import apply

__all__ = ["install", "install_beneath", "shared_listen"]


def install(ask: Ask, tell: Tell) -> None:
    """Share the ports of this process from now on. In a worker only, before its program.

    Args:
        ask: ``ask(Bind | Holds)`` asks the registry, waits, and raises its error.
        tell: ``tell(Listening | Release)`` does not wait for anything.
    """
    apply(Office(ask, tell))


def install_beneath(ask: Ask) -> None:
    """Share what C code binds, too, from now on, by way of the kernel. Cannot be undone.

    In a worker only, before its program, and after :func:`install`.

    Raises:
        ClusterError: That is not possible here; the text says why.
    """
    parking.prepare()
    beneath.begin(ask)
